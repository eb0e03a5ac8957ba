"""All journal files of a directory, read as they grow, and who of their writers is dead.

A file that has a name and no lock (flock(2)) belongs to a dead writer. Files are read, not mapped:
who reads past the end of a mapping dies of it. Reading is incremental, each writer's files in their
order and to their ends. What a dead writer left open stays until this process has seen it dead for as long as
is asked, and its file shrinks to just that where there is too much. What the records
mean is for `core.journal.index`, what to do about it for `keeper`.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mailq.core.journal.index import JournalIndex
from mailq.core.journal.records import HEADER_SIZE, MAX_RECORD, Header, Tail, decode, decode_header, tail
from mailq.edges.journal.segment import DRAFT, ENDING, leave, unreadable

LOOK = 4096
"""Octets read to see whether there is something new."""

CHUNK = 4 * MAX_RECORD
"""Octets read at once where there is."""

SETTLING = 0.1
"""Seconds after which a change of a directory is sure to change its time stamp again; it has the kernel's ticks."""

STRAY = 60.0
"""Seconds after which a file that was never finished has nobody who will."""


@dataclass(frozen=True, slots=True)
class ReaderBounds:
    """What dead writers may leave: for how many seconds, how many of them with nothing open, in how many octets."""

    keep: float
    writers: int
    octets: int


class _Reader:
    """Any file of the directory, and how far it was read."""

    __slots__ = ("_descriptor", "header", "offset", "over", "path", "size", "tail")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.header: Header | None = None
        self.offset = 0
        self.over = False
        self.size = 0
        self.tail = Tail.CLEAN

    @property
    def descriptor(self) -> int:
        """The open file."""
        assert self._descriptor is not None
        return self._descriptor

    @property
    def takes(self) -> int:
        """Octets on the disk of a dead writer's file; zero: it says nothing."""
        said = max(0, self.offset - HEADER_SIZE)
        return self.size if said and self.tail is Tail.CORRUPT else said

    def abandoned(self) -> bool:
        """Tell whether the writer is dead."""
        try:
            # Shared, so that those who look do not take each other for the writer.
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            return os.fstat(self.descriptor).st_nlink > 0  # a writer that lives removes a file before it unlocks it
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def read(self, index: JournalIndex) -> None:
        """Apply what is new. Reading goes on later where a record is being written."""
        assert self.header is not None
        if not self.offset:
            index.begin(self.header)
            self.offset = HEADER_SIZE
        size = LOOK
        while True:
            data = os.pread(self.descriptor, size, self.offset)
            bodies, used = decode(data)
            if bodies:
                index.apply(self.header.writer, bodies)
                self.offset += used
            ahead = data[used : used + 4]  # shorter where what was read ends between two records, or in a length
            if len(data) < size or (len(ahead) == 4 and not any(ahead)) or (size == CHUNK and not used):
                return
            size = CHUNK

    def finish(self) -> None:
        """Note that no more is to come, and what stands where it would."""
        self.over = True
        self.tail = tail(os.pread(self.descriptor, CHUNK, self.offset))

    def shorten(self) -> None:
        """Give back the room that was reserved behind what a dead writer said, unless there is damage to look at."""
        if self.tail is not Tail.CORRUPT and self.size > self.offset:
            os.truncate(self.path, self.offset)
            self.size = self.offset

    def close(self) -> None:
        """Close the file: there may be more that the dead left than a process may have open."""
        if self._descriptor is not None:
            self.size = os.fstat(self._descriptor).st_size
            os.close(self._descriptor)
            self._descriptor = None


