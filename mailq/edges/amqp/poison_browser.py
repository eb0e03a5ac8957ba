"""A queue where messages were put aside as an operator walks through it: look at each, keep, move or drop it.

What is not settled goes back to its old place when the walk ends, however it ends: nothing is
acknowledged that was not asked for, and a moved message only after the broker has confirmed its
copy. So whoever is interrupted may find a message in both queues, never in none.
Which message is meant, and what is shown of it, is the command's affair (`cli.dead_letters`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailq.core.broker.application_headers import application, passed_on
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.broker.provenance import HEADER, Outbox
from mailq.edges.amqp import topology
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError

QUIET = 3.0
"""Seconds without a message after which no more come: somebody else holds them."""


class Walk:
    """One look at the messages of a queue, from its head; made by `walk`.

    It meets at most as many messages as there were in the beginning: what is requeued and comes back as
    poison is left for another walk. `more` tells whether the limit leaves any out.
    """

    def __init__(
        self, consumer: Consumer, arrivals: "asyncio.Queue[Consumed | BrokerError]", count: int, *, more: bool
    ) -> None:
        self.more = more
        self._count = count
        self._consumer = consumer
        self._arrivals = arrivals

    async def messages(self) -> AsyncIterator[Consumed]:
        """Yield the messages in order.

        Raises:
            BrokerError: the connection is lost.
        """
        for _ in range(self._count):
            try:
                async with asyncio.timeout(QUIET):
                    arrival = await self._arrivals.get()
            except TimeoutError:
                return
            if isinstance(arrival, BrokerError):
                raise arrival
            yield arrival

    def drop(self, message: Consumed) -> None:
        """Remove a message for good."""
        self._consumer.ack(message.tag)

    async def move(self, message: Consumed, publisher: Publisher, copy: Publication) -> None:
        """Publish a message's copy, and remove the message here once that is confirmed.

        Raises:
            BrokerError: it is not confirmed; the message stays.
        """
        await publisher.publish([copy])
        self._consumer.ack(message.tag)


@asynccontextmanager
async def walk(connection: Connection, queue: str, limit: int | None, window: int) -> AsyncIterator[Walk]:
    """Give a walk over the first `limit` messages, None: all; at most `window` of them unsettled.

    Raises:
        BrokerError: there is no such queue, it may not be read, or the connection is lost.
    """
    count = await topology.count(connection, queue)
    arrivals: asyncio.Queue[Consumed | BrokerError] = asyncio.Queue()
    consumer = Consumer(connection, queue, window, arrivals.put_nowait)
    connection.closed.add_done_callback(lambda closed: arrivals.put_nowait(closed.result()))
    if count:
        await consumer.start()
    try:
        most = count if limit is None else min(count, limit)
        yield Walk(consumer, arrivals, most, more=most < count)
    finally:
        consumer.flush()


def revived(message: Consumed, outbox: Outbox) -> Publication:
    """Return the publication that makes a poison message a job again, its octets as they are.

    What mailq and the broker wrote into its headers (`x-…`) is gone, but for its mark, a note that it was here, and
    which headers were lost; the producer's headers that steer nothing stay.
    """
    publication = Publication(
        "",
        outbox.name,
        message.body,
        message_id=message.message_id,
        content_type=None,
        content_encoding=message.content_encoding,
        priority=message.priority,
        headers={**passed_on(message.headers), HEADER: outbox.read(message)._replace(requeued=True)},
        application=application(message),
    )
    return outbox.signed(publication)
