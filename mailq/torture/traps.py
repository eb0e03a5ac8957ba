"""Traps: places where a server of the torture stops and waits, so that a disaster can strike just there.

A disaster sets a trap for a point and a job; whoever reaches that point with that job is held there, and the
trap tells the port that the worker's connection comes from. Released, or never trapped, everything goes on.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Trap:
    """One trap; `sprung` becomes the worker's port once somebody is held."""

    sprung: asyncio.Future[int]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    dropping: bool = False

    def release(self) -> None:
        """Let what is held go on."""
        self.released.set()

    def drop(self) -> None:
        """See to it that what is held goes nowhere: its connection ends when it is released."""
        self.dropping = True


class Traps:
    """All traps that are set."""

    def __init__(self) -> None:
        self._set: dict[tuple[str, str | None], Trap] = {}

    @contextmanager
    def trap(self, point: str, identity: str | None) -> Iterator[Trap]:
        """Have a trap for a job, or for anybody (None), released in the end."""
        key = (point, identity)
        trap = self._set[key] = Trap(asyncio.get_running_loop().create_future())
        try:
            yield trap
        finally:
            if self._set.get(key) is trap:
                del self._set[key]
            trap.release()

    async def passing(self, point: str, identity: str | None, port: int) -> None:
        """Return at once, or when the trap for this point and job is released.

        Raises:
            ConnectionResetError: the connection is to end there.
        """
        trap = self._set.get((point, identity))
        if trap is None or trap.sprung.done():
            return
        trap.sprung.set_result(port)
        await trap.released.wait()
        if trap.dropping:
            raise ConnectionResetError
