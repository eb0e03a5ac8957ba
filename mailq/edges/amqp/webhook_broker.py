"""The broker as webhooks see it: one queue consumed in order, and a way to publish.

A lane is one life of two connections: one consumes, one publishes. When it ends, what was not acknowledged
is back in the queue, in its old place. Here stands also which queues webhooks have: the intake bound to
the result exchange, one for each endpoint with its delay queues, and one for what is given up. The intake and
the endpoints' queues have a single active consumer: several processes stand by for each other, and order is kept.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Self

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.publisher import Publisher
from mailq.edges.amqp.topology import Queue
from mailq.ports.broker import BrokerError

PEEK_SECONDS = 5.0
"""How long a look at what waits in a delay queue may take."""

PEEKED = 20_000
"""Messages of a delay queue that are looked at."""

OUTCOMES = ("success.#", "failure.#", "retry.#")


def intake_queues(config: RabbitConfig, prefix: str) -> Iterator[Queue]:
    """Yield the queues that come before any endpoint."""
    yield Queue(f"{prefix}.dead", topology.lasting(config))
    yield Queue(prefix, _safe(config, f"{prefix}.dead") | {"x-single-active-consumer": True})


def endpoint_queues(config: RabbitConfig, prefix: str, name: str, steps: Iterable[str]) -> Iterator[Queue]:
    """Yield the queues of an endpoint, with a delay queue for each of these steps."""
    own = f"{prefix}.{name}"
    yield Queue(own, _safe(config, f"{prefix}.dead") | {"x-single-active-consumer": True})
    for step in dict.fromkeys(steps):
        yield Queue(topology.delay_queue(own, step), _safe(config, own) | {"x-message-ttl": STEPS[step] * 1000})


def _safe(config: RabbitConfig, dead: str) -> dict[str, object]:
    # Messages come back as often as an endpoint is tried.
    arguments = topology.lasting(config) | {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    if config.queue_type == "quorum":
        arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    return arguments


class AmqpWebhookBroker:
    """One life of the way to one queue; made by `open`."""

    def __init__(self, config: RabbitConfig, queue: str, consuming: Connection, publishing: Connection) -> None:
        self._config = config
        self._queue = queue
        self._consuming = consuming
        self._publishing = publishing
        self._publisher = Publisher(publishing, config.confirm_timeout, lambda _reason: None)
        self._consumer: Consumer | None = None

    @classmethod
    async def open(
        cls, config: RabbitConfig, queue: str, wanted: Iterable[Queue], bound: Iterable[tuple[str, str]] = ()
    ) -> Self:
        """Connect, declare or check what is wanted, and be ready to consume `queue` and to publish.

        Raises:
            BrokerError: no connection, no login, or the queues are not as they must be.
        """
        async with AsyncExitStack() as undo:
            consuming = await _connect(config, f"consuming {queue}")
            undo.push_async_callback(consuming.close)
            publishing = await _connect(config, f"publishing {queue}")
            undo.push_async_callback(publishing.close)
            await topology.establish(consuming, config, wanted, bound)
            lane = cls(config, queue, consuming, publishing)
            await lane._publisher.start()
            undo.pop_all()
            return lane

    async def consume(self, prefetch: int, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume; each message is handed to `deliver`, which must not raise.

        Raises:
            BrokerError: the connection is lost, or the queue cannot be consumed.
        """
        self._consumer = Consumer(self._consuming, self._queue, prefetch, deliver)
        await self._consumer.start()

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""
        if self._consumer is not None:
            self._consumer.ack(tag)

    def hold(self, *, held: bool) -> None:
        """Stop or go on to receive messages."""
        self._consuming.hold(held=held)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one.

        Raises:
            BrokerError: connection lost, or a publication returned or refused.
        """
        await self._publisher.publish(publications)

    async def peek(self, queue: str) -> list[Consumed]:
        """Return what waits in a queue, which stays there.

        Raises:
            BrokerError: the connection is lost, or there is no such queue.
        """
        if not await topology.count(self._publishing, queue):
            return []
        connection = await _connect(self._config, f"looking {queue}")
        try:
            return await _all_of(connection, queue)
        finally:
            await connection.close()

    async def closed(self) -> BrokerError:
        """Wait until a connection is over and return why."""
        ends = {self._consuming.closed, self._publishing.closed}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()

    async def close(self) -> None:
        """Send the last acknowledgements, say goodbye and close everything; safe to call twice."""
        if self._consumer is not None:
            self.hold(held=False)
            self._consumer.flush()
        await asyncio.gather(self._consuming.close(), self._publishing.close())


async def _all_of(connection: Connection, queue: str) -> list[Consumed]:
    count = min(await topology.count(connection, queue), PEEKED)
    found: list[Consumed] = []
    enough = asyncio.Event()

    def deliver(consumed: Consumed) -> None:
        found.append(consumed)
        if len(found) >= count:
            enough.set()

    if count:
        await Consumer(connection, queue, count, deliver).start()
        with contextlib.suppress(TimeoutError):  # some have left in the meantime
            await asyncio.wait_for(enough.wait(), PEEK_SECONDS)
    return found


async def _connect(config: RabbitConfig, role: str) -> Connection:
    return await Connection.open(
        Address.of(config),
        f"mailq {os.getpid()} {role}",
        heartbeat=config.heartbeat,
        connect_timeout=config.connect_timeout,
        answer_timeout=config.confirm_timeout,
    )
