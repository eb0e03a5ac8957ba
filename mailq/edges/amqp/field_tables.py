"""AMQP field tables and short strings, both ways (RabbitMQ's 0-9-1 errata, section 3).

Headers come from producers, so decoding is linear, bounded in depth and never fails: what cannot be
understood is left out. Whatever `decode_table` returns, `encode_table` takes, so that headers pass
from a job to its results. pamqp's own tables fall short of all three.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

MAX_DEPTH = 16
"""Deepest nesting of tables and arrays that is read; RabbitMQ's own x-death needs three."""

MAX_SHORT = 255
"""Longest short string in octets."""

_LENGTH = struct.Struct(">I")
_DECIMAL = struct.Struct(">Bi")
_LATEST = 253_402_300_800
"""The first second that Python's datetime cannot hold."""

_FIXED: dict[int, struct.Struct] = {
    ord(kind): struct.Struct(f">{code}")
    for kind, code in {
        "t": "?", "b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip
"""Values of fixed size by their type octet."""

_FLOATS = b"fd"
"""RabbitMQ cannot parse those that are not finite: it ends the publisher's channel. They are read as no value."""


def text(raw: bytes) -> str:
    """Return a string of the wire as text; octets that are not UTF-8 become `?`, so it grows no longer."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="replace").replace("\ufffd", "?")


def decode_table(data: bytes) -> dict[str, Any]:
    """Return the fields of a table (its octets without the length), up to the first that makes no sense."""
    fields: dict[str, Any] = {}
    _read_table(data, 0, len(data), 0, fields)
    return fields


def _read_table(data: bytes, at: int, end: int, depth: int, into: dict[str, Any]) -> bool:
    """Read fields into a dict; False when the octets ran out or made no sense."""
    while at < end:
        name_end = at + 1 + data[at]
        if name_end >= end:
            return False
        name = text(data[at + 1 : name_end])
        value, at, good = _read_value(data, name_end, end, depth)
        if not good:
            return False
        into[name] = value
    return at == end


def _read_value(data: bytes, at: int, end: int, depth: int) -> tuple[Any, int, bool]:
    """Return one value, where it ends, and whether it made sense."""
    kind = data[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return _read_fixed(data, at, end, kind, fixed)
    if kind in b"V\x00":
        return None, at, True
    if kind in b"SxAF":
        start = at + 4
        stop = start + _LENGTH.unpack_from(data, at)[0] if start <= end else end + 1
        return (*_read_long(data, start, stop, kind, depth), True) if stop <= end else (None, end, False)
    if kind == ord("T") and at + 8 <= end:
        seconds = int.from_bytes(data[at : at + 8])
        return (datetime.fromtimestamp(seconds, UTC) if seconds < _LATEST else seconds), at + 8, True
    if kind == ord("D") and at + 5 <= end:
        scale, digits = _DECIMAL.unpack_from(data, at)
        return Decimal(digits).scaleb(-scale), at + 5, True
    return None, end, False


def _read_fixed(data: bytes, at: int, end: int, kind: int, fixed: struct.Struct) -> tuple[Any, int, bool]:
    stop = at + fixed.size
    if stop > end:
        return None, end, False
    value = fixed.unpack_from(data, at)[0]
    return (value if kind not in _FLOATS or isfinite(value) else None), stop, True


def _read_long(data: bytes, at: int, end: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value that has its length before it: string, octets, array or table."""
    if kind == ord("S"):
        return text(data[at:end]), end
    if kind == ord("x"):
        return data[at:end], end
    if depth == MAX_DEPTH:
        return None, end
    if kind == ord("F"):
        table: dict[str, Any] = {}
        _read_table(data, at, end, depth + 1, table)
        return table, end
    array: list[Any] = []
    while at < end:
        value, at, good = _read_value(data, at, end, depth + 1)
        if good:
            array.append(value)
    return array, end


def encode_table(fields: Mapping[str, Any]) -> bytes:
    """Return a table with its length before it.

    Raises:
        TypeError: a value of a type that AMQP has not.
        ValueError: a name or number that is too long.
    """
    parts = [short(name) + encode_value(value) for name, value in fields.items()]
    body = b"".join(parts)
    return _LENGTH.pack(len(body)) + body


def short(value: str) -> bytes:
    """Return a short string with its length before it.

    Raises:
        ValueError: it is longer than 255 octets.
    """
    raw = value.encode()
    if len(raw) > MAX_SHORT:
        raise ValueError(f"{value[:60]!r}… is longer than {MAX_SHORT} octets")
    return bytes((len(raw),)) + raw


def encode_value(value: object) -> bytes:
    """Return a value with its type octet before it; errors as in `encode_table`."""
    encode = _ENCODERS.get(type(value))
    if encode is not None:
        return encode(value)
    if isinstance(value, Mapping):
        return b"F" + encode_table(value)
    raise TypeError(f"AMQP headers have no type for {type(value).__name__}")


def _long(kind: bytes, raw: bytes) -> bytes:
    return kind + _LENGTH.pack(len(raw)) + raw


def _integer(value: int) -> bytes:
    """Return an integer as RabbitMQ's clients write it: 32 bits where they do, else 64."""
    if -(1 << 31) <= value < 1 << 31:
        return b"I" + value.to_bytes(4, signed=True)
    if -(1 << 63) <= value < 1 << 63:
        return b"l" + value.to_bytes(8, signed=True)
    return b"T" + value.to_bytes(8)


def _float(value: float) -> bytes:
    if not isfinite(value):
        raise ValueError("AMQP headers have no number that is not finite")
    return b"d" + struct.pack(">d", value)


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise TypeError("AMQP headers have no type for an infinite decimal")
    number = int("".join(map(str, digits)) or "0") * 10 ** max(exponent, 0)
    scale = max(-exponent, 0)
    number = -number if sign else number
    if scale > MAX_SHORT or not -(1 << 31) <= number < 1 << 31:
        raise ValueError("decimal number is too long for AMQP")
    return b"D" + _DECIMAL.pack(scale, number)


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: lambda value: _long(b"S", value.encode()),
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _integer,
    float: _float,
    bytes: lambda value: _long(b"x", value),
    type(None): lambda _: b"V",
    datetime: lambda value: b"T" + max(int(value.timestamp()), 0).to_bytes(8),
    Decimal: _decimal,
    list: lambda value: _long(b"A", b"".join(map(encode_value, value))),
}
