"""One timeout for many tasks with the same limit: cheaper than a timer for each.

The class is used like `asyncio.timeout`, around code of the running task that awaits. Equal limits
expire in the order in which they began. One timer, for the oldest task, is enough.
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
        """Begin to count for the running task, which may enter only once at a time."""
        task = asyncio.current_task()
        assert task is not None
        self._begun[task] = monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limit, self._look)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """Stop counting; a cancellation by this timeout becomes `TimeoutError`.

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
        """Cancel the tasks over the limit, and look again when the next task reaches it."""
        self._timer = None
        now = monotonic()
        for task, begun in list(self._begun.items()):
            if now - begun < self.limit:
                self._timer = asyncio.get_running_loop().call_later(self.limit - (now - begun), self._look)
                return
            del self._begun[task]
            self._expired.add(task)
            task.cancel()
