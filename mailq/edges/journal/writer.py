"""Where a process writes: one file after the other, with room for whatever was promised.

Room is asked for before something is begun, and kept for what has to follow, so that this cannot fail. When a
file is full the next one begins with all that is still open, which the `keeper` yields; the one before goes when
the one after is there. What cannot be had is the `trouble`, and is tried again.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mailq.config.journal import JournalConfig
from mailq.core.journal.records import HEADER_SIZE, Header, JournalError
from mailq.edges.journal.segment import ENDING, Segment, flush_directory, worded

FULL = 0.8
"""The share of a file, used or promised, from which on the next one is reserved."""


class SegmentWriter:
    """The files of one writer; `index` names the process to operators, `carried` what a new file begins with."""

    def __init__(
        self, directory: Path, config: JournalConfig, index: int, writer: bytes, carried: Callable[[], Iterable[bytes]]
    ) -> None:
        self.trouble: str | None = None
        self.promised = 0
        self.octets = 0
        self.records = 0
        self._directory = directory
        self._size = config.size
        self._waits = config.sync == "always"
        self._limit = config.size
        self._index = index
        self._writer = writer
        self._carried = carried
        self._number = 0
        self._current: Segment | None = None
        self._spare: Segment | None = None
        self._previous: Segment | None = None

    @property
    def ready(self) -> bool:
        """Tell whether there is a file to write to."""
        return self._current is not None

    def room(self, needed: int) -> None:
        """See to it that there is room for so many octets beside what was promised.

        Raises:
            JournalError: there is none.
        """
        segment = self._current
        if segment is not None and segment.offset + self.promised + needed <= self._limit:
            return
        if self.trouble is not None and (self._spare is None or not self._limit):
            raise JournalError(self.trouble)
        carried = list(self._carried())
        if HEADER_SIZE + sum(map(len, carried)) + self.promised + needed > self._size:
            raise JournalError("so many messages at once are too many for journal.size; raise it")
        self._switch(carried)

    def write(self, record: bytes, promised: int = 0) -> None:
        """Write a record for which there is room; `promised` octets follow it, or were kept for it if negative."""
        segment = self._current
        if segment is None:
            return
        segment.append(record)
        self.promised += promised
        self.octets += len(record)
        self.records += 1

    def flush(self, octets: int) -> None:
        """Wait until the last so many octets are on the disk, if that is asked for.

        Raises:
            JournalError: they are not.
        """
        if not self._waits or self._current is None:
            return
        try:
            self._current.flush(self._current.offset - octets)
        except OSError as error:
            raise self._failed(error) from error

    def housekeep(self) -> None:
        """Reserve the next file early, and try again what failed."""
        try:
            self._prepare()
            self.trouble, self._limit = None, self._size
        except JournalError:
            pass  # it is the trouble
        except OSError as error:
            self._failed(error)
            self._limit = 0 if error.errno == errno.EROFS else self._limit
        if self._current is not None:
            self._current.give_up_pages()

    def close(self, *, remove: bool) -> None:
        """Leave the current file to others, or nothing."""
        for segment in (self._previous, self._spare):
            if segment is not None:
                segment.close(remove=True)
        if self._current is not None:
            self._current.close(remove=remove)
        self._current = self._spare = self._previous = None
        self.trouble = "the journal is closed"

    def _prepare(self) -> None:
        if self._spare is not None and self._spare.removed:
            self._spare.close(remove=False)
            self._spare = None
        if self._current is None or self._current.removed:
            self._switch(list(self._carried()))
        elif os.statvfs(self._directory).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif self._spare is None and self._current.offset + self.promised > FULL * self._size:
            self._spare = self._reserve()

    def _switch(self, carried: list[bytes]) -> None:
        """Go on in a new file, which begins with what is carried over."""
        segment = self._spare or self._reserve()
        segment.begin(Header(self._writer, self._number, int(time.time())), carried)
        self._previous, self._current, self._spare = self._current, segment, None
        if self._waits:
            with suppress(OSError):  # the next record waits for it once more
                segment.flush(0)

    def _reserve(self) -> Segment:
        """Return a new file; the one before the current one goes."""
        if self._previous is not None:
            self._previous.close(remove=True)
            self._previous = None
        number = self._number + 1
        name = f"{self._index}-{self._writer.hex()}-{number}{ENDING}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            segment = Segment.reserve(self._directory / name, self._size)
        except OSError as error:
            raise self._failed(error) from error
        self._number = number
        if self._waits:
            with suppress(OSError):  # what is written there will tell
                flush_directory(self._directory)
        return segment

    def _failed(self, error: OSError) -> JournalError:
        self.trouble = worded(error, self._directory, self._size)
        return JournalError(self.trouble)
