"""Where lines leave: a thread of its own, so that a slow, blocked or broken standard error never delays a delivery.

Lines are gathered for a moment; a bounded buffer then drops some and says how many. Processes of one
supervisor share one standard error. What leaves in one call is never torn there (a pipe keeps `PIPE_BUF`
octets together, pipe(7), a file any number), so calls end where lines end.
"""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator

PIPE_BUF = 4096
"""Octets that leave in one call at most, and of one line: what Linux keeps together in a pipe."""

FILE_BUF = 256 * 1024
"""Octets that leave in one call at most into a file: each call makes deliveries wait for the interpreter's lock."""

MAX_BUFFER = 8 * 1024 * 1024
"""Octets that wait for a standard error that takes none, until lines are dropped."""

GATHER = 0.05
"""Seconds that a line waits for others, to be written with them."""

PATIENCE = 2.0
"""Seconds that closing waits for a standard error that takes nothing."""


class LogWriter:
    """Writes lines to a file descriptor from a thread; `write` returns at once and never raises.

    `render` makes the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, render: Callable[[object, str, dict[str, object]], bytes]) -> None:
        self._descriptor = descriptor
        self._most = FILE_BUF if stat.S_ISREG(os.fstat(descriptor).st_mode) else PIPE_BUF
        self._render = render
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Hand over one line, its newline included."""
        with self._lock:
            if self._size + len(line) > MAX_BUFFER:
                self._dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what is left, waiting `PATIENCE` seconds at most."""
        self._closing.set()
        self._some.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            closing = self._closing.wait(GATHER)
            with self._lock:
                lines, self._lines, self._size = self._lines, [], 0
                dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(self._render(None, "warning", {"event": "dropped", "lines": dropped}))
            lost = self._put(lines)
            if lost:
                with self._lock:
                    self._dropped += lost + dropped - bool(dropped)
            if closing:
                return

    def _put(self, lines: list[bytes]) -> int:
        """Write everything; return how many lines could not be (EPIPE, ENOSPC, ...)."""
        left = len(lines)
        with contextlib.suppress(OSError):
            for batch in _batches(lines, self._most):
                self._write_whole(b"".join(batch))
                left -= len(batch)
        return left

    def _write_whole(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # someone made the descriptor non-blocking
                time.sleep(GATHER)


def _batches(lines: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """Yield lines by as many as leave in one call."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        size += len(line)
        if batch and size > most:
            yield batch
            batch, size = [], len(line)
        batch.append(line)
    if batch:
        yield batch
