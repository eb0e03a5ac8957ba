"""What the processes of one host share of the limits: a table in memory that all of them have mapped.

The supervisor makes it and hands the descriptor down; a worker without a supervisor makes one of its
own. It is a file without a name, so nothing is left of it when the last process is gone. The
table decides who may go (with `core.pace`) and how many there are at once; what is limited, and what
becomes of a job that must wait, is for `traffic`. It is the `Limits` of one host; processes of several
hosts need another one behind the same port.

Slots are found by a keyed 128-bit digest, whose bucket of sixteen slots is all that is searched and
locked. A slot that has nothing more to say (nobody in it, and every moment in the past) is a free
slot; so nothing that matters is ever forgotten, and nothing needs sweeping. When all sixteen
have something to say, the limit of one more key is not kept: mail never waits for the table, and
`overflows` counts it.

Processes may die anywhere. The lock is a record lock of the kernel (POSIX fcntl), which ends with its
owner. Every field is one aligned machine word, written whole; any mixture of old and new fields is
a valid slot, because moments only grow, and a digest is written last into a slot that says
nothing. Counts stand in a column for each process that only this process writes, and that `forget` clears
when it is dead. Moments are of CLOCK_MONOTONIC: one clock for all processes of a host, which no
correction of the time of day turns back.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from time import monotonic
from typing import Self

from mailq.core.pace import Pace, Rate, Slot, take
from mailq.core.queueing import owes

SLOTS = 65_536
"""Keys that can have something to say at once, spread evenly; 64 octets each and 8 for every process."""

WAYS = 16
"""Slots of a bucket."""

WANTED = 1000
"""Milliseconds for which a refusal counts as a wish."""

_MAGIC = b"mailq-1\0"
_HEADER = struct.Struct("8s2I16s")
_DIGEST = 16
_MOMENTS = 4
"""Of each slot, 8 octets each: those of its pace (next, front, back), and the last at which it has something to say."""

_MILLISECONDS = 0xFFFFFFFF


class SharedTable:
    """The `Limits` port of one process; `index` is its column.

    Calls are synchronous inside and take microseconds. A process must map the table once only: closing
    any descriptor of a file ends all locks that the process has on it (fcntl(2)).
    """

    def __init__(self, descriptor: int, index: int) -> None:
        """Map the table behind a descriptor, which now belongs to this object.

        Raises:
            ValueError: it is no such table, or has no column `index`.
        """
        self.descriptor = descriptor
        columns: int
        slots: int
        magic, columns, slots, self._key = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        if magic != _MAGIC or not 0 <= index < columns:
            raise ValueError(f"not a shared table with a column {index}")
        self._index, self._columns, self._slots = index, columns, slots
        self._map = mmap.mmap(descriptor, _size(columns, slots))
        self._digests = _HEADER.size + 4 * columns
        self._digests += -self._digests % _DIGEST
        moments = self._digests + slots * _DIGEST
        cells = moments + slots * _MOMENTS * 8
        words = slots * columns * 4
        self._view = memoryview(self._map)
        self._overflows = self._view[_HEADER.size : _HEADER.size + 4 * columns].cast("I")
        # Through memoryviews each store is one machine word; struct.pack_into would write zeros first.
        self._moments = self._view[moments:cells].cast("d")
        self._counts = self._view[cells : cells + words].cast("I")
        self._refusals = self._view[cells + words : cells + 2 * words].cast("I")
        self._place = lru_cache(maxsize=slots)(self._locate)
        self._unkept: dict[str, int] = {}

    @classmethod
    def create(cls, columns: int, *, slots: int = SLOTS) -> Self:
        """Make an empty table for so many processes; the maker has column 0 unless another process gets it."""
        if sys.platform == "linux":
            descriptor = os.memfd_create("mailq-limits")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _size(columns, slots))
        # The key is secret: who could choose names that meet in one bucket could fill it.
        os.pwrite(descriptor, _HEADER.pack(_MAGIC, columns, slots, secrets.token_bytes(16)), 0)
        return cls(descriptor, 0)

    @property
    def overflows(self) -> int:
        """How often a limit was not kept because its bucket was full, in all processes since the start."""
        return sum(self._overflows)

    async def take(self, key: str, rate: Rate, *, patience: float, returned: bool) -> Slot:
        """Return when the next event of a rate may be; see `core.pace.take`, which decides it."""
        digest, bucket, home = self._place(key)
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, bucket)
        try:
            now = monotonic()
            slot = self._claim(digest, bucket, home, now)
            if slot is None:
                self._overflows[self._index] += 1
                return Slot(0.0)
            moments, at = self._moments, slot * _MOMENTS
            pace, ends = Pace(moments[at], moments[at + 1], moments[at + 2]), moments[at + 3]
            pace, answer = take(pace, rate, now, patience=patience, returned=returned)
            ends = max(ends, pace.next + (rate.burst - 1) * rate.interval, pace.front, pace.back)
            moments[at + 3], moments[at], moments[at + 1], moments[at + 2] = ends, pace.next, pace.front, pace.back
            return answer
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, bucket)

    async def enter(self, key: str, limit: int) -> bool:
        """Count this process in once more if fewer than `limit` are in and none with less waits; tell whether it is."""
        digest, bucket, home = self._place(key)
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, bucket)
        try:
            now = monotonic()
            slot = self._claim(digest, bucket, home, now)
            if slot is None:
                self._overflows[self._index] += 1
                self._unkept[key] = self._unkept.get(key, 0) + 1
                return True
            first = slot * self._columns
            own = first + self._index
            counts = self._counts[first : first + self._columns].tolist()
            if sum(counts) < limit and not any(
                each < counts[self._index] for each in self._waiting(first, counts, now)
            ):
                self._counts[own] += 1
                self._refusals[own] = 0
                return True
            self._refusals[own] = _stamp(now)
            ends = slot * _MOMENTS + 3
            self._moments[ends] = max(self._moments[ends], now + WANTED / 1000)
            return False
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, bucket)

    def leave(self, key: str) -> None:
        """Count this process out once; nothing happens if it is not in, or the table is given back."""
        if self._map.closed:
            return
        if key in self._unkept:
            self._unkept[key] -= 1
            if not self._unkept[key]:
                del self._unkept[key]
            return
        # No lock: the cell is ours alone, and a slot in which somebody is keeps its key.
        slot = self._find(*self._place(key))
        if slot is not None and self._counts[slot * self._columns + self._index]:
            self._counts[slot * self._columns + self._index] -= 1

    def wanted(self, key: str, limit: int, going: int) -> bool:
        """Tell whether a process was refused within the last second to which one of the places here is due.

        What is free is for it, and so are the `going` places of this process that are being given back.
        """
        if self._columns == 1:
            return False
        slot = self._find(*self._place(key))
        if slot is None:
            return False
        first = slot * self._columns
        counts = self._counts[first : first + self._columns].tolist()
        own, coming = counts[self._index] - going, max(limit - sum(counts), 0) + going
        return any(owes(own, each + coming) for each in self._waiting(first, counts, monotonic()))

    def _waiting(self, first: int, counts: Sequence[int], now: float) -> Iterator[int]:
        """Yield what each other process has that was refused within the last second; `first` is the slot's cell."""
        stamped = _stamp(now)
        for index, stamp in enumerate(self._refusals[first : first + self._columns].tolist()):
            if stamp and index != self._index and (stamped - stamp) & _MILLISECONDS < WANTED:
                yield counts[index]

    def forget(self, index: int) -> int:
        """Count a process that is dead out of everything, and return how often it was in.

        To be called before another process gets its column: a column has one writer.
        """
        column = self._counts.tolist()[index :: self._columns]
        for slot, count in enumerate(column):
            if count:
                self._counts[slot * self._columns + index] = 0
        return sum(column)

    def close(self) -> None:
        """Give the table back; no method but `leave` may be called any more."""
        for view in (self._overflows, self._moments, self._counts, self._refusals, self._view):
            view.release()
        self._map.close()
        os.close(self.descriptor)

    def _locate(self, key: str) -> tuple[bytes, int, int]:
        """Return the digest of a key, its bucket, and the slot of the bucket that it prefers."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST, key=self._key).digest()
        bucket = int.from_bytes(digest[:8]) % (self._slots // WAYS)
        return digest, bucket, bucket * WAYS + digest[8] % WAYS

    def _find(self, digest: bytes, bucket: int, home: int) -> int | None:
        """Return the slot of a digest."""
        place = self._digests + home * _DIGEST
        if self._map[place : place + _DIGEST] == digest:
            return home
        start = self._digests + bucket * WAYS * _DIGEST
        end = start + WAYS * _DIGEST
        place = self._map.find(digest, start, end)
        while place >= 0 and (place - start) % _DIGEST:  # two neighbours' halves look like it
            place = self._map.find(digest, place + 1, end)
        return None if place < 0 else (place - self._digests) // _DIGEST

    def _claim(self, digest: bytes, bucket: int, home: int, now: float) -> int | None:
        """Return the slot of a digest, a free one made its own if it has none; None if there is no free one."""
        known = self._find(digest, bucket, home)
        if known is not None:
            return known
        for way in range(home, home + WAYS):
            slot = bucket * WAYS + way % WAYS
            at, first = slot * _MOMENTS, slot * self._columns
            if self._moments[at + 3] > now or any(self._counts[first : first + self._columns]):
                continue
            for moment in range(at, at + _MOMENTS):
                self._moments[moment] = 0.0
            for cell in range(first, first + self._columns):
                self._refusals[cell] = 0
            place = self._digests + slot * _DIGEST
            self._map[place : place + _DIGEST] = digest
            return slot
        return None


def _size(columns: int, slots: int) -> int:
    """Return the octets of a table."""
    if slots % WAYS or not slots or columns < 1:
        raise ValueError(f"no table of {slots} slots in buckets of {WAYS} for {columns} processes")
    return _HEADER.size + 4 * columns + _DIGEST + slots * (_DIGEST + _MOMENTS * 8 + 8 * columns)


def _stamp(now: float) -> int:
    """Return a moment in milliseconds as one word, never 0; it comes round after 49 days, which costs a false wish."""
    return int(now * 1000) & _MILLISECONDS or 1
