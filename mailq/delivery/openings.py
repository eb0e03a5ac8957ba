"""Limits on connections to servers that do not greet: one silent site must not hold up the others.

A process opens few connections at once to a target that has not greeted lately. Further jobs wait in memory for its
first greeting, which admits them all. Without a greeting within `SOON` seconds the jobs are delayed without an attempt.
An opening that takes longer is slow. At most half of the jobs of a process, or of its sessions if those are fewer, may
be in slow openings. Further openings are cancelled, and their jobs are delayed too. `core.traffic.breaker` deals with
refused connections.
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
"""Seconds of silence after which an earlier greeting does not count."""

AT_ONCE = 2
"""Connections opened at once to a target that has not greeted lately."""

LATELY = 60.0
"""Seconds for which a greeting opens a target to any number of connections."""

LEAST_DELAY = 5.0
MOST_DELAY = 120.0
"""Seconds for which a job is delayed: as long as the target has been silent, within these bounds."""

IGNORED = 30.0
"""Seconds for which jobs are delayed after an opening to their target was cancelled."""

Ends = tuple[str | None, str, int]
"""Source address, target address and port."""


@dataclass(slots=True)
class _Target:
    """The moments at which openings to a target began, and the jobs that wait for its first greeting."""

    begun: list[float] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Openings:
    """The openings of one process, of which at most `most` may be slow."""

    def __init__(self, most: int) -> None:
        self.most = max(most, 1)
        self.slow = 0
        """Number of openings that take more than `SOON` seconds."""
        self._targets: dict[Ends, _Target] = {}
        self._greeted: BoundedDict[Ends, float] = BoundedDict(2 * 1024 * 1024)
        self._ignored: BoundedDict[Ends, float] = BoundedDict(1024 * 1024)

    async def admitted(self, ends: Ends) -> None:
        """Wait until a connection may be opened to a target without an open session.

        Raises:
            Delayed: the target has been silent for too long, or an opening to it was cancelled.
        """
        begun = monotonic()
        while True:
            now = monotonic()
            if (left := self._ignored.get(ends, 0.0) - now) > 0:
                raise _delayed(ends, left)
            target = self._targets.get(ends)
            if target is None or len(target.begun) < AT_ONCE or self._greets(ends, target, now):
                return
            silent = max(now - min(target.begun), now - begun)
            if silent >= SOON:
                raise _delayed(ends, silent)
            waiter = asyncio.get_running_loop().create_future()
            target.waiting.append(waiter)
            await asyncio.wait({waiter}, timeout=SOON - silent)

    @asynccontextmanager
    async def opening(self, ends: Ends) -> AsyncIterator[None]:
        """Count an opening; cancel it when it becomes slow and the limit of slow openings is reached.

        Raises:
            Delayed: the opening was cancelled.
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
            raise _delayed(ends, monotonic() - began) from None
        finally:
            timer.cancel()
            self.slow -= slow
            target.begun.remove(began)
            if not target.begun:
                del self._targets[ends]
            _wake(target)

    def greeted(self, ends: Ends) -> None:
        """Record that a target has greeted, and admit all jobs that wait for it."""
        self._greeted.remember(ends, monotonic())
        self._ignored.forget(ends)
        if (target := self._targets.get(ends)) is not None:
            _wake(target)

    def _greets(self, ends: Ends, target: _Target, now: float) -> bool:
        """Return whether a target has greeted lately, and newer openings are not silent for long."""
        if now - self._greeted.get(ends, -LATELY) >= LATELY:
            return False
        return sum(now - began > LONG for began in target.begun) < AT_ONCE


def _wake(target: _Target) -> None:
    """Let the waiting jobs check the target again."""
    for waiter in target.waiting:
        if not waiter.done():
            waiter.set_result(None)
    target.waiting.clear()


def _delayed(ends: Ends, silent: float) -> Delayed:
    wait = min(max(silent, LEAST_DELAY), MOST_DELAY)
    return Delayed(wait, Cause.SILENCE, f"{ends[1]} port {ends[2]} does not greet")
