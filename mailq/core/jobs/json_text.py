"""JSON text: how many values it holds, half surrogate pairs made whole, integers of any size. Pure.

A parsed value takes many times the octets of its text (`{}` takes 64), so values are counted first. The work is done
slice by slice: in a thread, the event loop gets its turn between two slices.
"""

import json
import re
from typing import Any

import orjson

SLICE = 256 * 1024
"""Octets that are looked at in one go: some milliseconds."""

_MARKS = b",:[{"
_HALF = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
"""An escape of a surrogate that has no partner (RFC 8259 section 8.2)."""

_ESCAPE, _PAIR = len(rb"\uXXXX"), len(rb"\uXXXX\uXXXX")


def count_values(text: bytes, enough: int, most: int) -> int:
    """Return about how many values a JSON text holds: its commas, colons and opening brackets outside of strings.

    Up to `enough`, those in strings may be among them. Above `most` counting ends, and some number above it is
    returned.
    """
    if count_marks(text, enough) <= enough:
        return enough
    found = strings = start = 0
    inside = False
    while start < len(text) and max(found, strings) <= most:
        part = text[start : start + SLICE]
        if (len(part) - len(part.rstrip(b"\\"))) % 2 and len(part) > 1:
            part = part[:-1]  # an escape is not cut in two
        start += len(part)
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        found += _marks(b"".join(pieces[inside::2]))
        strings += len(pieces) // 2
        inside ^= not len(pieces) % 2
    return max(found, strings)


def count_marks(text: bytes, enough: int) -> int:
    """Return how many commas, colons and opening brackets a text holds, strings included; it ends above `enough`."""
    found = 0
    for start in range(0, len(text), SLICE):
        found += _marks(text[start : start + SLICE])
        if found > enough:
            break
    return found


def _marks(text: bytes) -> int:
    return len(text) - len(text.translate(None, _MARKS))


def mend_surrogates(text: bytes) -> bytes | None:
    """Return a JSON text with U+FFFD for each escaped half of a surrogate pair; None: there is no such half."""
    if b"\0" in text:  # no JSON text holds it, so it can stand for what must not be mistaken for an escape
        return None
    whole = bytearray(text.replace(b"\\\\", b"\0\0"))
    halves = 0
    for start in range(0, len(whole), SLICE):
        for match in _HALF.finditer(whole, start, min(start + SLICE + _PAIR, len(whole))):
            place = match.start()
            if place < start + SLICE:  # else the next slice sees it whole
                whole[place : place + _ESCAPE] = rb"\ufffd"
                halves += 1
    return bytes(whole).replace(b"\0\0", b"\\\\") if halves else None


_LEAST, _MOST = -(2**63), 2**64 - 1
_SURE = len("-999999999999999999")
"""Characters that every integer of 64 bits may have, whichever it is."""


def holds_large(document: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    """Tell whether a parsed document holds a number that orjson may have read as another one: an integer of 65 bits."""
    nodes = [document]
    while nodes:
        node = nodes.pop()
        for value in node.values() if isinstance(node, dict) else node:
            kind = type(value)
            if kind is dict or kind is list:
                nodes.append(value)
            elif kind is float and not _LEAST < value < -_LEAST:
                return True
    return False


def parse_exactly(text: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what a valid JSON text holds; an integer of more than 64 bits is kept as its digits, to be written again.

    Raises:
        RecursionError: its objects and arrays are nested too deeply.
    """
    return json.loads(text, parse_int=_integer)


def _integer(text: str) -> int | orjson.Fragment:
    if len(text) <= _SURE:
        return int(text)
    if len(text) <= _SURE + 2 and _LEAST <= (number := int(text)) <= _MOST:
        return number
    return orjson.Fragment(text)
