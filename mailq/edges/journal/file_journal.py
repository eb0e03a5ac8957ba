"""The `Journal` port of one process: what it writes, what it looks up, and what it keeps.

Nothing is locked against others: who wants a job writes that first and then looks whether another
has written the same. Of two who meet at least one sees the other, both may give way, and a process that
stands still stops nobody. Room for every answer is kept from the hand-over on, so that the answer of a
message that is out cannot fail to be written (`pen`). Figures of the bounds are below; the flow decides what a
standing means for a job.
"""

import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mailq.config.journal import JournalConfig
from mailq.core.journal import records as codec
from mailq.core.journal.records import (
    CLAIM_SIZE,
    END_SIZE,
    INTENT_SIZE,
    MAX_ANSWER,
    MAX_RECORD,
    MOST_PUBLISHED,
    TRIAL_SIZE,
    Entry,
    EntryId,
    EntryState,
    JobKey,
    JournalError,
    JournalStats,
    Mark,
)
from mailq.core.smtp.failure import Cause, Delayed
from mailq.edges.journal.reader import ReaderBounds, SegmentReader
from mailq.edges.journal.segment import unreadable
from mailq.edges.journal.writer import SegmentWriter

ENDS = 3 * END_SIZE
"""Octets kept for what may follow an answer: that it is published, its release, its end."""

ABANDONED = 120.0
"""Seconds after which an answer that was not settled is left to whoever gets its job: its connection is lost."""

ASKED = 600.0
"""Seconds after a look-up for which all that is written is read meanwhile: 4 µs a job of the host, in each process."""

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
    published: bool = False
    released: bool = False

    @property
    def promised(self) -> int:
        """Octets that are kept for what is still to be written of it."""
        return (MAX_RECORD if self.record is None else 0) + ENDS - END_SIZE * (self.published + self.released)