class SegmentReader:
    """All files of the directory, and the index of what they say."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = JournalIndex()
        self.corrupt: list[Path] = []
        self._readers: dict[str, _Reader] = {}
        self._seen: dict[bytes, float] = {}
        self._listed = (0, 0.0)
        self._files: dict[bytes, list[_Reader]] | None = None

    def refresh(self, *, read: bool = True, about: bytes | None = None) -> None:
        """Read what is new in all files, and see who is dead: only of those that matter where it is `about` one digest.

        Without `read`, see only which files there are.

        Raises:
            OSError: a file or the directory cannot be read.
        """
        self.index.at(time.monotonic())
        gone = self._list()
        begun = self._begun()
        self._drop(gone)
        if not read:
            return
        for writer, readers in begun.items():
            self._read(writer, readers, ask=about is None)
        for writer in self.index.involved(about) if about is not None else ():
            self._read(writer, begun[writer], ask=True)

    def _read(self, writer: bytes, readers: Sequence[_Reader], *, ask: bool) -> None:
        """Read what is new of a writer; `ask` whether it lives."""
        # First who is dead, then what they said: so all of it is read.
        known = writer in self._seen
        if known and readers[-1].over:
            return
        dead = known or (ask and readers[-1].abandoned())
        for reader in readers:
            if not reader.over:
                reader.read(self.index)
                if dead or reader is not readers[-1]:
                    self._finish(reader)
            if dead:
                reader.close()
        if dead:
            self.index.died(writer)
            self._seen.setdefault(writer, time.monotonic())

    def clean(self, bounds: ReaderBounds) -> None:
        """Remove of what dead writers left what is too old, or too much; of what they left open only what is too old.

        Raises:
            OSError: a file or the directory cannot be read.
        """
        self.refresh()
        for path in self._strays(time.time() - bounds.keep):
            with suppress(OSError):
                path.unlink()
        files, dead = self._begun(), sorted(self._seen, key=self.index.last, reverse=True)
        octets = self._clean_last(dead, files, bounds)
        for writer in dead:
            for reader in reversed(files[writer][:-1]):  # what was open there, the last one says again
                octets += reader.takes
                _trim(reader, remove=octets > bounds.octets)

    def _clean_last(self, dead: list[bytes], files: dict[bytes, list[_Reader]], bounds: ReaderBounds) -> int:
        """See to the last file of each dead writer, the latest first, and return the octets of all."""
        octets, closed, over = 0, 0, time.monotonic() - bounds.keep
        for writer in dead:
            reader, left = files[writer][-1], self.index.open(writer)
            octets += reader.takes
            closed += not left
            full = octets > bounds.octets
            if self._seen[writer] < over or not (left or (reader.takes and closed <= bounds.writers and not full)):
                for each in files[writer]:  # the last one last: an older one says of too much that it is open
                    _trim(each, remove=True)
            elif full:
                octets -= _condense(reader, left)
            else:
                _trim(reader, remove=False)
        return octets

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _strays(self, oldest: float) -> list[Path]:
        """Return the files of nobody that say nothing, and old ones that say what cannot be read."""
        strays = []
        for reader in self._readers.values():
            if reader.header is None and reader.abandoned():
                blank = not any(os.pread(reader.descriptor, HEADER_SIZE, 0))
                if blank or os.fstat(reader.descriptor).st_mtime < oldest:
                    strays.append(reader.path)
                elif not reader.over:
                    reader.over = True
                    self.corrupt.append(reader.path)
        for draft in self.directory.glob("*" + DRAFT):
            with suppress(FileNotFoundError):
                if draft.stat().st_mtime < time.time() - STRAY:
                    strays.append(draft)
        return strays

    def _begun(self) -> dict[bytes, list[_Reader]]:
        """Return the files that say something by their writers, each writer's in order."""
        if self._files is not None:
            return self._files
        begun: list[tuple[int, bytes, _Reader]] = []
        for reader in self._readers.values():
            if reader.header is None:
                reader.header = decode_header(os.pread(reader.descriptor, HEADER_SIZE, 0))
            if reader.header is not None:
                begun.append((reader.header.number, reader.header.writer, reader))
        files: dict[bytes, list[_Reader]] = {}
        for _, writer, reader in sorted(begun, key=lambda each: each[:2]):
            files.setdefault(writer, []).append(reader)
        if len(begun) == len(self._readers):
            self._files = files  # until there is another file
        return files

    def _finish(self, reader: _Reader) -> None:
        if not reader.over:
            reader.finish()
            if reader.tail is Tail.CORRUPT:
                self.corrupt.append(reader.path)

    def _list(self) -> list[_Reader]:
        """Open files that are new, and return those that are gone."""
        changed = self.directory.stat().st_mtime_ns
        if changed == self._listed[0] and self._listed[1] - changed / 1e9 > SETTLING:
            return []
        listed, gone = (changed, time.time()), set[str]()
        while True:
            # A file goes only when the one that follows it is there; but who lists meanwhile may see neither.
            names, before = self._names(), gone
            gone = self._readers.keys() - names
            if gone == before and self._open(names):
                break
        self._listed, self._files = listed, None
        return [self._readers.pop(name) for name in gone]

    def _names(self) -> set[str]:
        with os.scandir(self.directory) as found:
            return {each.name for each in found if each.name.endswith(ENDING) and each.is_file(follow_symlinks=False)}

    def _open(self, names: set[str]) -> bool:
        """Open those files that are not open, and tell whether all were there still."""
        there = True
        for name in sorted(names - self._readers.keys()):
            try:
                self._readers[name] = _Reader(self.directory / name)
            except FileNotFoundError:
                there = False
        return there

    def _drop(self, gone: list[_Reader]) -> None:
        """Read files that are gone to their ends, and forget writers that have no more."""
        left = {reader.header.writer for reader in self._readers.values() if reader.header}
        for reader in sorted(gone, key=lambda each: each.header.number if each.header else 0):
            if reader.header and reader.offset and not reader.over:
                reader.read(self.index)
            reader.close()
            if reader.header and reader.header.writer not in left and self.index.knows(reader.header.writer):
                self.index.forget(reader.header.writer)
                self._seen.pop(reader.header.writer, None)


def refusal(directory: Path) -> str | None:
    """Return why a process could not look jobs up in the journals of a directory; None too where it is missing."""
    reader = SegmentReader(directory)
    try:
        reader.refresh(read=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        return unreadable(error, directory)
    finally:
        reader.close()
    return None


def _trim(reader: _Reader, *, remove: bool) -> None:
    """Remove a file that a dead writer left, or what it does not need of it; where that may not be, it stays."""
    with suppress(OSError):
        if remove:
            reader.path.unlink()
        else:
            reader.shorten()


def _condense(reader: _Reader, left: Sequence[bytes]) -> int:
    """Leave of a dead writer's last file what is open, if that is much less, and return how many octets that spares."""
    spared = reader.takes - sum(map(len, left))
    if reader.header is None or spared < max(LOOK, reader.takes // 2):
        return 0
    header = replace(reader.header, number=reader.header.number + 2)  # one more was perhaps reserved
    path = reader.path.with_name(f"{reader.path.stem.rpartition('-')[0]}-{header.number}{ENDING}")
    try:
        leave(path, header, left)
        reader.path.unlink()
    except OSError:  # another process does the same, or the disk is full
        return 0
    return spared
