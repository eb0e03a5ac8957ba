"""The file of the limits: found by its name, made by whoever is first, one column for each process.

A file counts as long as a living process has it. Any other is replaced by a new one (a draft and rename(2)):
its moments may be of a clock that began anew with the host, it may be damaged or of another version, and who changed
the limits and started everything again wants no pace of before. One of another version that is in use
is left to its processes. Who opens the file has the directory locked (flock(2)) meanwhile, so that starters at once
end up with the same one.

A process holds a record lock on a byte for its column, as long as it lives: it ends with its owner, however that ends,
and is not inherited. So a column that has a mark and no lock is of a dead process, and whoever notices clears
it. To take a column is to write it full of zeros: this clears it, and its blocks are reserved before anything is
stored through the mapping, where a full disk would be SIGBUS. What nobody has taken yet is a hole.

The mapping costs what the kernel writes back: of three megabytes, and half a one for each column, the pages
that were touched, every 30 s or so, and one fault for each page thereafter. Nothing waits for the disk.
"""

import errno
import fcntl
import mmap
import os
import secrets
import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

NAME = "limits"
"""The file, in the directory that the processes of a host share."""

COLUMNS = 256
"""Processes of a host at once, as many as one `mailq run` may have. Those that are not taken cost 512 KiB of
addresses each: no memory, no disk, and no time, since only what is below the last one in use is looked at."""

DIGEST = 16
MOMENTS = 4
"""Of each slot, 8 octets each: those of its pace (next, front, back), and the last at which it has something to say."""

_MAGIC = b"mailq-2\0"
_HEADER = struct.Struct("=8sI4x16s")
"""Version, slots, the key of the digests."""

_DIGESTS = _HEADER.size + 4 * (COLUMNS + 4)
"""Where they begin: behind a mark for each column and the number of columns to look at."""

_DRAFT = "limits.draft"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_REMEDIES = {
    errno.ENOSPC: "has no room on its disk; free some or set worker.journal_dir to another one",
    errno.EDQUOT: "is over the quota of its disk; raise it or set worker.journal_dir elsewhere",
    errno.EROFS: "is on a disk that is read-only; mount it writable or set worker.journal_dir to another one",
    errno.EACCES: "is not to be written by this user; change its owner or set worker.journal_dir elsewhere",
    errno.EPERM: "is not to be written by this user; change its owner or set worker.journal_dir elsewhere",
    errno.ELOOP: "is a symbolic link; remove it",
    errno.EBUSY: "is in use by processes of another version of mailq; end them or set worker.journal_dir elsewhere",
    errno.EUSERS: f"has {COLUMNS} processes already; run fewer or set worker.journal_dir of some elsewhere",
}


