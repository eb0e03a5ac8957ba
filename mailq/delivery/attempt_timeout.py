"""One clock for many waits of the same length: cheaper than a timer for each.

Used like `asyncio.timeout`, around a piece of the running task that may await. Since all waits are
equally long they end in the order in which they began, so that one timer, for the oldest, will do.
"""

import asyncio
from time import monotonic
from types import TracebackType
from typing import Any


class SharedTimeout:
    """A `with` block that raises `TimeoutError` in a task that stays in it for more than `limit` seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        """Begin to count for the running task, which may be in here once."""
        task = asyncio.current_task()
        assert task is not None
        self._begun[task] = monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limit, self._look)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """Stop counting; a cancellation by this clock becomes `TimeoutError`.

        Raises:
            TimeoutError: the time was up.
        """
        task = asyncio.current_task()
        assert task is not None
        self._begun.pop(task, None)
        if task in self._expired:
            self._expired.discard(task)
            if task.uncancel() <= 0 and kind is asyncio.CancelledError:
                raise TimeoutError

    def _look(self) -> None:
        """Cancel who is over time, and look again when the next one is."""
        self._timer = None
        now = monotonic()
        for task, begun in list(self._begun.items()):
            if now - begun < self.limit:
                self._timer = asyncio.get_running_loop().call_later(self.limit - (now - begun), self._look)
                return
            del self._begun[task]
            self._expired.add(task)
            task.cancel()
