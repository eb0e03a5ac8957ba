"""Free loopback ports for the servers that demo, tests and benchmarks start.

Decides the range: below the ephemeral ports that the kernel hands to outgoing connections (on Linux
from 32768), so that a port stays free between being chosen and being bound, and across a restart.

A port is chosen some time before its server binds it. Meanwhile a lock of this process on one octet of a
file says that it is taken, so processes that run side by side never choose the same port.
"""

import fcntl
import os
import secrets
import socket
import tempfile
from functools import cache

_RANGE = range(20_000, 32_768)

_given: set[int] = set()
"""Ports that this process has chosen: its own locks do not stop it."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing listens on now, and that no living process has been given.

    Raises:
        OSError: no free port was found in many tries.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if len(_given) > len(_RANGE) // 2:
        _given.clear()
    for _ in range(200):
        port = secrets.choice(_RANGE)
        if port in _given:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                probe.bind((host, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(f"no free TCP port on {host} between {_RANGE.start} and {_RANGE.stop - 1}")


@cache
def _locks() -> int:
    """Return the descriptor of the file of locks, open as long as the process lives: closing it ends them."""
    return os.open(os.path.join(tempfile.gettempdir(), f"mailq-ports-{os.getuid()}"), os.O_RDWR | os.O_CREAT, 0o600)  # noqa: PTH118