class LimitsFile:
    """The file, mapped, and the column of this process in it.

    A process must have it open once only: closing any descriptor of a file ends all locks that the process
    has on it (fcntl(2)).
    """

    def __init__(self, descriptor: int, column: int, slots: int) -> None:
        """Map the file behind a descriptor, which now belongs to this object."""
        self.descriptor, self.column, self.slots = descriptor, column, slots
        _, _, self.key = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        self.map = mmap.mmap(descriptor, _size(slots))
        self.digests = _DIGESTS
        moments = _DIGESTS + slots * DIGEST
        cells = moments + slots * MOMENTS * 8
        # Through memoryviews each store is one machine word; struct.pack_into would write zeros first.
        view = memoryview(self.map)
        words = view[_HEADER.size : _DIGESTS].cast("I")
        self._marks, self.top = words[:COLUMNS], words[COLUMNS : COLUMNS + 1]
        self.moments = view[moments:cells].cast("d")
        self.cells = view[cells:].cast("I")

    @classmethod
    def open(cls, directory: Path, slots: int) -> Self:
        """Return the file of a directory, a new one if there is none, with a column that nobody has.

        Raises:
            OSError: it cannot be had; see `worded`.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(home, fcntl.LOCK_EX)
            found = _found(home, slots)
            descriptor = _made(home, slots) if found is None else found
            try:
                file = cls(descriptor, _taken(descriptor, slots), slots)
            except OSError:
                os.close(descriptor)
                raise
            file._marks[file.column] = 1
            file.top[0] = 1 + max(column for column, mark in enumerate(file._marks) if mark)
        finally:
            os.close(home)
        return file

    @property
    def removed(self) -> bool:
        """Tell whether somebody removed the file: others cannot find it any more."""
        return os.fstat(self.descriptor).st_nlink == 0

    def bury(self) -> None:
        """Clear the columns of the dead."""
        for column, mark in enumerate(self._marks[: self.top[0]].tolist()):
            if mark and column != self.column and _lock(self.descriptor, self.slots + column, 1):
                self._clear(column)
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, self.slots + column)

    def close(self) -> None:
        """Give the column back and close the file."""
        self._clear(self.column)
        for view in (self._marks, self.top, self.moments, self.cells):
            view.release()
        self.map.close()
        os.close(self.descriptor)

    def _clear(self, column: int) -> None:
        first, cells = column * 2 * self.slots, 2 * self.slots
        self.cells[first : first + cells] = memoryview(bytes(4 * cells)).cast("I")
        self._marks[column] = 0


def worded(error: OSError, directory: Path) -> str:
    """Return what is wrong with the file of a directory, and the remedy."""
    other = f"cannot be used: {error.strerror}; remove it or set worker.journal_dir elsewhere"
    return f"table of limits {directory / NAME} {_REMEDIES.get(error.errno or 0, other)}"


def refusal(directory: Path, slots: int) -> str | None:
    """Return why a process could not share the file that a directory has; None too where none is there. Makes none."""
    try:
        home = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) else worded(error, directory)
    try:
        fcntl.flock(home, fcntl.LOCK_EX)
        descriptor = _found(home, slots)
    except OSError as error:
        return worded(error, directory)
    finally:
        os.close(home)
    if descriptor is not None:
        os.close(descriptor)
    return None


def _found(home: int, slots: int) -> int | None:
    """Open the file of a directory; None if there is none that a living process has."""
    try:
        descriptor = os.open(NAME, _FLAGS, dir_fd=home)
    except FileNotFoundError:
        return None
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        if _lock(descriptor, 0, 0):  # all of it: so nobody has a column
            return None
        header, size = os.pread(descriptor, _HEADER.size, 0), os.fstat(descriptor).st_size
        if size != _size(slots) or not header.startswith(_MAGIC + slots.to_bytes(4, sys.byteorder)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        undo.pop_all()
    return descriptor


def _made(home: int, slots: int) -> int:
    """Make a new file in a directory, whole before it has its name, and return its descriptor."""
    with suppress(FileNotFoundError):
        os.unlink(_DRAFT, dir_fd=home)
    descriptor = os.open(_DRAFT, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=home)
    try:
        # The key is secret: who could choose names that meet in one bucket could fill it.
        header = _HEADER.pack(_MAGIC, slots, secrets.token_bytes(16))
        _write(descriptor, header + bytes(_begin(slots) - len(header)), 0)
        os.ftruncate(descriptor, _size(slots))
        os.rename(_DRAFT, NAME, src_dir_fd=home, dst_dir_fd=home)
    except OSError:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(_DRAFT, dir_fd=home)
        raise
    return descriptor


def _taken(descriptor: int, slots: int) -> int:
    """Take the first column that no living process has, and reserve its room."""
    for column in range(COLUMNS):
        if _lock(descriptor, slots + column, 1):
            octets = 8 * slots
            _write(descriptor, bytes(octets), _begin(slots) + column * octets)
            return column
    raise OSError(errno.EUSERS, os.strerror(errno.EUSERS))


def _lock(descriptor: int, start: int, length: int) -> bool:
    """Take a record lock, if no other process has one there, and tell whether it is taken."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _write(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _begin(slots: int) -> int:
    """Return where the columns begin: of each the counts of all slots, and then the last refusals of all slots."""
    return _DIGESTS + slots * (DIGEST + MOMENTS * 8)


def _size(slots: int) -> int:
    return _begin(slots) + COLUMNS * slots * 8
