"""All journal files of a directory, read as they grow, and who of their writers is dead.

A file that has a name and no lock (flock(2)) belongs to a dead writer. Files are read, not mapped:
who reads past the end of a mapping dies of it. Reading is incremental, each writer's files in their
order and to their ends; what the records mean is for `core.standing`, what to do about it for `keeper`.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from mailq.core.journal import HEADER_SIZE, MAX_RECORD, Header, Tail, decode, decode_header, tail
from mailq.core.standing import Index
from mailq.edges.journal.volume import DRAFT, ENDING

LOOK = 4096
"""Octets read to see whether there is something new."""

CHUNK = 4 * MAX_RECORD
"""Octets read at once where there is."""

SETTLING = 0.1
"""Seconds after which a change of a directory is sure to change its time stamp again; it has the kernel's ticks."""

STRAY = 60.0
"""Seconds after which a file that was never finished has nobody who will."""


class _Reader:
    """Any file of the directory, and how far it was read."""

    __slots__ = ("descriptor", "header", "offset", "over", "path", "tail")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.header: Header | None = None
        self.offset = 0
        self.over = False
        self.tail = Tail.CLEAN

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

    def read(self, index: Index) -> None:
        """Apply what is new. Reading goes on later where a record is being written."""
        assert self.header is not None
        if not self.offset:
            index.begin(self.header)
            self.offset = HEADER_SIZE
        size = LOOK
        while True:
            data = os.pread(self.descriptor, size, self.offset)
            bodies, used = decode(data)
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


class Shelf:
    """All files of the directory, and the index of what they say."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = Index()
        self.corrupt: list[Path] = []
        self._readers: dict[str, _Reader] = {}
        self._listed = (0, 0.0)

    def refresh(self, *, only_dead: bool = False) -> None:
        """Read what is new in all files, or in those of writers that died.

        Raises:
            OSError: a file or the directory cannot be read.
        """
        self.index.at(time.monotonic())
        gone = self._list()
        begun = self._begun()
        self._drop(gone)
        newest = {reader.header.writer: reader for reader in begun if reader.header}
        for writer, reader in newest.items():
            # First who is dead, then what they said: so all of it is read.
            if self.index.knows(writer) and not self.index.alive(writer):
                continue
            dead = reader.abandoned()
            if dead or not only_dead:
                self._read(writer, begun, newest)
            if dead:
                self.index.died(writer)
                for each in begun:
                    if each.header and each.header.writer == writer:
                        self._finish(each)

    def clean(self, oldest: float, most: int, octets: int) -> None:
        """Remove what dead writers left before `oldest` (since 1970), and of the rest all but the latest.

        Raises:
            OSError: a file or the directory cannot be read or changed.
        """
        self.refresh(only_dead=True)
        for path in self._strays(oldest):
            path.unlink(missing_ok=True)
        dead: dict[bytes, list[_Reader]] = {}
        for reader in self._readers.values():
            if reader.header and self.index.knows(reader.header.writer) and not self.index.alive(reader.header.writer):
                dead.setdefault(reader.header.writer, []).append(reader)
        for rank, writer in enumerate(sorted(dead, key=self.index.last, reverse=True)):
            said = sum(reader.offset - HEADER_SIZE for reader in dead[writer])
            octets -= said
            for reader in dead[writer]:
                if not said or self.index.last(writer) < oldest or rank >= most or octets < 0:
                    reader.path.unlink(missing_ok=True)
                elif reader.tail is not Tail.CORRUPT and os.fstat(reader.descriptor).st_size > reader.offset:
                    with suppress(FileNotFoundError):
                        os.truncate(reader.path, reader.offset)

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers.values():
            os.close(reader.descriptor)
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

    def _begun(self) -> list[_Reader]:
        """Return the files that say something, each writer's in order."""
        begun: list[tuple[bytes, int, _Reader]] = []
        for reader in self._readers.values():
            if reader.header is None:
                reader.header = decode_header(os.pread(reader.descriptor, HEADER_SIZE, 0))
            if reader.header is not None:
                begun.append((reader.header.writer, reader.header.number, reader))
        return [reader for _, _, reader in sorted(begun, key=lambda each: each[:2])]

    def _read(self, writer: bytes, begun: list[_Reader], newest: dict[bytes, _Reader]) -> None:
        for reader in begun:
            if reader.header and reader.header.writer == writer and not reader.over:
                reader.read(self.index)
                if reader is not newest[writer]:
                    self._finish(reader)

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
        listed = (changed, time.time())
        with os.scandir(self.directory) as found:
            names = {each.name for each in found if each.name.endswith(ENDING) and each.is_file(follow_symlinks=False)}
        for name in names - self._readers.keys():
            with suppress(FileNotFoundError):
                self._readers[name] = _Reader(self.directory / name)
        self._listed = listed
        return [self._readers.pop(name) for name in self._readers.keys() - names]

    def _drop(self, gone: list[_Reader]) -> None:
        """Read files that are gone to their ends, and forget writers that have no more."""
        left = {reader.header.writer for reader in self._readers.values() if reader.header}
        for reader in sorted(gone, key=lambda each: each.header.number if each.header else 0):
            if reader.header and reader.offset and not reader.over:
                reader.read(self.index)
            os.close(reader.descriptor)
            if reader.header and reader.header.writer not in left and self.index.knows(reader.header.writer):
                self.index.forget(reader.header.writer)
