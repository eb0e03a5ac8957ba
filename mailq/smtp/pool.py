"""Who gets which session: opens one for each message and says good-bye to it afterwards."""

import asyncio
from collections.abc import Mapping

from mailq.core.result import Trail
from mailq.core.routing import Route
from mailq.core.states import State
from mailq.ports import Dialer
from mailq.smtp.session import Session


class Pool:
    """All SMTP sessions of a process."""

    def __init__(self, dialer: Dialer, timeouts: Mapping[State, float], quit_timeout: float) -> None:
        self._dialer = dialer
        self._timeouts = timeouts
        self._quit_timeout = quit_timeout
        self._leaving: set[asyncio.Task[None]] = set()
        self.open_sessions = 0

    async def acquire(self, trail: Trail, route: Route) -> Session:
        """Return an open session on `route`; what is learnt on the way lands in `trail`.

        Raises:
            Failure: it could not be opened.
        """
        session = Session(self._dialer.wire(route.target), route, self._timeouts, self._quit_timeout)
        self.open_sessions += 1
        try:
            await session.open(trail)
        except BaseException:
            self.open_sessions -= 1
            raise
        return session

    def release(self, session: Session) -> None:
        """Take a session back; nobody waits for its good-bye."""
        task = asyncio.create_task(session.quit())
        self._leaving.add(task)
        task.add_done_callback(self._gone)

    async def close(self) -> None:
        """Wait until all good-byes are said."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self.open_sessions -= 1
