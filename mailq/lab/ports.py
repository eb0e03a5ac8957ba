"""Free loopback ports for the servers that demo, tests and benchmarks start.

Decides the range: below the ephemeral ports that the kernel hands to outgoing connections (on Linux
from 32768), so that a port stays free between being chosen and being bound, and across a restart.
"""

import secrets
import socket

_RANGE = range(20_000, 32_768)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing listens on now.

    Raises:
        OSError: no free port was found in many tries.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(200):
        port = secrets.choice(_RANGE)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port on {host} between {_RANGE.start} and {_RANGE.stop - 1}")
