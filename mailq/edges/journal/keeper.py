"""The `Journal` port of one process: what it writes, what it looks up, and what it keeps.

Nothing is locked against others: who wants a job writes that first and then looks whether another
has written the same. Of two who meet at least one sees the other, both may give way, and a process that
stands still stops nobody. Room for every answer is kept from the hand-over on, so that the answer of a
message that is out cannot fail to be written. When a file is full the next one begins with all that is
still open. Figures of the bounds are below; the flow decides what a standing means for a job.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mailq.config.journal import JournalConfig
from mailq.core import journal as codec
from mailq.core.failure import Cause, Postponed
from mailq.core.journal import (
    CLAIM_SIZE,
    END_SIZE,
    HEADER_SIZE,
    INTENT_SIZE,
    MAX_ANSWER,
    MAX_RECORD,
    TRIAL_SIZE,
    Entry,
    EntryId,
    Header,
    JobKey,
    JournalError,
    JournalStats,
    Mark,
    Standing,
)
from mailq.edges.journal.shelf import Bounds, Shelf
from mailq.edges.journal.volume import ENDING, Volume, flush_directory, unreadable, worded

FULL = 0.8
"""The share of a file, used or promised, from which on the next one is reserved."""

PROMISED = MAX_RECORD + 2 * END_SIZE
"""Octets kept for what follows an intent: its answer, its release, its end."""

ABANDONED = 120.0
"""Seconds after which an answer that was not settled is left to whoever gets its job: its connection is lost."""

ASKED = 600.0
"""Seconds after a look-up for which all that is written is read meanwhile: 7 µs a job of the host, in each process."""

HOUSEKEEPING = 60.0
"""Seconds between looks at what dead processes left."""

MAX_DEAD = 32
"""Dead writers with nothing open whose files are kept, the latest."""

MAX_DEAD_FILES = 8
"""Full files for which there is room among what dead writers leave, beside what is open."""

APART = (2.0, 3.0)
"""Seconds for which a contested job goes away: at least, and up to so many more, so that rivals part."""


@dataclass(slots=True, eq=False)
class _Open:
    """One's own entry that is not settled; `since` and `answered` in seconds on the monotonic clock."""

    key: JobKey
    at: int
    since: float
    record: bytes | None = None
    answered: float = 0.0
    released: bool = False


