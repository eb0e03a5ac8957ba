"""How much of the worker waits for servers that do not greet: one silent site must not hold up the others.

A target has greeted, or nothing is known of it. To a target that has not greeted lately few connections are opened
at once; other jobs wait a moment for its first greeting, which lets them all go. When there is no greeting within
`SOON` seconds, they are postponed without an attempt. Of all openings that take longer than that, a process keeps
at most so many as half of its jobs; further ones are broken off, and their jobs are postponed too.
Refused connections are for `core.breaker`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from mailq.core.bounded import BoundedDict
from mailq.core.smtp.failure import Cause, Delayed

SOON = 3.0
"""Seconds in which most servers greet; an opening that takes longer is slow."""

LONG = 10.0
"""Seconds of silence that make an earlier greeting worth nothing."""

AT_ONCE = 2
"""Connections opened at once to a target that has not greeted lately."""

LATELY = 60.0
"""Seconds for which a greeting opens a target to any number of connections."""

LEAST_DELAY = 5.0
MOST_DELAY = 120.0
"""Seconds for which a job is postponed: as long as the target has been silent, within these bounds."""

IGNORED = 30.0
"""Seconds for which a target is left alone whose opening was broken off."""

Ends = tuple[str | None, str, int]
"""Source address, target address and port."""


@dataclass(slots=True)
class _Target:
    """The openings under way to a target by the moment they began, and the jobs that wait for the first greeting."""

    begun: list[float] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Openings:
    """The openings under way in one process, of which at most `most` may be slow."""

    def __init__(self, most: int) -> None:
        self.most = max(most, 1)
        self.slow = 0
        """Openings under way for more than `SOON` seconds."""
        self._targets: dict[Ends, _Target] = {}
        self._greeted: BoundedDict[Ends, float] = BoundedDict(2 * 1024 * 1024)
        self._ignored: BoundedDict[Ends, float] = BoundedDict(1024 * 1024)

    async def admitted(self, ends: Ends) -> None:
        """Wait until a connection may be opened to a target with which there is no session.

        Raises:
            Postponed: the target has been silent for too long, or silent targets hold all that they may.
        """
        begun = monotonic()
        while True:
            now = monotonic()
            if (left := self._ignored.get(ends, 0.0) - now) > 0:
                raise _postponed(ends, left)
            target = self._targets.get(ends)
            if target is None or len(target.begun) < AT_ONCE or self._greets(ends, target, now):
                return
            silent = max(now - min(target.begun), now - begun)
            if silent >= SOON:
                raise _postponed(ends, silent)
            waiter = asyncio.get_running_loop().create_future()
            target.waiting.append(waiter)
            await asyncio.wait({waiter}, timeout=SOON - silent)

    @asynccontextmanager
    async def opening(self, ends: Ends) -> AsyncIterator[None]:
        """Count a connection being opened; it is broken off if it becomes a slow one and there are enough of them.

        Raises:
            Postponed: it was broken off.
        """
        loop, began, slow = asyncio.get_running_loop(), monotonic(), False
        target = self._targets.setdefault(ends, _Target())
        target.begun.append(began)

        def look() -> None:
            nonlocal slow
            if self.slow < self.most:
                slow = True
                self.slow += 1
            else:
                clock.reschedule(loop.time())

        clock = asyncio.timeout(None)
        timer = loop.call_later(SOON, look)
        try:
            async with clock:
                yield
            self.greeted(ends)
        except TimeoutError:
            if not clock.expired():
                raise
            self._ignored.remember(ends, monotonic() + IGNORED)
            raise _postponed(ends, monotonic() - began) from None
        finally:
            timer.cancel()
            self.slow -= slow
            target.begun.remove(began)
            if not target.begun:
                del self._targets[ends]
            _wake(target)

    def greeted(self, ends: Ends) -> None:
        """Note that a target answers: all who wait for that may go."""
        self._greeted.remember(ends, monotonic())
        self._ignored.forget(ends)
        if (target := self._targets.get(ends)) is not None:
            _wake(target)

    def _greets(self, ends: Ends, target: _Target, now: float) -> bool:
        """Tell whether a target has greeted lately, and goes on to."""
        if now - self._greeted.get(ends, -LATELY) >= LATELY:
            return False
        return sum(now - began > LONG for began in target.begun) < AT_ONCE


def _wake(target: _Target) -> None:
    """Let those who wait look again."""
    for waiter in target.waiting:
        if not waiter.done():
            waiter.set_result(None)
    target.waiting.clear()


def _postponed(ends: Ends, silent: float) -> Delayed:
    wait = min(max(silent, LEAST_DELAY), MOST_DELAY)
    return Delayed(wait, Cause.SILENCE, f"{ends[1]} port {ends[2]} does not greet")
