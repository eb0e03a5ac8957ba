"""The world of the torture: every server it needs, on loopback, in a directory of its own, ended whatever happens.

    producer ─► RabbitMQ ◄─ relay ◄─ mailq run, mailq run … ─► relay ─► receiver ─► accepted
                                            └► name server

Only workers go by the relays; the torture itself speaks to the broker directly.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mailq.config.rabbitmq import RabbitConfig
from mailq.testbed.free_port import free_port
from mailq.testbed.rabbitmq import PrivateRabbit
from mailq.torture import TortureError, disk, fleet
from mailq.torture.disk import Disk
from mailq.torture.fleet import Fleet
from mailq.torture.frames import AmqpTap
from mailq.torture.hostile import ATTACKS, Message
from mailq.torture.job_names import Names, address_of, domain_of
from mailq.torture.plan import Disaster, Job
from mailq.torture.queues import Queues
from mailq.torture.receiver import Receiver
from mailq.torture.relay import Relay
from mailq.torture.traps import Traps

RUNS = 2
"""How many `mailq run` there are at a time: jobs of a killed one meet workers that know nothing of it."""

LOOK = 0.02
"""Seconds between looks while something is waited for."""

PAYLOAD = 6 * 1024 * 1024
"""Octets of a message that fits into no buffer between worker and receiver."""


@dataclass(frozen=True, slots=True)
class World:
    """All servers, running."""

    rabbit: PrivateRabbit
    amqp: Relay
    smtp: Relay
    receiver: Receiver
    names: Names
    traps: Traps
    fleet: Fleet
    queues: Queues
    journal: Disk
    unnamed: bool

    async def publish(self, disaster: Disaster, pause: float) -> None:
        """Publish the jobs of a disaster, one after the other with a pause between, but for the late copies."""
        await self.smtp.listen(address_of(disaster.number))
        for job in disaster.jobs:
            large = disaster.kind.name == "kill-in-payload" and job is disaster.jobs[0]
            for number in range(job.copies):
                await self._publish(disaster, job, number, PAYLOAD if large else 2_000)
            await asyncio.sleep(pause)

    async def publish_late(self, disaster: Disaster) -> None:
        """Publish the late copies of a disaster's jobs."""
        await self.smtp.listen(address_of(disaster.number))
        for job in disaster.jobs:
            if job.late:
                await self._publish(disaster, job, job.copies, 2_000)

    async def _publish(self, disaster: Disaster, job: Job, number: int, size: int) -> None:
        plain = document(disaster.number, job, size, middle="y" if number % 2 else "x")
        if self.unnamed:
            del plain["id"]
        message = Message(orjson.dumps(plain), plain.get("id"))
        if job.hostile:
            message = ATTACKS[job.hostile](plain, message, disaster.jobs[0].identity)
        if job.grey:
            self.receiver.greylist[job.identity] += 1
        await self.queues.publish(job.publications[number], message)


@asynccontextmanager
async def opened(home: Path, processes: int, *, unnamed: bool) -> AsyncIterator[World]:
    """Start everything below a directory, and end everything; `unnamed` jobs have no identity."""
    async with AsyncExitStack() as stack:
        traps, names = Traps(), Names()
        await names.listen()
        stack.callback(names.close)
        smtp = Relay(free_port(), lambda: receiver.port, traps)
        stack.push_async_callback(smtp.close)
        receiver = Receiver(home / "accepted", traps, smtp.origin)
        stack.push_async_callback(receiver.close)
        await receiver.listen()
        rabbit = PrivateRabbit(home / "rabbitmq")
        stack.push_async_callback(asyncio.to_thread, rabbit.kill)  # its data is of no use any more
        await asyncio.to_thread(rabbit.start)
        amqp = Relay(free_port(), lambda: rabbit.port, traps, AmqpTap)
        stack.push_async_callback(amqp.close)
        await amqp.listen("127.0.0.1")
        journal = disk.make(home / "journal")
        stack.callback(journal.close)
        tables = fleet.tables(smtp_port=smtp.port, name_server=names.server, journal=journal.directory)
        url = f"amqp://guest:guest@127.0.0.1:{amqp.port}/"
        workers = Fleet(home, url, tables, size=RUNS, processes=processes)
        stack.push_async_callback(workers.close)
        queues = Queues(RabbitConfig.model_validate({**tables["rabbitmq"], "url": rabbit.url}))
        stack.push_async_callback(queues.close)
        await queues.open()
        await workers.start()
        yield World(rabbit, amqp, smtp, receiver, names, traps, workers, queues, journal, unnamed)


def document(number: int, job: Job, size: int, *, middle: str = "x") -> dict[str, Any]:
    """Return a job's JSON: its id stands in the envelope, in the recipient and in the message.

    Copies of equal `middle`, a letter, are equal octet for octet; others differ in the middle of the text alone.
    """
    identity = job.identity
    recipient = f"{identity}@{domain_of(number)}"
    header = (
        f"From: {identity}@from.torture.test\r\nTo: {recipient}\r\nX-Torture-Id: {identity}\r\nSubject: torture\r\n"
    )
    half = ("x" * 70 + "\r\n") * (size // 144 + 1)
    body = f"{half}{middle * 70}\r\n{half}"
    return {
        "id": identity,
        "envelope": f"{identity}@from.torture.test",
        "recipient": recipient,
        "mime": f"{header}\r\n{body}",
    }


async def until(true: Callable[[], bool], what: str, seconds: float) -> None:
    """Return when something holds.

    Raises:
        TortureError: it does not within so many seconds.
    """
    if not await came(true, seconds):
        raise TortureError(f"waited {seconds:g} s for {what}")


async def came(true: Callable[[], bool], seconds: float) -> bool:
    """Return whether something holds, as soon as it does or after so many seconds."""
    ends = asyncio.get_running_loop().time() + seconds
    while not true():
        if asyncio.get_running_loop().time() > ends:
            return False
        await asyncio.sleep(LOOK)
    return True
