"""A journal file of one's own: reserved whole before anything is promised, locked for life, mapped.

To append is to copy memory: no system call, and the kernel has it when the process is gone. A file
is never used again, so that behind the last record are zeros. Whatever may fail does so when a
file is reserved, and `worded` says what helps. When a new one is due is for the `pen`.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from mailq.core.journal.records import HEADER_SIZE, Header, encode_header

ENDING = ".journal"
DRAFT = ".draft"

_REMEDIES = {
    errno.ENOSPC: "is full: no room for {size} octets; free some or set worker.journal_dir to another disk",
    errno.EDQUOT: "is over its quota: no room for {size} octets; raise it or set worker.journal_dir elsewhere",
    errno.EFBIG: "takes no file of {size} octets; lower journal.size or raise the limit of the process",
    errno.EROFS: "is read-only; mount it writable or set worker.journal_dir to another disk",
    errno.EACCES: "is not to be written by this user; change its owner or set worker.journal_dir elsewhere",
    errno.EPERM: "is not to be written by this user; change its owner or set worker.journal_dir elsewhere",
}


class Segment:
    """A file of one's own: reserved, locked and mapped."""

    __slots__ = ("_descriptor", "_given_up", "map", "offset", "path", "size")

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.offset = HEADER_SIZE
        self.map = mmap.mmap(descriptor, size)
        self._descriptor = descriptor
        self._given_up = 0

    @classmethod
    def reserve(cls, path: Path, size: int) -> Self:
        """Return a new file with all of its octets reserved on the disk.

        Raises:
            OSError: it cannot be had; nothing is left of it.
        """
        draft = path.with_suffix(DRAFT)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, size)
            segment = cls(path, descriptor, size)
            draft.rename(path)  # locked before it is seen
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                draft.unlink()
            raise
        return segment

    @property
    def removed(self) -> bool:
        """Tell whether somebody removed the file: others cannot read it any more."""
        return os.fstat(self._descriptor).st_nlink == 0

    def begin(self, header: Header, records: Iterable[bytes]) -> None:
        """Write what is carried over from the file before, and then the header that makes it count."""
        for record in records:
            self.append(record)
        self.map[:HEADER_SIZE] = encode_header(header)

    def append(self, record: bytes) -> None:
        """Write a record; there must be room for it."""
        end = self.offset + len(record)
        self.map[self.offset : end] = record
        self.offset = end

    def flush(self, start: int) -> None:
        """Wait until what was written from `start` on is on the disk.

        Raises:
            OSError: it is not.
        """
        start -= start % mmap.PAGESIZE
        self.map.flush(start, self.offset - start)

    def give_up_pages(self) -> None:
        """Take the pages that are full out of this process's memory; the kernel has them."""
        full = self.offset - self.offset % mmap.PAGESIZE
        if full > self._given_up:
            self.map.madvise(mmap.MADV_DONTNEED, self._given_up, full - self._given_up)
            self._given_up = full

    def close(self, *, remove: bool) -> None:
        """Unlock the file; if it is left to others, it is as short as what it says."""
        with suppress(OSError):
            if remove:
                self.path.unlink()  # before the lock goes: an unlocked file would mean death
        self.map.close()
        with suppress(OSError):
            if not remove:
                os.ftruncate(self._descriptor, self.offset)
        os.close(self._descriptor)


def leave(path: Path, header: Header, records: Iterable[bytes]) -> None:
    """Write a file of a writer that is dead, whole before it has its name; nobody locks it.

    Raises:
        OSError: it cannot be had, or there is one of that name; nothing is left of it.
    """
    draft = path.with_suffix(DRAFT)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_header(header) + b"".join(records))
            file.flush()
            os.fsync(descriptor)  # the file that it replaces may be on the disk
        path.hardlink_to(draft)
    finally:
        with suppress(OSError):
            draft.unlink()


def worded(error: OSError, directory: Path, size: int) -> str:
    """Return what is wrong with the directory, and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, f"cannot be used: {error.strerror}")
    return f"journal directory {directory} {remedy.format(size=size)}"


def unreadable(error: OSError, directory: Path) -> str:
    """Return which file or directory cannot be read, and the remedy."""
    path = Path(error.filename or directory)
    what = f"journal {'directory' if path == directory else 'file'} {path}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what} is not to be read by this user; change its owner, or remove it if its jobs may be sent again"
    return f"{what} cannot be read: {error.strerror}"


def flush_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
