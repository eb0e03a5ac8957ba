"""The disk that the journals stand on, which can be filled: nothing more may be made there until it is freed.

Where it may be mounted, which needs root, it is a small file system in memory, in a mount namespace of this thread
(`unshare`(2), CLONE_NEWNS) that its children inherit: nobody else sees it, and it is gone with the last of them. Other
threads do not see it either, so it is reached by a descriptor and never by its path. Elsewhere it is a plain
directory that its owner may not write to while it is full; root writes to that too, and so has none to fill.
"""

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SIZE = 128 * 1024 * 1024
"""Octets: room for the journals of all processes that live, and of some hundred dead ones."""

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_FILLER = "filler"


@dataclass(frozen=True, slots=True)
class Disk:
    """A directory for journals, open as `descriptor`; `mounted` if its disk is its own."""

    directory: Path
    descriptor: int
    mounted: bool

    @property
    def fills(self) -> bool:
        """Tell whether it can be filled."""
        return self.mounted or os.geteuid() != 0

    def fill(self) -> None:
        """Leave no room for another file."""
        if not self.mounted:
            os.fchmod(self.descriptor, 0o500)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        filler = os.open(_FILLER, flags, 0o600, dir_fd=self.descriptor)
        try:
            while free := _free(filler):  # others may give some back meanwhile
                with suppress(OSError):
                    os.posix_fallocate(filler, os.fstat(filler).st_size, free)
        finally:
            os.close(filler)

    def free(self) -> None:
        """Give the room back."""
        if not self.mounted:
            os.fchmod(self.descriptor, 0o700)
            return
        with suppress(FileNotFoundError):
            os.unlink(_FILLER, dir_fd=self.descriptor)

    def close(self) -> None:
        """Give all of it back that this process holds."""
        self.free()
        os.close(self.descriptor)


def make(directory: Path) -> Disk:
    """Return a new directory, on a disk of its own if that may be had.

    Raises:
        OSError: it cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={SIZE},mode=700".encode()
    mounted = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) == 0
        and libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", ctypes.c_ulong(0), options) == 0
    )
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if mounted and _size(descriptor) != SIZE:
        os.close(descriptor)
        raise OSError(errno.EIO, "not on the disk that was mounted there", str(directory))
    return Disk(directory, descriptor, mounted)


def _size(descriptor: int) -> int:
    disk = os.fstatvfs(descriptor)
    return disk.f_blocks * disk.f_frsize


def _free(descriptor: int) -> int:
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize
