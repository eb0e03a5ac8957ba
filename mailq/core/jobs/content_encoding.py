"""The AMQP property content_encoding, and gzip undone within bounds. Pure.

Clients write the property in many ways: a coding in any case, a character set (Spring AMQP), or both (`gzip:UTF-8`).
The body tells more reliably: gzip begins with two octets (RFC 1952 section 2.3.1) with which no JSON text begins. So
the body decides whether gzip is undone, and the property matters only where it names what mailq cannot undo.
"""

import re
import zlib
from functools import lru_cache

GZIP = b"\x1f\x8b"
"""The octets with which gzip begins."""

MAX_MEMBERS = 1000
"""Members of a gzip body (RFC 1952 section 2.2); each costs some microseconds, empty ones too."""

PIECE = 64 * 1024
UNFOLDED = 1024 * 1024
"""Octets that go into zlib at once, and that come out: where pieces meet, other threads get their turn."""

_PLAIN = frozenset(
    {
        "",
        "gzip",
        "x-gzip",
        "identity",
        "binary",
        "7bit",
        "8bit",
        "utf-8",
        "utf8",
        "utf_8",
        "us-ascii",
        "usascii",
        "ascii",
    }
)
_SEPARATORS = re.compile(r"[\s,;:]+")


RATIO = 1032
"""Octets that one octet of deflate unfolds to at most: what claims more is damaged, or does not end with its size."""


class EncodingError(ValueError):
    """A body cannot be decoded; the text says why and names the remedy."""


class TooLargeError(EncodingError):
    """A body is larger than allowed once gzip is undone."""


@lru_cache(maxsize=256)
def foreign(encoding: str | None) -> str | None:
    """Return the first coding or character set in `content_encoding` that mailq cannot undo, None if there is none."""
    return next((name for name in _SEPARATORS.split((encoding or "").lower()) if name not in _PLAIN), None)


def claimed(body: bytes) -> int:
    """Return the octets that gzip unfolds to, as its end says: modulo 2^32, and of the last member alone."""
    return int.from_bytes(body[-4:], "little")


def inflate(body: bytes, limit: int) -> bytes:
    """Return what a gzip body of one or more members holds, at most `limit` octets; zeros may follow it.

    Raises:
        TooLargeError: it holds more.
        EncodingError: it is damaged.
    """
    if limit < claimed(body) <= RATIO * len(body):
        raise _too_large(limit)
    parts: list[bytes] = []
    room, place, view = limit, 0, memoryview(body)
    for _ in range(MAX_MEMBERS):
        unzip = zlib.decompressobj(wbits=31)
        while not unzip.eof:
            piece: bytes | memoryview = unzip.unconsumed_tail
            if not piece:
                piece = view[place : place + PIECE]
                place += len(piece)
            part = _undone(unzip, piece)
            room -= len(part)
            if room < 0:
                raise _too_large(limit)
            parts.append(part)
        place -= len(unzip.unused_data)
        if not body.startswith(GZIP, place):
            break
    else:
        raise EncodingError(f"gzip body has more than {MAX_MEMBERS} members; compress it as one")
    if bytes(view[place:]).strip(b"\0"):
        raise EncodingError("gzip body is followed by something else; publish the gzip stream alone")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _undone(unzip: "zlib._Decompress", piece: bytes | memoryview) -> bytes:
    """Return what the next piece of a gzip stream unfolds to, or the beginning of it."""
    if not piece:
        raise EncodingError("gzip body is cut short; publish it anew")
    try:
        return unzip.decompress(piece, UNFOLDED)
    except zlib.error as trouble:
        raise EncodingError(f"gzip body is damaged ({trouble}); publish it anew") from None


def _too_large(limit: int) -> TooLargeError:
    text = f"gzip body unfolds to more than {limit} octets; send less, or raise delivery.max_message_size"
    return TooLargeError(text)
