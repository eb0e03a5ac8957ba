"""The session pool: a job gets a used session, a new one within the limits, or a place in a wait queue.

A session fits a job only if the `Route` is the same. The TLS mode of a route is the one in use, so a fall-back to
plaintext is another route. Jobs wait in memory, for `PATIENCE` seconds at most; a job that would wait longer is
delayed. The `Limits` port counts open connections for all processes together. The pool gives a place back only after
its connection is closed.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Cause, Delayed
from mailq.core.states import State
from mailq.core.traffic.limits import Allowance
from mailq.core.traffic.rate import LEAST_PATIENCE, Rate
from mailq.core.traffic.routes import Route
from mailq.core.traffic.wait_queue import WaitQueue
from mailq.delivery.smtp.session import Session
from mailq.delivery.smtp.session_limits import SessionLimits
from mailq.ports.limits import Limits
from mailq.ports.wire import Dialer

K = TypeVar("K")

PATIENCE = 5.0
"""Seconds that a job waits in memory before it is delayed."""

POLL = 0.1
"""Seconds between checks whether another process gave a place back."""

TENURE = 1.0
"""Seconds that a session serves this process before its place may go to a waiting process with fewer."""

FORGOTTEN = 600.0
"""Seconds after which the pool drops an unused wait queue and its statistics."""

MANY = 5000
"""Number of wait queues kept for so long; above it, unused ones are dropped after `PATIENCE` seconds."""

REASON = "all connections allowed are in use"


@dataclass(slots=True, eq=False)
class Held:
    """A session with the allowance at its opening; moments on the monotonic clock.

    `serving` says that the opening succeeded, so that the pool counts the session as open.
    """

    session: Session
    allowance: Allowance
    born: float = field(default_factory=monotonic)
    since: float = field(default_factory=monotonic)
    serving: bool = False

    def worn(self, now: float, most: int) -> bool:
        """Return whether the session may carry no further message; `most` is how many it may carry in all."""
        session = self.session
        old = now - self.born >= self.allowance.session_age or session.messages >= most
        return old or session.spent or not session.reusable


@dataclass(slots=True, eq=False)
class Waiter:
    """A job in a wait queue: gets a session, or None for a place to open one; `fresh`: only a new one will do."""

    route: Route
    allowance: Allowance
    answer: asyncio.Future[Held | None]
    since: float
    fresh: bool = False

    def takes(self, route: Route) -> bool:
        """Return whether a used session on `route` will do."""
        return not self.fresh and (self.route is route or self.route == route)


class SessionPool:
    """All SMTP sessions of a process."""

    def __init__(
        self,
        dialer: Dialer,
        limits: Limits,
        timeouts: Mapping[State, float],
        quit_timeout: float,
        most: int,
        room: int,
    ) -> None:
        """Begin with no session; `most` sessions may be open at once, and `room` jobs may be in memory."""
        self._dialer = dialer
        self._limits = limits
        self._timeouts = timeouts
        self._quit_timeout = quit_timeout
        self._most = most
        self._room = room
        self._pacing = 0
        self._idle: dict[Route, list[Held]] = {}
        self._idle_by_key: dict[str, list[Held]] = {}
        self._wait_queues: dict[str, WaitQueue[Waiter]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._going: Counter[str] = Counter()
        self._serving: Counter[tuple[str | None, str, int]] = Counter()
        self._attending: asyncio.Task[None] | None = None
        self.session_limits = SessionLimits()
        self.open_sessions = 0

    async def find(self, route: Route, allowance: Allowance, *, fresh: bool = False) -> Held | None:
        """Return a used session on `route`; None (always if `fresh`) is a place that the caller opens or vacates.

        Raises:
            Delayed: neither would be available soon.
        """
        held = None if fresh else self._used(route)
        if held is None:
            queue = self._wait_queue(allowance)
            if not queue.waiting and await self._enter(allowance):
                return None
            answer = self._join(queue, route, allowance, fresh=fresh)
            try:
                held = await answer
            except asyncio.CancelledError:
                if not answer.cancelled() and answer.exception() is None:
                    self._give_back(answer.result(), allowance)
                raise
        if held is not None:
            held.since = monotonic()
        return held

    async def open(self, trail: Trail, route: Route, allowance: Allowance) -> Held:
        """Return a new session in the place that `find` gave; `trail` gets the facts of the opening.

        Raises:
            Failure: the session could not be opened; the place is free again, after QUIT if that may be sent.
            Delayed: the rate of new connections is limited, and other jobs come first.
        """
        self.open_sessions += 1
        began = monotonic()
        held: Held | None = None
        try:
            if allowance.connection_rate:
                await self.pace(allowance.connection_rate_key, allowance.connection_rate, returned=True)
            session = Session(self._dialer.wire(route.target), route, self._timeouts, self._quit_timeout)
            held = Held(session, allowance)
            await session.open(trail)
        except BaseException:
            now = monotonic()
            self._wait_queue(allowance).given_back(now - began, now)
            if held is not None and held.session.reusable:
                self._dismiss(held)
            else:
                self.open_sessions -= 1
                self.vacate(allowance)
            raise
        held.serving = True
        self._serving[route.ends] += 1
        held.since = monotonic()
        return held

    def serving(self, route: Route) -> bool:
        """Return whether a session between source and target of the route is open, in use or idle."""
        return route.ends in self._serving

    @property
    def most_slow(self) -> int:
        """Number of openings that may be slow: half of the sessions or of the jobs, whichever are fewer."""
        return min(self._most, self._room) // 2

    def vacate(self, allowance: Allowance) -> None:
        """Give a place to the first job in the wait queue, else back to the limits."""
        queue = self._wait_queues.get(allowance.connections_key)
        if queue is None or not self._next(queue, None):
            self._limits.leave(allowance.connections_key)

    def release(self, held: Held) -> None:
        """Take a session back: give it to the next job, keep it idle, or close it in the background."""
        now = monotonic()
        queue = self._wait_queue(held.allowance)
        queue.given_back(now - held.since, now)
        worn = held.worn(now, self.session_limits.most(held.allowance))
        tenured = worn or now - held.born >= TENURE or not queue.waiting
        due_elsewhere = tenured and self._due_elsewhere(held.allowance)
        if worn or due_elsewhere:
            self._dismiss(held, elsewhere=due_elsewhere)
        elif queue.waiting:
            if not self._next(queue, held):
                self._dismiss(held)  # no waiting job fits the session: its place is for the first job
        else:
            held.since = now
            self._idle.setdefault(held.session.route, []).append(held)
            self._idle_by_key.setdefault(held.allowance.connections_key, []).append(held)

    def sweep(self) -> None:
        """Close idle sessions that are too old, worn, or wanted by another process; to be called once a second."""
        self._limits.housekeep()
        now = monotonic()
        for idle in list(self._idle.values()):
            for held in list(idle):
                over = now - held.since >= held.allowance.idle_timeout
                over = over or held.worn(now, self.session_limits.most(held.allowance))
                if over or self._due_elsewhere(held.allowance):
                    self._dismiss(self._taken(held), elsewhere=not over)
        self._idle, self._idle_by_key = _cleared(self._idle), _cleared(self._idle_by_key)
        forgotten = FORGOTTEN if len(self._wait_queues) <= MANY else PATIENCE
        for key, queue in list(self._wait_queues.items()):
            if not queue.waiting and now - max(queue.progress, queue.back) > forgotten:
                del self._wait_queues[key]

    async def pace(self, key: str, rate: Rate, *, returned: bool) -> None:
        """Wait until a rate lets the next event through.

        Raises:
            Delayed: the wait would be too long.
        """
        await self._turn(key, rate, self._patience, returned=returned)

    async def depart(self, key: str, rate: Rate) -> None:
        """Wait, with an open session, until a message may be sent after the one before.

        A job that took its turn with `pace` may have opened a session since. This second wait keeps its message from
        being sent right before or after the next one. `pace` limits the jobs that come here, so the wait is short.

        Raises:
            Delayed: the wait would be too long, because many sessions took long to open.
        """
        await self._turn(f"depart|{key}", Rate(rate.per_second, rate.burst), PATIENCE, returned=True)

    async def close(self) -> None:
        """Close all idle sessions with QUIT, and wait until all sessions are closed."""
        for idle in list(self._idle.values()):
            for held in list(idle):
                self._dismiss(self._taken(held))
        while self._closing:
            await asyncio.wait(self._closing)

    @property
    def _patience(self) -> float:
        """Seconds that a job may wait for a rate: fewer if more jobs wait, or slow destinations would fill memory."""
        return max(LEAST_PATIENCE, PATIENCE * (1.0 - self._pacing / self._room))

    async def _turn(self, key: str, rate: Rate, patience: float, *, returned: bool) -> None:
        slot = await self._limits.take(key, rate, patience=patience, returned=returned)
        if slot.away:
            raise Delayed(slot.wait, Cause.RATE, "the rate allowed is used up")
        if slot.wait > 0:
            self._pacing += 1
            try:
                await asyncio.sleep(slot.wait)
            finally:
                self._pacing -= 1

    def _used(self, route: Route) -> Held | None:
        """Return the session on `route` that was used last, since the peer is least likely to close that one."""
        idle = self._idle.get(route)
        if not idle:
            return None
        now = monotonic()
        while idle:
            held = idle.pop()
            self._idle_by_key[held.allowance.connections_key].remove(held)
            if not held.worn(now, self.session_limits.most(held.allowance)):
                return held
            self._dismiss(held)
        return None

    def _join(
        self, queue: WaitQueue[Waiter], route: Route, allowance: Allowance, *, fresh: bool
    ) -> asyncio.Future[Held | None]:
        """Wait in a queue for a session on `route`; the answer None is a place, already taken, to open one.

        Raises:
            Delayed: the wait would be too long.
        """
        now = monotonic()
        if queue.wait(now) > PATIENCE:
            raise Delayed(queue.send_away(now), Cause.CONNECTIONS, REASON)
        answer = asyncio.get_running_loop().create_future()
        queue.join(Waiter(route, allowance, answer, now, fresh), now)
        if idle := self._idle_by_key.get(allowance.connections_key):
            self._evict(idle)
        if self._attending is None or self._attending.done():
            self._attending = asyncio.create_task(self._attend())
        return answer

    async def _attend(self) -> None:
        """While a job waits, look for places that other processes gave back, and end waits that are too long."""
        while any(queue.waiting for queue in self._wait_queues.values()):
            await asyncio.sleep(POLL)
            now = monotonic()
            for queue in list(self._wait_queues.values()):
                while queue.waiting and await self._enter(allowance := queue.waiting[0].allowance):
                    self.vacate(allowance)
                leaving = []
                while queue.waiting and now - queue.waiting[0].since > PATIENCE:
                    leaving.append(queue.waiting.popleft())
                for waiter in (*leaving, *queue.hopeless(now, PATIENCE)):
                    if not waiter.answer.done():
                        waiter.answer.set_exception(Delayed(queue.send_away(now), Cause.CONNECTIONS, REASON))

    async def _enter(self, allowance: Allowance) -> bool:
        """Take a place among the allowed connections, if this process may have one more at all."""
        if self.open_sessions >= self._most:
            self._evict([held for idle in self._idle.values() for held in idle])
            return False
        return await self._limits.enter(allowance.connections_key, allowance.connections)

    def _next(self, queue: WaitQueue[Waiter], held: Held | None) -> bool:
        """Give a place to the first waiting job, or a session to the first that fits; return whether there was one."""
        while queue.waiting:
            waiter: Waiter | None = queue.waiting[0]
            route = held.session.route if held else None
            if route is not None and waiter is not None and not waiter.takes(route):
                waiter = next((each for each in queue.waiting if each.takes(route)), None)
            if waiter is None:
                return False
            queue.waiting.remove(waiter)
            if not waiter.answer.done():  # else its job was cancelled meanwhile
                waiter.answer.set_result(held)
                return True
        return False

    def _give_back(self, answer: Held | None, allowance: Allowance) -> None:
        if answer is None:
            self.vacate(allowance)
        else:
            self.release(answer)

    def _dismiss(self, held: Held, *, elsewhere: bool = False) -> None:
        """Close a session in the background; its place is for the next job here, or for another process."""
        if elsewhere:
            self._going[held.allowance.connections_key] += 1
        task = asyncio.create_task(self._quit(held, elsewhere=elsewhere))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _quit(self, held: Held, *, elsewhere: bool) -> None:
        """Close a session, then free its place; else the receiver would see one connection too many."""
        try:
            await held.session.quit()
        finally:
            self.open_sessions -= 1
            self._count_out(held)
            key = held.allowance.connections_key
            if elsewhere:
                self._limits.leave(key)
                self._going[key] -= 1
                if not self._going[key]:
                    del self._going[key]
            else:
                self.vacate(held.allowance)

    def _count_out(self, held: Held) -> None:
        """Count a session as closed, unless its opening had failed."""
        if held.serving:
            ends = held.session.route.ends
            self._serving[ends] -= 1
            if not self._serving[ends]:
                del self._serving[ends]

    def _due_elsewhere(self, allowance: Allowance) -> bool:
        """Return whether another process waits for one of the places of this process."""
        key = allowance.connections_key
        return self._limits.wanted(key, allowance.connections, self._going.get(key, 0))

    def _evict(self, idle: Sequence[Held]) -> None:
        """Close the session that was idle longest, to make room for a new one."""
        if idle:
            self._dismiss(self._taken(min(idle, key=lambda held: held.since)))

    def _taken(self, held: Held) -> Held:
        """Remove a session from the idle ones and return it."""
        self._idle[held.session.route].remove(held)
        self._idle_by_key[held.allowance.connections_key].remove(held)
        return held

    def _wait_queue(self, allowance: Allowance) -> WaitQueue[Waiter]:
        queue = self._wait_queues.get(allowance.connections_key)
        if queue is None:
            queue = self._wait_queues[allowance.connections_key] = WaitQueue(allowance.connections, monotonic())
        queue.places = allowance.connections
        return queue


def _cleared(sessions: dict[K, list[Held]]) -> dict[K, list[Held]]:
    """Return the mapping without empty lists."""
    return {key: held for key, held in sessions.items() if held}
