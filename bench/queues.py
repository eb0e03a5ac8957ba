"""The broker's side of a bench: fill the outbox, look how far the worker is, time its results.

Speaks AMQP over the house's own connection, since that costs the least CPU here; what is measured is
the worker's process, not this one. While a drain is timed nothing is consumed: progress is the depth of
`results`, asked for by a passive declare.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import orjson
from pamqp import commands

from bench import BenchError
from bench.jobs import Jobs
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.methods import QueueDeclare
from mailq.edges.amqp.publisher import Publisher

BATCH = 250
"""Publications whose confirms are awaited together; two batches are in flight."""

PULSE = 0.01
"""Seconds between the small batches of paced publishing."""


class Queues:
    """The queues of one broker, empty but for what the bench and mailq put there."""

    def __init__(self, config: RabbitConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._control: Connection
        self._publisher: Publisher

    @classmethod
    @asynccontextmanager
    async def open(cls, config: RabbitConfig) -> AsyncIterator["Queues"]:
        """Connect and declare everything that mailq uses."""
        async with AsyncExitStack() as stack:
            queues = cls(config, stack)
            queues._control = await queues._connect()
            await topology.prepare(queues._control, config)
            queues._publisher = Publisher(await queues._connect(), config.confirm_timeout, lambda _reason: None)
            await queues._publisher.start()
            yield queues

    async def depth(self, queue: str) -> int:
        """Return the number of ready messages in a queue."""
        return await topology.count(self._control, queue)

    async def consumers(self) -> int:
        """Return the number of consumers of the outbox."""
        method = QueueDeclare(0, self._config.outbox, passive=True)
        answer = await self._control.call(method, commands.Queue.DeclareOk)
        return cast("commands.Queue.DeclareOk", answer).consumer_count or 0

    async def give_up(self) -> int:
        """Throw away the jobs that no worker has yet, and return how many they were."""
        purge = commands.Queue.Purge(0, self._config.outbox)
        answer = await self._control.call(purge, commands.Queue.PurgeOk)
        return cast("commands.Queue.PurgeOk", answer).message_count or 0

    async def results(self) -> int:
        """Return the number of results that wait."""
        return await self.depth(self._config.results)

    async def empty(self) -> None:
        """Throw away all results; none may be wrong.

        Raises:
            BenchError: some jobs failed or were put off, so that no figure would be true.
        """
        config = self._config
        wrong = {name: await self.depth(name) for name in (config.failures, config.retry, config.poison)}
        if any(wrong.values()):
            raise BenchError("not every job was delivered: " + ", ".join(f"{n} in {q}" for q, n in wrong.items() if n))
        for name in (config.results, config.success):
            await self._control.call(commands.Queue.Purge(0, name), commands.Queue.PurgeOk)

    async def fill(self, jobs: Iterable[tuple[str, bytes]]) -> None:
        """Publish as fast as the broker confirms, and return when it has confirmed all."""
        before: asyncio.Task[None] | None = None
        rest = iter(jobs)
        while batch := list(itertools.islice(rest, BATCH)):
            task = asyncio.create_task(self._publish(batch))
            if before is not None:
                await before
            before = task
        if before is not None:
            await before

    async def paced(self, jobs: Jobs, pace: float, seconds: float) -> None:
        """Publish `pace` jobs a second for so long, whether or not they are delivered meanwhile."""
        began, sent, total = time.monotonic(), 0, round(pace * seconds)
        async with asyncio.TaskGroup() as group:
            while sent < total:
                await asyncio.sleep(PULSE)
                due = min(total, round((time.monotonic() - began) * pace))
                if due > sent:
                    group.create_task(self._publish(jobs.take(due - sent)))
                    sent = due

    @asynccontextmanager
    async def latencies(self) -> AsyncIterator[list[float]]:
        """Consume `results` and give the list that grows with each one's milliseconds since its publication."""
        found: list[float] = []
        connection = await self._connect()

        def take(consumed: Consumed) -> None:
            found.append((time.time_ns() - orjson.loads(consumed.body)["t"]) / 1e6)
            consumer.ack(consumed.tag)

        consumer = Consumer(connection, self._config.results, 1000, take)
        await consumer.start()
        try:
            yield found
        finally:
            consumer.flush()
            await connection.close()

    async def _publish(self, jobs: Iterable[tuple[str, bytes]]) -> None:
        outbox = self._config.outbox
        await self._publisher.publish([Publication("", outbox, body, message_id=identity) for identity, body in jobs])

    async def _connect(self) -> Connection:
        config = self._config
        connection = await Connection.open(
            Address.of(config),
            "mailq bench",
            heartbeat=config.heartbeat,
            connect_timeout=config.connect_timeout,
            answer_timeout=config.confirm_timeout,
        )
        self._stack.push_async_callback(connection.close)
        return connection
