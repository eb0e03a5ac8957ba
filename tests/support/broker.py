"""What broker tests share: an observer that remembers, a collector of deliveries, and waiting."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from mailq.core.broker.messages import Consumed

DEADLINE = 20.0


class Remembering:
    """An observer that remembers what happened to the broker."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def broker(self, event: str, detail: str) -> None:
        self.events.append((event, detail))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the broker has no business calling {name}")


class Inbox:
    """Collects deliveries."""

    def __init__(self) -> None:
        self.messages: list[Consumed] = []

    def __call__(self, consumed: Consumed) -> None:
        self.messages.append(consumed)

    async def wait(self, count: int) -> list[Consumed]:
        await until(lambda: len(self.messages) >= count)
        assert len(self.messages) == count
        return self.messages


async def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    ends = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < ends, "did not happen in time"
        await asyncio.sleep(0.01)
