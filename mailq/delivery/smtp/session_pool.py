"""Who gets which session: a used one where one fits, a new one where the limits allow, else a place in line.

A session fits a job only if everything that shapes a conversation is the same: the `Route`, whose TLS
policy is the one that came out (a plaintext fall-back is another route). Waiting is short and in memory;
who would wait longer than there is patience for is postponed. What is open at once is counted through the `Limits`
port, for all processes together; a place is given back only after its connection is closed.
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
"""Seconds that a job waits in memory before it is postponed."""

POLL = 0.1
"""Seconds between looks whether another process gave a connection back."""

TENURE = 1.0
"""Seconds that a session serves this process before its place goes to another one that waits with fewer."""

FORGOTTEN = 600.0
"""Seconds after which what was learnt about a line is dropped."""

MANY = 5000
"""Lines of which so much is remembered; while there are more, unused ones are dropped after `PATIENCE`."""

REASON = "all connections allowed are in use"


@dataclass(slots=True, eq=False)
class Held:
    """A session with what was allowed when it was opened; moments on the monotonic clock.

    `serving` tells that its opening succeeded, so that the pool counts it among the open ones.
    """

    session: Session
    allowance: Allowance
    born: float = field(default_factory=monotonic)
    since: float = field(default_factory=monotonic)
    serving: bool = False

    def worn(self, now: float, most: int) -> bool:
        """Tell whether it may not carry another message; `most` is how many it may carry in all."""
        session = self.session
        old = now - self.born >= self.allowance.session_age or session.messages >= most
        return old or session.spent or not session.reusable


@dataclass(slots=True, eq=False)
class Waiter:
    """A job in line: gets a session, or None for leave to open one; `fresh`: no used session will do."""

    route: Route
    allowance: Allowance
    answer: asyncio.Future[Held | None]
    since: float
    fresh: bool = False

    def takes(self, route: Route) -> bool:
        """Tell whether a used session on `route` will do."""
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
        """Begin with none; there are `most` at once, and `room` is how many jobs the process has in memory."""
        self._dialer = dialer
        self._limits = limits
        self._timeouts = timeouts
        self._quit_timeout = quit_timeout
        self._most = most
        self._room = room
        self._pacing = 0
        self._idle: dict[Route, list[Held]] = {}
        self._idle_by_key: dict[str, list[Held]] = {}
        self._lines: dict[str, WaitQueue[Waiter]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._going: Counter[str] = Counter()
        self._serving: Counter[tuple[str | None, str, int]] = Counter()
        self._attendant: asyncio.Task[None] | None = None
        self.session_limits = SessionLimits()
        self.open_sessions = 0

    async def find(self, route: Route, allowance: Allowance, *, fresh: bool = False) -> Held | None:
        """Return a session on `route` that was used before; None, always if `fresh`, is a place to open or to vacate.

        Raises:
            Postponed: neither is to be had soon.
        """
        held = None if fresh else self._used(route)
        if held is None:
            line = self._line(allowance)
            if not line.waiting and await self._enter(allowance):
                return None
            answer = self._join(line, route, allowance, fresh=fresh)
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
        """Return a new session in the place that `find` gave; what is learnt on the way lands in `trail`.

        Raises:
            Failure: it could not be opened; the place is free again, after QUIT where the peer may be told.
            Postponed: new connections come at a limited rate, and others come first.
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
            self._line(allowance).given_back(now - began, now)
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
        """Tell whether there is an open session between source and target of the route, in use or idle."""
        return route.ends in self._serving

    @property
    def most_slow(self) -> int:
        """How many connections may take long to open: half of what there may be, of sessions and of jobs."""
        return min(self._most, self._room) // 2

    def vacate(self, allowance: Allowance) -> None:
        """Give a place back: to the first in line, else to whoever comes."""
        line = self._lines.get(allowance.connections_key)
        if line is None or not self._next(line, None):
            self._limits.leave(allowance.connections_key)

    def release(self, held: Held) -> None:
        """Take a session back: for the next in line, for later, or to say good-bye; nobody waits for that."""
        now = monotonic()
        line = self._line(held.allowance)
        line.given_back(now - held.since, now)
        worn = held.worn(now, self.session_limits.most(held.allowance))
        tenured = worn or now - held.born >= TENURE or not line.waiting
        due_elsewhere = tenured and self._due_elsewhere(held.allowance)
        if worn or due_elsewhere:
            self._dismiss(held, elsewhere=due_elsewhere)
        elif line.waiting:
            if not self._next(line, held):
                self._dismiss(held)  # nobody may use it: its place is for the first of all
        else:
            held.since = now
            self._idle.setdefault(held.session.route, []).append(held)
            self._idle_by_key.setdefault(held.allowance.connections_key, []).append(held)

    def sweep(self) -> None:
        """Close what was idle too long, is worn, or is waited for elsewhere; to be called about once a second."""
        self._limits.housekeep()
        now = monotonic()
        for idle in list(self._idle.values()):
            for held in list(idle):
                over = now - held.since >= held.allowance.idle_timeout
                over = over or held.worn(now, self.session_limits.most(held.allowance))
                if over or self._due_elsewhere(held.allowance):
                    self._dismiss(self._taken(held), elsewhere=not over)
        self._idle, self._idle_by_key = _cleared(self._idle), _cleared(self._idle_by_key)
        forgotten = FORGOTTEN if len(self._lines) <= MANY else PATIENCE
        for key, line in list(self._lines.items()):
            if not line.waiting and now - max(line.progress, line.back) > forgotten:
                del self._lines[key]

    async def pace(self, key: str, rate: Rate, *, returned: bool) -> None:
        """Wait until a rate lets the next event through.

        Raises:
            Postponed: that would take too long.
        """
        await self._turn(key, rate, self._patience, returned=returned)

    async def depart(self, key: str, rate: Rate) -> None:
        """Wait, with the session in hand, until a message may leave after the one before.

        Who took its turn with `pace` may have had to open a session since; this keeps it from leaving
        right before or after the next one. As many come here as the rate lets through, so the wait is short.

        Raises:
            Postponed: it is not, because many sessions took long to open.
        """
        await self._turn(f"depart|{key}", Rate(rate.per_second, rate.burst), PATIENCE, returned=True)

    async def close(self) -> None:
        """Say good-bye to all idle sessions and wait until all are gone."""
        for idle in list(self._idle.values()):
            for held in list(idle):
                self._dismiss(self._taken(held))
        while self._leaving:
            await asyncio.wait(self._leaving)

    @property
    def _patience(self) -> float:
        """Seconds that a job may wait for a rate: less the more do, or many slow destinations would fill the memory."""
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
        """Return the session on `route` that was used last, since it is the least likely to be closed by the peer."""
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
        self, line: WaitQueue[Waiter], route: Route, allowance: Allowance, *, fresh: bool
    ) -> asyncio.Future[Held | None]:
        """Stand in line for a session on `route`; the answer None is leave to open one, its place already taken.

        Raises:
            Postponed: it would take too long.
        """
        now = monotonic()
        if line.wait(now) > PATIENCE:
            raise Delayed(line.send_away(now), Cause.CONNECTIONS, REASON)
        answer = asyncio.get_running_loop().create_future()
        line.join(Waiter(route, allowance, answer, now, fresh), now)
        if idle := self._idle_by_key.get(allowance.connections_key):
            self._evict(idle)
        if self._attendant is None or self._attendant.done():
            self._attendant = asyncio.create_task(self._attend())
        return answer

    async def _attend(self) -> None:
        """While anybody waits, look for places that other processes gave back, and end waits that get too long."""
        while any(line.waiting for line in self._lines.values()):
            await asyncio.sleep(POLL)
            now = monotonic()
            for line in list(self._lines.values()):
                while line.waiting and await self._enter(allowance := line.waiting[0].allowance):
                    self.vacate(allowance)
                leaving = []
                while line.waiting and now - line.waiting[0].since > PATIENCE:
                    leaving.append(line.waiting.popleft())
                for waiter in (*leaving, *line.hopeless(now, PATIENCE)):
                    if not waiter.answer.done():
                        waiter.answer.set_exception(Delayed(line.send_away(now), Cause.CONNECTIONS, REASON))

    async def _enter(self, allowance: Allowance) -> bool:
        """Take a place among the allowed connections, if this process may have one more at all."""
        if self.open_sessions >= self._most:
            self._evict([held for idle in self._idle.values() for held in idle])
            return False
        return await self._limits.enter(allowance.connections_key, allowance.connections)

    def _next(self, line: WaitQueue[Waiter], held: Held | None) -> bool:
        """Answer the first in line, with a session the first who may use it; tell whether there was one."""
        while line.waiting:
            waiter: Waiter | None = line.waiting[0]
            route = held.session.route if held else None
            if route is not None and waiter is not None and not waiter.takes(route):
                waiter = next((each for each in line.waiting if each.takes(route)), None)
            if waiter is None:
                return False
            line.waiting.remove(waiter)
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
        """Close a session in the background; its place is for the next in line here, or `elsewhere`."""
        if elsewhere:
            self._going[held.allowance.connections_key] += 1
        task = asyncio.create_task(self._say_good_bye(held, elsewhere=elsewhere))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _say_good_bye(self, held: Held, *, elsewhere: bool) -> None:
        """Close a session; only then its place is free, or the receiver would see one connection too many."""
        try:
            await held.session.quit()
        finally:
            self.open_sessions -= 1
            self._serves_no_more(held)
            key = held.allowance.connections_key
            if elsewhere:
                self._limits.leave(key)
                self._going[key] -= 1
                if not self._going[key]:
                    del self._going[key]
            else:
                self.vacate(held.allowance)

    def _serves_no_more(self, held: Held) -> None:
        """Count out a session that was open; one whose opening was refused never was."""
        if held.serving:
            ends = held.session.route.ends
            self._serving[ends] -= 1
            if not self._serving[ends]:
                del self._serving[ends]

    def _due_elsewhere(self, allowance: Allowance) -> bool:
        """Tell whether one of the places that this process has is another one's turn."""
        key = allowance.connections_key
        return self._limits.wanted(key, allowance.connections, self._going.get(key, 0))

    def _evict(self, idle: Sequence[Held]) -> None:
        """Close the session that was idle longest, to make room for one that is needed."""
        if idle:
            self._dismiss(self._taken(min(idle, key=lambda held: held.since)))

    def _taken(self, held: Held) -> Held:
        """Take a session from the idle ones."""
        self._idle[held.session.route].remove(held)
        self._idle_by_key[held.allowance.connections_key].remove(held)
        return held

    def _line(self, allowance: Allowance) -> WaitQueue[Waiter]:
        line = self._lines.get(allowance.connections_key)
        if line is None:
            line = self._lines[allowance.connections_key] = WaitQueue(allowance.connections, monotonic())
        line.places = allowance.connections
        return line


def _cleared(shelf: dict[K, list[Held]]) -> dict[K, list[Held]]:
    """Return a shelf without its empty places."""
    return {key: held for key, held in shelf.items() if held}
