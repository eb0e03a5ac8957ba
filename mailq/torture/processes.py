"""The worker's processes as the kernel sees them (Linux's /proc): which are ours, and who holds a connection.

Ours is what has the run's mark in its environment; nothing else is ever signalled.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

MARK = "MAILQ_TORTURE_MARK"
"""Environment variable that every process of a run inherits."""

_PROC = Path("/proc")


class Processes:
    """All living processes that carry a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._needle = f"{MARK}={mark}".encode()

    def alive(self) -> dict[int, list[bytes]]:
        """Return the process ids with their command lines; this process is not among them."""
        found = {}
        for entry in _PROC.iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                if self._needle in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")
        return found

    def workers(self) -> list[int]:
        """Return the processes that deliver: a supervisor's children, or a `mailq run` of one process."""
        return sorted(
            pid for pid, words in self.alive().items() if b"--child" in words or words[-3:-1] == [b"-p", b"1"]
        )

    def owner(self, port: int) -> int | None:
        """Return the worker that has a connection from this port of its own, None if there is none any more."""
        sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
        for pid in self.workers() if sockets else ():
            with suppress(OSError):
                for descriptor in (_PROC / str(pid) / "fd").iterdir():
                    with suppress(OSError):
                        if str(descriptor.readlink()) in sockets:
                            return pid
        return None

    def kill(self) -> None:
        """End what is left of all of them."""
        for pid in self.alive():
            send(pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; tell whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    with suppress(OSError):
        return [int(each) for each in (_PROC / str(pid) / "task" / str(pid) / "children").read_text("ascii").split()]
    return []


def _inodes(port: int) -> list[str]:
    """Return the sockets of connections that have this local port."""
    wanted = f":{port:04X}"
    lines = (_PROC / "net" / "tcp").read_text("ascii").splitlines()[1:]
    rows = [line.split() for line in lines]
    return [row[9] for row in rows if row[1].endswith(wanted) and row[9] != "0"]
