"""The limits of one host: a table that all its processes have mapped, by the name that `file` gives it.

The table decides who may go (with `core.traffic.rate`) and how many there are at once; what is limited, and what
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
nothing. Counts stand in a column for each process that only this process writes. Each process clears the
columns of the dead once a second: so long they hold a limit at most. Moments are of CLOCK_MONOTONIC: one
clock for all processes of a host, which no correction of the time of day turns back.

When somebody removes the file, those who have it go on, and each moves to the one that is found by
the name within a second, with all that it has in; only paces begin anew.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from time import monotonic

from mailq.core.traffic.rate import Pace, Rate, Slot, take
from mailq.core.traffic.wait_queue import owes
from mailq.edges.limits.file import DIGEST, MOMENTS, LimitsFile, worded

SLOTS = 65_536
"""Keys that can have something to say at once, spread evenly; 48 octets each and 8 for every process."""

PLACES = 16_384
"""Keys whose places this process remembers: at most 8 MiB, since keys are short."""

WAYS = 16
"""Slots of a bucket."""

WANTED = 1000
"""Milliseconds for which a refusal counts as a wish."""

_MILLISECONDS = 0xFFFFFFFF


class SharedLimits:
    """The `Limits` port of one process. Calls are synchronous inside and take microseconds."""

    def __init__(self, directory: str | os.PathLike[str], *, slots: int = SLOTS) -> None:
        """Nothing is opened before `tend` or `trouble` is called."""
        self.overflows = 0
        """How often this process did not keep a limit because its bucket was full."""
        self._directory = Path(directory)
        self._slots = slots
        self._file: LimitsFile | None = None
        self._trouble: str | None = None
        self._inside: dict[str, int] = {}

    def problem(self) -> str | None:
        """Return why there is no table to share, None if there is one; without, nothing is to be begun."""
        if self._file is None:
            self.housekeep()
        return self._trouble

    def housekeep(self) -> None:
        """Have the file that the host shares, and count out who is dead."""
        try:
            file = self._file
            if file is None or file.removed:
                file = LimitsFile.open(self._directory, self._slots)
                self._attach(file)
            file.bury()
        except OSError as error:
            self._trouble = worded(error, self._directory) if self._file is None else None
        else:
            self._trouble = None

    def close(self) -> None:
        """Give the table back; no method but `leave` may be called any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _attach(self, file: LimitsFile) -> None:
        """Go on in a file, with all that this process has in."""
        self.close()
        self._file, self._descriptor, self._map, self._top = file, file.descriptor, file.map, file.top
        self._digests, self._moments, self._cells = file.digests, file.moments, file.cells
        self._key, self._index, self._stride = file.key, file.column, 2 * self._slots
        self._own = file.column * self._stride
        self._place = lru_cache(maxsize=min(self._slots, PLACES))(self._locate)
        for key, count in self._inside.items():
            with self._locked(key) as (slot, _):
                if slot is not None:
                    self._cells[self._own + slot] = count

    @contextmanager
    def _locked(self, key: str) -> Iterator[tuple[int | None, float]]:
        """Lock the bucket of a key, and yield its slot, None if there is no room for it, and the moment."""
        digest, bucket, home = self._place(key)
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, bucket)
        try:
            now = monotonic()
            yield self._claim(digest, bucket, home, now), now
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, bucket)

    async def take(self, key: str, rate: Rate, *, patience: float, returned: bool) -> Slot:
        """Return when the next event of a rate may be; see `core.traffic.rate.take`, which decides it."""
        with self._locked(key) as (slot, now):
            if slot is None:
                self.overflows += 1
                return Slot(0.0)
            moments, at = self._moments, slot * MOMENTS
            pace, ends = Pace(moments[at], moments[at + 1], moments[at + 2]), moments[at + 3]
            pace, answer = take(pace, rate, now, patience=patience, returned=returned)
            ends = max(ends, pace.next + (rate.burst - 1) * rate.interval, pace.front, pace.back)
            moments[at + 3], moments[at], moments[at + 1], moments[at + 2] = ends, pace.next, pace.front, pace.back
            return answer

    async def enter(self, key: str, limit: int) -> bool:
        """Count this process in once more if fewer than `limit` are in and none with less waits; tell whether it is."""
        with self._locked(key) as (slot, now):
            if slot is None:
                self.overflows += 1
                self._inside[key] = self._inside.get(key, 0) + 1
                return True
            own, counts = self._own + slot, self._counts(slot)
            if sum(counts) < limit and not any(each < counts[self._index] for each in self._waiting(slot, counts, now)):
                self._cells[own] += 1
                self._cells[own + self._slots] = 0
                self._inside[key] = self._inside.get(key, 0) + 1
                return True
            self._cells[own + self._slots] = _stamp(now)
            ends = slot * MOMENTS + 3
            self._moments[ends] = max(self._moments[ends], now + WANTED / 1000)
            return False

    def leave(self, key: str) -> None:
        """Count this process out once; nothing happens if it is not in, or the table is given back."""
        left = self._inside.pop(key, 0) - 1
        if left > 0:
            self._inside[key] = left
        if left < 0 or self._file is None:
            return
        # No lock: the cell is ours alone, and a slot in which somebody is keeps its key.
        slot = self._find(*self._place(key))
        if slot is not None and self._cells[self._own + slot] > left:  # else that one was not kept
            self._cells[self._own + slot] = left

    def wanted(self, key: str, limit: int, going: int) -> bool:
        """Tell whether a process was refused within the last second to which one of the places here is due.

        What is free is for it, and so are the `going` places of this process that are being given back.
        """
        if self._top[0] == 1:
            return False
        slot = self._find(*self._place(key))
        if slot is None:
            return False
        counts = self._counts(slot)
        own, coming = counts[self._index] - going, max(limit - sum(counts), 0) + going
        return any(owes(own, each + coming) for each in self._waiting(slot, counts, monotonic()))

    def _counts(self, slot: int) -> list[int]:
        """Return how many of each process are in."""
        return self._cells[slot : self._top[0] * self._stride : self._stride].tolist()

    def _waiting(self, slot: int, counts: Sequence[int], now: float) -> Iterator[int]:
        """Yield what each other process has that was refused within the last second."""
        stamped = _stamp(now)
        stamps = self._cells[slot + self._slots : len(counts) * self._stride : self._stride].tolist()
        for index, stamp in enumerate(stamps):
            if stamp and index != self._index and (stamped - stamp) & _MILLISECONDS < WANTED:
                yield counts[index]

    def _locate(self, key: str) -> tuple[bytes, int, int]:
        """Return the digest of a key, its bucket, and the slot of the bucket that it prefers."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST, key=self._key).digest()
        bucket = int.from_bytes(digest[:8]) % (self._slots // WAYS)
        return digest, bucket, bucket * WAYS + digest[8] % WAYS

    def _find(self, digest: bytes, bucket: int, home: int) -> int | None:
        """Return the slot of a digest."""
        place = self._digests + home * DIGEST
        if self._map[place : place + DIGEST] == digest:
            return home
        start = self._digests + bucket * WAYS * DIGEST
        end = start + WAYS * DIGEST
        place = self._map.find(digest, start, end)
        while place >= 0 and (place - start) % DIGEST:  # two neighbours' halves look like it
            place = self._map.find(digest, place + 1, end)
        return None if place < 0 else (place - self._digests) // DIGEST

    def _claim(self, digest: bytes, bucket: int, home: int, now: float) -> int | None:
        """Return the slot of a digest, a free one made its own if it has none; None if there is no free one."""
        known = self._find(digest, bucket, home)
        if known is not None:
            return known
        for way in range(home, home + WAYS):
            slot = bucket * WAYS + way % WAYS
            at = slot * MOMENTS
            if self._moments[at + 3] > now or any(self._counts(slot)):
                continue
            for moment in range(at, at + MOMENTS):
                self._moments[moment] = 0.0
            for column in range(self._top[0]):
                self._cells[column * self._stride + self._slots + slot] = 0
            place = self._digests + slot * DIGEST
            self._map[place : place + DIGEST] = digest
            return slot
        return None


def _stamp(now: float) -> int:
    """Return a moment in milliseconds as one word, never 0; it comes round after 49 days, which costs a false wish."""
    return int(now * 1000) & _MILLISECONDS or 1
