"""The whole torture: disaster after disaster, then everything runs dry, and the books are made.

Disasters follow each other while earlier jobs are still under way; where calm ones begin or end, the next waits until
all is quiet. Whatever is waited for has a limit, and a name in the error.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from mailq.ports.broker import BrokerError
from mailq.torture import TortureError, report
from mailq.torture import world as worlds
from mailq.torture.books import Books
from mailq.torture.disasters import strike
from mailq.torture.plan import Disaster
from mailq.torture.world import World

BACKLOG = 30
"""Disasters whose jobs may be under way."""

LATE = 40
"""Disasters after which the late copies of one's jobs are published: a minute at least."""

JOBS_SECONDS = 90.0
"""Seconds in which all jobs of a disaster have to come to their end; a breaker that was opened takes 30 of them."""

ENOUGH = 3
"""Disasters with jobs that never end after which no more are made."""

DRY_SECONDS = 120.0
"""Seconds in which the queues have to run dry in the end."""

LOOK = 0.1
"""Seconds between looks at the queues."""


class Show:
    """One torture in a directory of its own."""

    def __init__(
        self, home: Path, disasters: Sequence[Disaster], settings: report.Settings, say: Callable[[str], None]
    ) -> None:
        self._home = home
        self._disasters = disasters
        self._settings = settings
        self._say = say
        self._open: deque[Disaster] = deque()
        self._late: deque[Disaster] = deque()
        self._played: list[Disaster] = []
        self._stuck = 0
        self._calm = False
        self.doing = "the servers to start"
        self.trouble: TortureError | None = None
        """Why there were no more disasters, if they ended early; the books are those of the others."""

    async def run(self, limit: float) -> Books:
        """Do it all within `limit` seconds and return the books.

        Raises:
            TortureError: it could not go on; says what was being waited for.
            BrokerError: the broker was lost where nothing happened to it.
            LabError: a server did not start.
        """
        try:
            opened = worlds.opened(self._home, self._settings.processes, unnamed=self._settings.unnamed)
            async with asyncio.timeout(limit) as clock, opened as world:
                self._say(report.head("so far, of disaster"))
                for disaster in self._playable(world):
                    if self._stuck >= ENOUGH:
                        self._say("jobs are stuck again and again: no more disasters")
                        break
                    try:
                        await self._play(world, disaster)
                    except TortureError as trouble:
                        self.trouble = trouble
                        self._say(f"no more disasters: {trouble}")
                        break
                await self._through(world, 0)
                for disaster in self._late:
                    await world.publish_late(disaster)
                await self._run_dry(world)
                return self._books(world, self._played, world.receiver.taken())
        except TimeoutError:
            if not clock.expired():
                raise
            raise TortureError(f"the time of {limit:g} s is over; it was waiting for {self.doing}") from None

    def _playable(self, world: World) -> Sequence[Disaster]:
        """Leave out what this machine cannot do, and say so."""
        if world.journal.fills or not any(each.kind.fills for each in self._disasters):
            return self._disasters
        self._say("disk-full is left out: root may mount no disk of its own here, and writes to any directory")
        return [each for each in self._disasters if not each.kind.fills]

    async def _play(self, world: World, disaster: Disaster) -> None:
        if disaster.kind.calm is not self._calm:
            self._calm = disaster.kind.calm
            await self._through(world, 0)
            self.doing = "a fresh `mailq run`"
            await world.fleet.settle()
        self.doing = f"disaster {disaster.number}, {disaster.kind.name}"
        try:
            await strike(world, disaster)
        except TortureError as trouble:
            raise TortureError(f"{self.doing}: {trouble}") from None
        self._played.append(disaster)
        self._open.append(disaster)
        self._late.append(disaster)
        if len(self._late) > LATE and not self._calm:
            await world.publish_late(self._late.popleft())
        await self._through(world, BACKLOG)

    async def _through(self, world: World, most: int) -> None:
        """Return when at most so many disasters have jobs under way."""
        while len(self._open) > most:
            disaster = self._open.popleft()
            self.doing = f"the jobs of disaster {disaster.number}, {disaster.kind.name}"
            names = {name for job in disaster.jobs for name in job.publications}
            stuck = await world.queues.unfinished(names & world.queues.published, JOBS_SECONDS)
            if stuck:
                self._stuck += 1
                self._say(f"waited {JOBS_SECONDS:g} s for {self.doing}: {', '.join(sorted(stuck))}")
            so_far = self._books(world, [disaster], world.receiver.counts)
            self._say(report.row(f"{disaster.number} {disaster.kind.name}", so_far.total()))
            if world.fleet.failure is not None:
                raise world.fleet.failure

    async def _run_dry(self, world: World) -> None:
        """Let workers finish what is left, end them, and note the last results."""
        self.doing = "the queues to run dry"
        try:
            async with asyncio.timeout(DRY_SECONDS):
                await world.fleet.settle()
                await self._stop(world)
                while await self._left(world):
                    await world.fleet.start()
                    await self._emptied(world)
                    await self._stop(world)
                await world.queues.collect()
        except TimeoutError:
            left = await self._left(world)
            raise TortureError(f"waited {DRY_SECONDS:g} s for the queues to run dry: {left}") from None
        if world.receiver.strange:
            raise TortureError(f"the receiver took {world.receiver.strange} messages that are not what was published")

    async def _stop(self, world: World) -> None:
        """End all workers; returns when the broker has seen it, and so has what they gave back."""
        await world.fleet.stop()
        while await world.queues.consumers():  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(LOOK)

    async def _emptied(self, world: World) -> None:
        """Return when no queue holds a job."""
        left = await self._left(world)
        while left:
            await asyncio.sleep(LOOK)
            left = await self._left(world)

    async def _left(self, world: World) -> dict[str, int]:
        """Return which queues hold how many jobs."""
        while True:
            try:
                return await world.queues.waiting()
            except BrokerError:
                await asyncio.sleep(LOOK)

    def _books(self, world: World, disasters: Sequence[Disaster], taken: Counter[str]) -> Books:
        queues = world.queues
        published, unsure, poisoned = map(frozenset, (queues.published, queues.unsure, queues.poisoned))
        return Books(disasters, taken, published, queues.finals, queues.doubts, unsure, poisoned)
