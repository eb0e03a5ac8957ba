"""Tests marked `alone`, which measure time: among parallel processes, no other test runs beside them.

A test holds the lock of the machine: shared with others, or exclusively. The gate is passed before, and
held by a test that waits to be alone, so that no further test begins meanwhile.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

_GATE = Path(__file__)
_MACHINE = Path(__file__).parents[1] / "conftest.py"


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until a test may run, and hold that right."""
    gate, machine = _opened(_GATE), _opened(_MACHINE)
    fcntl.flock(gate, fcntl.LOCK_EX)
    fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    fcntl.flock(gate, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(machine, fcntl.LOCK_UN)


@cache
def _opened(file: Path) -> IO[bytes]:
    return file.open("rb")