class FileJournal:
    """A journal in a directory that the processes of one host share; `index` names the process to operators."""

    def __init__(self, directory: str, config: JournalConfig, index: int) -> None:
        self._directory = Path(directory)
        self._config = config
        self._index = index
        self._waits = config.sync == "always"
        self._limit = config.size
        self._writer = secrets.token_bytes(8)
        self._number = 0
        self._serial = 0
        self._promised = 0
        self._octets = 0
        self._records = 0
        self._told = 0
        self._current: Volume | None = None
        self._spare: Volume | None = None
        self._previous: Volume | None = None
        self._shelf = Shelf(self._directory)
        self._open: dict[int, _Open] = {}
        self._claims: dict[EntryId, int] = {}
        self._ended: set[EntryId] = set()
        self._trials: dict[bytes, list[int]] = {}
        self._trouble: str | None = None
        self._blind: str | None = None
        self._closed = False
        self._named = False
        self._kept_house = self._asked = float("-inf")
        self.tend()

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:
        """Record an intent and promise room for the rest; a contested one gives way to any other."""
        volume = self._room(INTENT_SIZE + PROMISED)
        self._serial = serial = self._serial + 1
        at = int(time.time())
        start = volume.offset
        self._write(volume, codec.intent(serial, key, at))
        self._promised += PROMISED
        self._open[serial] = _Open(key, at, time.monotonic())
        entry = EntryId(self._writer, serial)
        if self._waits:
            self._flush(volume, start, entry)
        if contested:
            self._give_way(key, entry)
        return entry

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Record an answer in the room that was promised for it."""
        opened, volume = self._open.get(entry.serial), self._current
        if opened is None or opened.record is not None or volume is None:
            return
        if len(record) > MAX_ANSWER:
            record = b""
        start = volume.offset
        self._write(volume, codec.answer(entry.serial, record))
        self._promised -= MAX_RECORD
        opened.record, opened.answered = record, time.monotonic()
        if self._waits:
            try:
                volume.flush(start)
            except OSError as error:
                self._trouble = self._worded(error)

    def withdrawn(self, entry: EntryId) -> None:
        """Record that nothing was handed over; of an entry that was taken, that it is not settled here."""
        if entry.writer != self._writer:
            self.released(entry)
        else:
            self._end(Mark.WITHDRAWN, entry)

    def released(self, entry: EntryId) -> None:
        """Leave an answered entry to others, and one that was taken."""
        claimed, volume = self._claims.pop(entry, None) is not None, self._current
        opened = self._open.get(entry.serial) if entry.writer == self._writer else None
        left = opened is not None and opened.record is not None and not opened.released
        if volume is None or not (claimed or left):
            return
        self._write(volume, codec.ending(Mark.RELEASED, entry))
        self._promised -= END_SIZE * (claimed + left)
        if opened is not None:
            opened.released = True

    def settled(self, entry: EntryId) -> None:
        """Record the end of an entry, one's own or one that was taken."""
        claimed, volume = self._claims.pop(entry, None) is not None, self._current
        if claimed:
            self._promised -= END_SIZE
        if entry.writer == self._writer:
            self._end(Mark.SETTLED, entry)
        elif claimed and volume is not None:
            self._write(volume, codec.ending(Mark.SETTLED, entry))
            self._ended.add(entry)

    def take(self, key: JobKey) -> Entry:
        """Look a job up, and claim what is found."""
        self._asked = time.monotonic()
        self._refresh()
        found = self._shelf.index.standing(key)
        if found.id is None:
            return found
        volume, at = self._room(CLAIM_SIZE + END_SIZE), int(time.time())
        self._write(volume, codec.claim(found.id, at))
        self._promised += END_SIZE
        self._claims[found.id] = at
        try:
            self._refresh()
            rivals = self._shelf.index.claimed(found.id, but=self._writer)
        except JournalError:
            self.released(found.id)
            raise
        if rivals:
            self.released(found.id)
            return Entry(Standing.UNDERWAY)
        return found

    def trial(self, digest: bytes) -> None:
        """Record a trial and promise room for its end."""
        volume, at = self._room(2 * TRIAL_SIZE), int(time.time())
        self._write(volume, codec.trial(Mark.TRIAL, digest, at))
        self._promised += TRIAL_SIZE
        self._trials.setdefault(digest, []).append(at)

    def tried(self, digest: bytes) -> None:
        """Record that a trial was survived."""
        begun, volume = self._trials.get(digest), self._current
        if not begun or volume is None:
            return
        at = begun.pop()
        if not begun:
            del self._trials[digest]
        self._write(volume, codec.trial(Mark.TRIED, digest, at))
        self._promised -= TRIAL_SIZE

    def trials(self, digest: bytes) -> int:
        """Count the processes that died in a trial."""
        self._refresh()
        return self._shelf.index.trials(digest)

    def trouble(self) -> str | None:
        """Return why nothing can be recorded, or soon will not be, or why no job can be looked up."""
        return self._trouble or self._blind

    def tend(self) -> tuple[str, ...]:
        """Reserve the next file early, read what is new, try again what failed, and now and then keep house."""
        if self._closed:
            return ()
        try:
            self._prepare()
            self._trouble, self._limit = None, self._config.size
        except JournalError:
            pass  # it is the trouble
        except OSError as error:
            self._trouble = self._worded(error)
            self._limit = 0 if error.errno == errno.EROFS else self._limit
        if self._current is not None:
            self._current.give_up_pages()
            with suppress(JournalError):  # it is the trouble
                # Where jobs come again: what others settled is to be known when their files are gone.
                self._refresh(read=time.monotonic() - self._asked < ASKED)
            if time.monotonic() - self._kept_house >= HOUSEKEEPING:
                self._kept_house = time.monotonic()
                with suppress(OSError, JournalError):  # it is done again
                    self._keep_house()
        corrupt = self._shelf.corrupt[self._told :]
        self._told += len(corrupt)
        return tuple(f"journal file {path} is damaged: what follows the damage is not read" for path in corrupt)

    def stats(self) -> JournalStats:
        """Return what was written and found."""
        return JournalStats(self._octets, self._records, len(self._shelf.corrupt))

    def close(self) -> None:
        """Leave a file only if others may need what it says: a copy of a settled job may still come."""
        for digest in [digest for digest, begun in self._trials.items() for _ in begun]:
            self.tried(digest)
        self._forget_ended()
        for volume in (self._previous, self._spare):
            if volume is not None:
                volume.close(remove=True)
        if self._current is not None:
            self._current.close(remove=not (self._open or self._ended or self._named))
        self._current = self._spare = self._previous = None
        self._closed, self._trouble = True, "the journal is closed"
        self._shelf.close()

    def _write(self, volume: Volume, record: bytes) -> None:
        volume.append(record)
        self._octets += len(record)
        self._records += 1

    def _end(self, mark: Mark, entry: EntryId) -> None:
        opened, volume = self._open.pop(entry.serial, None), self._current
        if opened is None or volume is None:
            return
        self._write(volume, codec.ending(mark, entry))
        self._named = self._named or (mark is Mark.SETTLED and opened.key.identified)
        self._promised -= PROMISED if opened.record is None else END_SIZE if opened.released else 2 * END_SIZE

    def _give_way(self, key: JobKey, entry: EntryId) -> None:
        """Withdraw an intent if another process has handed the job over, or is about to.

        The intent is written before the look, with system calls between them: of two who do so, both cannot miss.
        """
        try:
            self._refresh()
        except JournalError:
            self.withdrawn(entry)
            raise
        reason = self._shelf.index.rival(key, entry)
        if reason is not None:
            self.withdrawn(entry)
            least, spread = APART
            raise Postponed(least + spread * secrets.randbelow(1000) / 1000, Cause.ELSEWHERE, reason)

    def _flush(self, volume: Volume, start: int, entry: EntryId) -> None:
        try:
            volume.flush(start)
        except OSError as error:
            self._trouble = self._worded(error)
            self.withdrawn(entry)
            raise JournalError(self._trouble) from error

    def _refresh(self, *, read: bool = True) -> None:
        if self._current is None:
            raise JournalError(self._trouble)
        try:
            self._shelf.refresh(read=read)
        except OSError as error:
            self._blind = unreadable(error, self._directory)
            raise JournalError(self._blind) from error
        self._blind = None

    def _room(self, needed: int) -> Volume:
        """Return the file to write to, with room for what is needed beside what was promised."""
        volume = self._current
        if volume is not None and volume.offset + self._promised + needed <= self._limit:
            return volume
        if self._trouble is not None and (self._spare is None or not self._limit):
            raise JournalError(self._trouble)
        carried = list(self._carried())
        if HEADER_SIZE + sum(map(len, carried)) + self._promised + needed > self._config.size:
            raise JournalError(f"{len(self._open)} messages at once are too many for journal.size; raise it")
        return self._switch(carried)

    def _switch(self, carried: list[bytes]) -> Volume:
        """Go on in a new file, which begins with what is carried over."""
        volume = self._spare or self._reserve()
        volume.begin(Header(self._writer, self._number, int(time.time())), carried)
        self._previous, self._current, self._spare = self._current, volume, None
        if self._waits:
            with suppress(OSError):  # the next record waits for it once more
                volume.flush(0)
        return volume

    def _reserve(self) -> Volume:
        """Return a new file; the one before the current one goes."""
        if self._previous is not None:
            self._previous.close(remove=True)
            self._previous = None
        number = self._number + 1
        name = f"{self._index}-{self._writer.hex()}-{number}{ENDING}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            volume = Volume.reserve(self._directory / name, self._config.size)
        except OSError as error:
            self._trouble = self._worded(error)
            raise JournalError(self._trouble) from error
        self._number = number
        if self._waits:
            with suppress(OSError):  # what is written there will tell
                flush_directory(self._directory)
        return volume

    def _prepare(self) -> None:
        if self._spare is not None and self._spare.removed:
            self._spare.close(remove=False)
            self._spare = None
        if self._current is None or self._current.removed:
            self._switch(list(self._carried()))
        elif os.statvfs(self._directory).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif self._spare is None and self._current.offset + self._promised > FULL * self._config.size:
            self._spare = self._reserve()

    def _carried(self) -> Iterator[bytes]:
        """Yield the records of all that is open, for the next file."""
        self._forget_ended()
        for serial, opened in self._open.items():
            yield codec.intent(serial, opened.key, opened.at)
            if opened.record is not None:
                yield codec.answer(serial, opened.record)
            if opened.released:
                yield codec.ending(Mark.RELEASED, EntryId(self._writer, serial))
        for entry, at in self._claims.items():
            yield codec.claim(entry, at)
        for entry in self._ended:
            yield codec.ending(Mark.SETTLED, entry)
        for digest, begun in self._trials.items():
            for at in begun:
                yield codec.trial(Mark.TRIAL, digest, at)

    def _forget_ended(self) -> None:
        """Forget what was settled for writers of whom there is nothing left."""
        self._ended = {entry for entry in self._ended if self._shelf.index.knows(entry.writer)}

    def _keep_house(self) -> None:
        """Let go of entries that nobody asks for, and remove what dead processes left too long ago.

        Moments are on the monotonic clock: the other one may be set while answers are awaited.
        """
        now, keep = time.monotonic(), self._config.keep
        for serial, opened in list(self._open.items()):
            entry = EntryId(self._writer, serial)
            if opened.since < now - keep:
                self.withdrawn(entry)
            elif opened.record is not None and opened.answered < now - ABANDONED:
                self.released(entry)
        if any(opened.released for opened in self._open.values()):
            self._refresh()
            for serial in [serial for serial in self._open if self._shelf.index.ended(EntryId(self._writer, serial))]:
                self.settled(EntryId(self._writer, serial))
        self._shelf.clean(Bounds(keep, MAX_DEAD, MAX_DEAD_FILES * self._config.size))

    def _worded(self, error: OSError) -> str:
        return worded(error, self._directory, self._config.size)