class FileJournal:
    """A journal in a directory that the processes of one host share; `index` names the process to operators."""

    def __init__(self, directory: str, config: JournalConfig, index: int) -> None:
        self._directory = Path(directory)
        self._config = config
        self._writer = secrets.token_bytes(8)
        self._serial = 0
        self._told = 0
        self._segment_writer = SegmentWriter(self._directory, config, index, self._writer, self._carried)
        self._reader = SegmentReader(self._directory)
        self._open: dict[int, _Open] = {}
        self._claims: dict[EntryId, int] = {}
        self._ended: set[EntryId] = set()
        self._trials: dict[bytes, list[int]] = {}
        self._blind: str | None = None
        self._closed = False
        self._marked = False
        self._kept_house = self._asked = float("-inf")
        self.housekeep()

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:
        """Record an intent and promise room for the rest; a contested one gives way to any other."""
        self._segment_writer.room(INTENT_SIZE + MAX_RECORD + ENDS)
        self._serial = serial = self._serial + 1
        at = int(time.time())
        self._segment_writer.write(codec.intent(serial, key, at), MAX_RECORD + ENDS)
        self._open[serial] = _Open(key, at, time.monotonic())
        entry = EntryId(self._writer, serial)
        try:
            self._segment_writer.flush(INTENT_SIZE)
        except JournalError:
            self.withdrawn(entry)
            raise
        if contested:
            self._give_way(key, entry)
        return entry

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Record an answer in the room that was promised for it."""
        opened = self._open.get(entry.serial)
        if opened is None or opened.record is not None or not self._segment_writer.ready:
            return
        written = codec.answer(entry.serial, record if len(record) <= MAX_ANSWER else b"")
        self._segment_writer.write(written, -MAX_RECORD)
        opened.record, opened.answered = record if len(record) <= MAX_ANSWER else b"", time.monotonic()
        with suppress(JournalError):  # it is the trouble
            self._segment_writer.flush(len(written))

    def withdrawn(self, entry: EntryId) -> None:
        """Record that nothing was handed over; of an entry that was taken, that it is not settled here."""
        if entry.writer != self._writer:
            self.released(entry)
        else:
            self._end(Mark.WITHDRAWN, entry)

    def published(self, entries: Collection[EntryId]) -> None:
        """Record that what came of own entries is published; one that was taken is claimed until it is settled."""
        serials = []
        for entry in entries:
            opened = self._open.get(entry.serial) if entry.writer == self._writer else None
            if opened is not None and opened.record is not None and not opened.published:
                opened.published = True
                serials.append(entry.serial)
        for start in range(0, len(serials), MOST_PUBLISHED):
            some = serials[start : start + MOST_PUBLISHED]
            self._segment_writer.write(codec.published(some), -END_SIZE * len(some))

    def released(self, entry: EntryId) -> None:
        """Leave an answered entry to others, and one that was taken."""
        claimed = self._claims.pop(entry, None) is not None
        opened = self._open.get(entry.serial) if entry.writer == self._writer else None
        left = opened is not None and opened.record is not None and not opened.released
        if not (claimed or left):
            return
        self._segment_writer.write(codec.ending(Mark.RELEASED, entry), -END_SIZE * (claimed + left))
        if opened is not None:
            opened.released = True

    def settled(self, entry: EntryId) -> None:
        """Record the end of an entry, one's own or one that was taken."""
        claimed = self._claims.pop(entry, None) is not None
        if claimed:
            self._segment_writer.promised -= END_SIZE
        if entry.writer == self._writer:
            self._end(Mark.SETTLED, entry)
        elif claimed:
            self._segment_writer.write(codec.ending(Mark.SETTLED, entry))
            self._ended.add(entry)

    def take(self, key: JobKey) -> Entry:
        """Look a job up, and claim what is found."""
        self._asked = time.monotonic()
        self._refresh(about=key.digest)
        found = self._reader.index.state(key)
        if found.id is None:
            return found
        self._segment_writer.room(CLAIM_SIZE + END_SIZE)
        self._claims[found.id] = at = int(time.time())
        self._segment_writer.write(codec.claim(found.id, at), END_SIZE)
        try:
            self._refresh(about=key.digest)
            rivals = self._reader.index.claimed(found.id, but=self._writer)
        except JournalError:
            self.released(found.id)
            raise
        if rivals:
            self.released(found.id)
            return Entry(EntryState.UNDERWAY)
        return found

    def trial(self, digest: bytes) -> None:
        """Record a trial and promise room for its end."""
        self._segment_writer.room(2 * TRIAL_SIZE)
        at = int(time.time())
        self._segment_writer.write(codec.trial(Mark.TRIAL, digest, at), TRIAL_SIZE)
        self._trials.setdefault(digest, []).append(at)

    def tried(self, digest: bytes) -> None:
        """Record that a trial was survived."""
        begun = self._trials.get(digest)
        if not begun:
            return
        at = begun.pop()
        if not begun:
            del self._trials[digest]
        self._segment_writer.write(codec.trial(Mark.TRIED, digest, at), -TRIAL_SIZE)

    def trials(self, digest: bytes) -> int:
        """Count the processes that died in a trial."""
        self._refresh()
        return self._reader.index.trials(digest)

    def problem(self) -> str | None:
        """Return why nothing can be recorded, or soon will not be, or why no job can be looked up."""
        return self._segment_writer.trouble or self._blind

    def housekeep(self) -> tuple[str, ...]:
        """Reserve the next file early, read what is new, try again what failed, and now and then keep house."""
        if self._closed:
            return ()
        self._segment_writer.housekeep()
        if self._segment_writer.ready:
            with suppress(JournalError):  # it is the trouble
                # Where jobs come again: what others settled is to be known when their files are gone.
                self._refresh(read=time.monotonic() - self._asked < ASKED)
            if time.monotonic() - self._kept_house >= HOUSEKEEPING:
                self._kept_house = time.monotonic()
                with suppress(OSError, JournalError):  # it is done again
                    self._keep_house()
        corrupt = self._reader.corrupt[self._told :]
        self._told += len(corrupt)
        return tuple(f"journal file {path} is damaged: what follows the damage is not read" for path in corrupt)

    def stats(self) -> JournalStats:
        """Return what was written and found."""
        return JournalStats(self._segment_writer.octets, self._segment_writer.records, len(self._reader.corrupt))

    def close(self) -> None:
        """Leave a file only if others may need what it says: a copy of a settled job may still come."""
        for digest in [digest for digest, begun in self._trials.items() for _ in begun]:
            self.tried(digest)
        self._forget_ended()
        self._segment_writer.close(remove=not (self._open or self._ended or self._marked))
        self._closed = True
        self._reader.close()

    def _end(self, mark: int, entry: EntryId) -> None:
        opened = self._open.pop(entry.serial, None)
        if opened is None:
            return
        self._segment_writer.write(codec.ending(mark, entry), -opened.promised)
        self._marked = self._marked or (mark == Mark.SETTLED and opened.key.marked)

    def _give_way(self, key: JobKey, entry: EntryId) -> None:
        """Withdraw an intent if another process has handed the job over, or is about to.

        The intent is written before the look, with system calls between them: of two who do so, both cannot miss.
        """
        try:
            self._refresh(about=key.digest)
        except JournalError:
            self.withdrawn(entry)
            raise
        reason = self._reader.index.rival(key, entry)
        if reason is not None:
            self.withdrawn(entry)
            least, spread = APART
            raise Delayed(least + spread * secrets.randbelow(1000) / 1000, Cause.ELSEWHERE, reason)

    def _refresh(self, *, read: bool = True, about: bytes | None = None) -> None:
        if not self._segment_writer.ready:
            raise JournalError(self._segment_writer.trouble)
        try:
            self._reader.refresh(read=read, about=about)
        except OSError as error:
            self._blind = unreadable(error, self._directory)
            raise JournalError(self._blind) from error
        self._blind = None

    def _carried(self) -> Iterator[bytes]:
        """Yield the records of all that is open, for the next file."""
        self._forget_ended()
        for serial, opened in self._open.items():
            yield codec.intent(serial, opened.key, opened.at)
            if opened.record is not None:
                yield codec.answer(serial, opened.record)
            if opened.published:
                yield codec.published([serial])
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
        self._ended = {entry for entry in self._ended if self._reader.index.knows(entry.writer)}

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
            for serial in [serial for serial in self._open if self._reader.index.ended(EntryId(self._writer, serial))]:
                self.settled(EntryId(self._writer, serial))
        self._reader.clean(ReaderBounds(keep, MAX_DEAD, MAX_DEAD_FILES * self._config.size))
