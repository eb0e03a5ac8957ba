"""What a journal says: which messages were handed over, and what came of it. Pure: bytes in, standings out.

A process that is about to hand a message over writes an intent; after the answer, the answer; when everything
published for it is confirmed, that it is settled. A publication at its first consumption has no mark: its entry is
then published, and settled when the broker has the acknowledgement too. Until then the message may come again; after
that only an equal one can. A job that comes again is looked up by its key (`core.broker.provenance`). This module has
the words of that, how records look, and what is read of any octets at all; what records mean together is for
`core.journal.index`, files, locks and disks for `edges.journal`, what a worker does about it for the flow. A record
is: length, CRC-32 and a body, whose first octet is its mark. Whatever the octets are, reading ends, and keeps no more
than they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAX_ANSWER = 64 * 1024
"""Octets of what is kept of an answer."""

DELAYED = b"delayed"
"""The record of a job that was sent on its way back without an attempt."""


class JournalError(Exception):
    """Nothing can be recorded, so nothing may be handed over; the text says why and what helps."""


class JobKey(NamedTuple):
    """One attempt of one publication: a digest of 16 octets, of its mark, or of its content while it has no mark."""

    digest: bytes
    marked: bool


class EntryId(NamedTuple):
    """Names an entry for ever: the writer's random 8 octets and the number that it gave."""

    writer: bytes
    serial: int

    @property
    def name(self) -> str:
        """The entry's name as text."""
        return f"{self.writer.hex()}-{self.serial}"


class EntryState(StrEnum):
    """What the journals of a host know of a job's attempt."""

    UNKNOWN = "unknown"  # not handed over
    UNDERWAY = "underway"  # a living process sees to it
    DOUBT = "doubt"  # handed over by a process that died before the answer
    ANSWERED = "answered"  # its answer is known, and not published
    SETTLED = "settled"  # all of it is published


@dataclass(frozen=True, slots=True)
class Entry:
    """How a job stands; `id` and `record` where the entry is now the asker's to settle."""

    state: EntryState
    id: EntryId | None = None
    record: bytes | None = None


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What this process wrote since its start, in octets and records, and the corrupt files it came across."""

    octets: int = 0
    records: int = 0
    corrupt: int = 0


class Mark:
    """What a record says; its first octet. Plain numbers, since to look a member of an enumeration up takes longer."""

    INTENT = 1
    ANSWER = 2
    WITHDRAWN = 3
    RELEASED = 4
    SETTLED = 5
    CLAIM = 6
    TRIAL = 7
    TRIED = 8
    PUBLISHED = 9


_FRAME = Struct("<II")
INTENT_BODY = Struct("<BQ16s?I")
ANSWER_BODY = Struct("<BQ")
ENTRY_BODY = Struct("<B8sQ")
CLAIM_BODY = Struct("<B8sQI")
TRIAL_BODY = Struct("<B16sI")
SERIAL = Struct("<Q")
BODY_SIZES: dict[int, int] = {
    Mark.INTENT: INTENT_BODY.size,
    Mark.WITHDRAWN: ENTRY_BODY.size,
    Mark.RELEASED: ENTRY_BODY.size,
    Mark.SETTLED: ENTRY_BODY.size,
    Mark.CLAIM: CLAIM_BODY.size,
    Mark.TRIAL: TRIAL_BODY.size,
    Mark.TRIED: TRIAL_BODY.size,
}

_MAX_BODY = ANSWER_BODY.size + MAX_ANSWER
MAX_RECORD = _FRAME.size + _MAX_BODY
"""Octets of the longest record."""

MOST_PUBLISHED = MAX_ANSWER // SERIAL.size
"""Entries that one record tells to be published, at most."""

INTENT_SIZE = _FRAME.size + INTENT_BODY.size
END_SIZE = _FRAME.size + ENTRY_BODY.size
TRIAL_SIZE = _FRAME.size + TRIAL_BODY.size
CLAIM_SIZE = _FRAME.size + CLAIM_BODY.size


def _framed(body: bytes) -> bytes:
    return _FRAME.pack(len(body), crc32(body)) + body


def intent(serial: int, key: JobKey, at: int) -> bytes:
    """Return the record of an intent; `at` is in seconds since 1970, here and below."""
    return _framed(INTENT_BODY.pack(Mark.INTENT, serial, key.digest, key.marked, at))


def answer(serial: int, record: bytes) -> bytes:
    """Return the record of an answer."""
    return _framed(ANSWER_BODY.pack(Mark.ANSWER, serial) + record)


def published(serials: Sequence[int]) -> bytes:
    """Return the record that what came of so many of the writer's entries is published, `MOST_PUBLISHED` at most."""
    return _framed(bytes((Mark.PUBLISHED,)) + b"".join(map(SERIAL.pack, serials)))


def ending(mark: int, entry: EntryId) -> bytes:
    """Return the record that an entry is withdrawn, released or settled."""
    return _framed(ENTRY_BODY.pack(mark, *entry))


def claim(entry: EntryId, at: int) -> bytes:
    """Return the record that another writer's entry is the claimant's to settle."""
    return _framed(CLAIM_BODY.pack(Mark.CLAIM, *entry, at))


def trial(mark: int, digest: bytes, at: int) -> bytes:
    """Return the record that a trial is begun or survived."""
    return _framed(TRIAL_BODY.pack(mark, digest, at))


def decode(data: bytes) -> tuple[list[bytes], int]:
    """Return the bodies of the whole records that `data` begins with, and how many octets they take."""
    bodies: list[bytes] = []
    at, size = 0, len(data)
    unpack, frame, append = _FRAME.unpack_from, _FRAME.size, bodies.append
    while at + frame < size:
        length, check = unpack(data, at)
        start = at + frame
        end = start + length
        if not 0 < length <= _MAX_BODY or end > size:
            break
        body = data[start:end]
        if crc32(body) != check:
            break
        append(body)
        at = end
    return bodies, at


class Tail(Enum):
    """What follows the last whole record of a writer that is dead."""

    CLEAN = "clean"
    TORN = "torn"
    CORRUPT = "corrupt"


def tail(data: bytes) -> Tail:
    """Tell what stands where no whole record does: nothing, one that was being written, or damage."""
    rest = data.rstrip(b"\0")
    if not rest:
        return Tail.CLEAN
    length = int.from_bytes(data[:4], "little")
    whole = length and len(rest) <= _FRAME.size + min(length, _MAX_BODY)
    return Tail.TORN if whole else Tail.CORRUPT


@dataclass(frozen=True, slots=True)
class Header:
    """How a journal file begins: whose it is, its number among the writer's files, and since when it is."""

    writer: bytes
    number: int
    begun: int


_MAGIC = b"mailq-j1"
_HEADER = Struct("<8s8sII")
HEADER_SIZE = _HEADER.size + 4
"""Octets of a header. It is written last: a file without one says nothing yet."""


def encode_header(header: Header) -> bytes:
    """Return the first octets of a file."""
    plain = _HEADER.pack(_MAGIC, header.writer, header.number, header.begun)
    return plain + crc32(plain).to_bytes(4, "little")


def decode_header(data: bytes) -> Header | None:
    """Return the header that `data` begins with, None if that is not one of this format."""
    plain = data[: _HEADER.size]
    if len(data) < HEADER_SIZE or crc32(plain).to_bytes(4, "little") != data[_HEADER.size : HEADER_SIZE]:
        return None
    magic, writer, number, begun = _HEADER.unpack(plain)
    return Header(writer, number, begun) if magic == _MAGIC else None
