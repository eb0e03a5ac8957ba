"""What each kind of disaster does. Every function publishes the jobs of its disaster, strikes, and repairs.

Most strike while a job stands just where it hurts: a trap holds it there. Which function does which kind stands in
`ACTS`; kinds of kills are made of the points of `plan`.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random

from mailq.torture import TortureError, plan
from mailq.torture.fleet import HEARTBEAT
from mailq.torture.plan import Disaster
from mailq.torture.processes import send
from mailq.torture.relay import Relay
from mailq.torture.traps import Trap
from mailq.torture.world import LOOK, World, came, until

PACE = 0.005
"""Seconds between two jobs of a disaster."""

SLOW_PACE = 0.5
"""The same where the disaster itself takes seconds."""

MOMENT = 1.0
"""Seconds for which things stand still."""

ABSENCE = 2.5 * HEARTBEAT
"""Seconds of a stop after which RabbitMQ has closed the connections and given the jobs to others."""

RESTART = 60.0
"""Seconds in which a new process is there: its supervisor may wait for half of them."""

PATIENCE = 30.0
"""Seconds in which a job must reach the place where it is waited for."""

_TRIES = 10
"""How often the worker behind a trap may have died already, of an earlier disaster."""

_FOR_ANYBODY = ("intro", "before-ehlo", "after-ehlo")
"""Points that a session passes before it is about a job."""

_MIDWAY = ("before-mailfrom", "before-data", "before-answer", "publish", "confirm", "ack")
"""Where the job stands when the way to the broker is troubled."""

_DELAY = 0.05

Act = Callable[[World, Disaster], Awaitable[None]]


async def strike(world: World, disaster: Disaster) -> None:
    """Let a disaster happen; it is over when this returns, its jobs may still be under way.

    Raises:
        TortureError: something that had to happen did not.
    """
    await ACTS[disaster.kind.name](world, disaster)


async def _kill(world: World, disaster: Disaster) -> None:
    """Kill the worker whose session or connection stands at the point."""
    await _kill_at(world, disaster, disaster.kind.name.removeprefix("kill-"))


async def _kill_at(world: World, disaster: Disaster, point: str, before: Callable[[], None] | None = None) -> None:
    """Publish, and kill the worker that stands at the point, with the first job if it is about a job.

    `before` is done right before the kill.
    """
    identity = None if point in _FOR_ANYBODY else disaster.jobs[0].identity
    publishing = asyncio.create_task(world.publish(disaster, PACE))
    try:
        for _ in range(_TRIES):
            with world.traps.trap(point, identity) as trap:
                port = await _sprung(trap, f"job {disaster.jobs[0].identity} to stand at {point}")
                pid = world.fleet.processes.owner(port)
                if pid is not None and before is not None:
                    before()
                killed = pid is not None and world.fleet.kill(pid)
                trap.drop()
            if killed:
                break
        else:
            raise TortureError(f"no worker found behind the sessions that stood at {point}")
        await publishing
    finally:
        publishing.cancel()


async def _drain(world: World, disaster: Disaster) -> None:
    await _replace(world, disaster, signal.SIGTERM)


async def _kill_supervisor(world: World, disaster: Disaster) -> None:
    await _replace(world, disaster, signal.SIGKILL)


async def _replace(world: World, disaster: Disaster, number: signal.Signals) -> None:
    """End the `mailq run` whose session stands between dot and answer, and let that go on; another takes over."""
    await world.fleet.begin()
    point, identity = "before-answer", disaster.jobs[0].identity
    publishing = asyncio.create_task(world.publish(disaster, PACE))
    try:
        with world.traps.trap(point, identity) as trap:
            port = await _sprung(trap, f"job {identity} to stand at {point}")
            if not world.fleet.end(port, number):
                raise TortureError(f"no `mailq run` found behind the session that stood at {point}")
        await publishing
    finally:
        publishing.cancel()
    await world.fleet.settle()


async def _stop(world: World, disaster: Disaster) -> None:
    """Stop a worker for a moment; what it holds waits."""
    workers = world.fleet.processes.workers()
    pid = Random(disaster.dice).choice(workers)  # noqa: S311 - to be repeated
    async with _midway(world, disaster):
        send(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(MOMENT)
    finally:
        send(pid, signal.SIGCONT)


async def _stop_long(world: World, disaster: Disaster) -> None:
    """Stop the worker that holds the first job, and let go on what held it, until the broker has given it up."""
    async with _midway(world, disaster) as trap:
        pid = world.fleet.processes.owner(trap.sprung.result())
        stopped = pid is not None and send(pid, signal.SIGSTOP)
    if pid is None or not stopped:
        raise TortureError("no worker found behind the job that was held")
    try:
        await asyncio.sleep(ABSENCE)
    finally:
        send(pid, signal.SIGCONT)


async def _broker_kill(world: World, disaster: Disaster) -> None:
    async with _midway(world, disaster, SLOW_PACE) as trap:
        await asyncio.to_thread(world.rabbit.kill)
        trap.release()  # a receiver that answers late is another disaster
        await asyncio.to_thread(world.rabbit.start)


async def _close_all(world: World, disaster: Disaster) -> None:
    async with _midway(world, disaster, SLOW_PACE):
        await asyncio.to_thread(world.rabbit.ctl, "close_all_connections", "torture")


async def _close_one(world: World, disaster: Disaster) -> None:
    pids: list[str] = []
    while not pids:  # after a disaster before this one they may all be about to connect
        listed = await asyncio.to_thread(world.rabbit.ctl, "list_connections", "pid", "client_properties")
        pids = [line.split()[0] for line in listed.splitlines() if '"mailq ' in line and '"mailq torture' not in line]
    pid = Random(disaster.dice).choice(sorted(pids))  # noqa: S311 - to be repeated
    async with _midway(world, disaster, SLOW_PACE):
        await asyncio.to_thread(world.rabbit.ctl, "close_connection", pid, "torture")


def _cut(side: Callable[[World], Relay]) -> Act:
    async def act(world: World, disaster: Disaster) -> None:
        async with _midway(world, disaster):
            side(world).cut()

    return act


def _stall(side: Callable[[World], Relay]) -> Act:
    async def act(world: World, disaster: Disaster) -> None:
        async with _midway(world, disaster):
            side(world).stall()
        await asyncio.sleep(MOMENT)
        side(world).resume()

    return act


def _delay(side: Callable[[World], Relay]) -> Act:
    async def act(world: World, disaster: Disaster) -> None:
        side(world).delay(_DELAY)
        await world.publish(disaster, PACE)
        await came(lambda: all(job.publications[0] in world.queues.finals for job in disaster.jobs), MOMENT)
        side(world).resume()

    return act


def _truncate(side: Callable[[World], Relay]) -> Act:
    async def act(world: World, disaster: Disaster) -> None:
        relay = side(world)
        before = relay.truncated
        async with _midway(world, disaster):
            relay.truncate()
        await came(lambda: relay.truncated > before, MOMENT)
        relay.resume()

    return act


async def _amqp_silence(world: World, disaster: Disaster) -> None:
    """Let nothing pass until a worker has given up its connections and tries new ones."""
    relay = world.amqp
    async with _midway(world, disaster):
        relay.stall()
        before = relay.accepted
    try:
        await until(lambda: relay.accepted > before, "a worker to give up a silent broker", PATIENCE)
    finally:
        relay.resume()


async def _smtp_silence(world: World, disaster: Disaster) -> None:
    """Do not answer the final dot until the worker has told that it is in doubt."""
    identity = disaster.jobs[0].identity
    with world.traps.trap("before-answer", identity) as trap:
        async with asyncio.TaskGroup() as group:
            group.create_task(world.publish(disaster, PACE))
            await _sprung(trap, f"job {identity} to stand at before-answer")
        name = disaster.jobs[0].publications[0]
        await until(lambda: world.queues.doubts[name] > 0, f"job {identity} to be in doubt", PATIENCE)


async def _receiver_crash(world: World, disaster: Disaster) -> None:
    async with _midway(world, disaster, points=("before-answer",)):
        await world.receiver.crash()
        await world.receiver.listen()


async def _dns_silence(world: World, disaster: Disaster) -> None:
    before = world.names.unanswered
    world.names.silent = True
    try:
        await world.publish(disaster, PACE)
        await until(lambda: world.names.unanswered > before, "a question to the name server", PATIENCE)
        await asyncio.sleep(MOMENT)
    finally:
        world.names.silent = False


async def _disk_full(world: World, disaster: Disaster) -> None:
    """Kill a worker while the disk is full; its successor must say that it cannot write, and recover by itself."""
    await world.fleet.settle()  # a worker of a `mailq run` that is being replaced would have no successor
    try:
        await _kill_at(world, disaster, "before-data", world.journal.fill)
        await _told(world, "a worker to say that it cannot write its journal", RESTART, world.journal.fill)
    finally:
        world.journal.free()
    await _told(world, "all workers to write their journals again", PATIENCE)


async def _told(world: World, what: str, seconds: float, fill: Callable[[], None] | None = None) -> None:
    """Return when the workers say that, together; with `fill` that one cannot write, for they may give room back."""
    try:
        async with asyncio.timeout(seconds):
            while await world.fleet.unwritable() is not (fill is not None):
                if fill is not None:
                    fill()
                await asyncio.sleep(LOOK)
    except TimeoutError:
        raise TortureError(f"waited {seconds:g} s for {what}") from None


@asynccontextmanager
async def _midway(
    world: World, disaster: Disaster, pace: float = PACE, points: tuple[str, ...] = _MIDWAY
) -> AsyncIterator[Trap]:
    """Publish, and do what is to be done while the first job is held at one of the points."""
    point = Random(disaster.dice).choice(points)  # noqa: S311 - to be repeated
    identity = disaster.jobs[0].identity
    publishing = asyncio.create_task(world.publish(disaster, pace))
    try:
        with world.traps.trap(point, identity) as trap:
            await _sprung(trap, f"job {identity} to stand at {point}")
            yield trap
        await publishing
    finally:
        publishing.cancel()


async def _sprung(trap: Trap, what: str) -> int:
    await until(trap.sprung.done, what, PATIENCE)
    return trap.sprung.result()


def _amqp(world: World) -> Relay:
    return world.amqp


def _smtp(world: World) -> Relay:
    return world.smtp


ACTS: Mapping[str, Act] = {
    **{f"kill-{point}": _kill for point in plan.SMTP_POINTS + plan.AMQP_POINTS},
    "drain": _drain,
    "kill-supervisor": _kill_supervisor,
    "stop": _stop,
    "stop-long": _stop_long,
    "broker-kill": _broker_kill,
    "broker-close-all": _close_all,
    "broker-close-one": _close_one,
    "amqp-cut": _cut(_amqp),
    "amqp-stall": _stall(_amqp),
    "amqp-silence": _amqp_silence,
    "amqp-delay": _delay(_amqp),
    "amqp-truncate": _truncate(_amqp),
    "smtp-cut": _cut(_smtp),
    "smtp-stall": _stall(_smtp),
    "smtp-silence": _smtp_silence,
    "smtp-delay": _delay(_smtp),
    "smtp-truncate": _truncate(_smtp),
    "receiver-crash": _receiver_crash,
    "dns-silence": _dns_silence,
    "disk-full": _disk_full,
}
"""What does each kind of `plan.KINDS`."""
