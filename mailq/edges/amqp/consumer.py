"""Consuming the outbox: deliveries in, acknowledgements out.

Acknowledgements made within one turn of the event loop leave together, and a run of them that
reaches back to the oldest open delivery as a single frame. A tag is settled once; settling it again
is ignored, because RabbitMQ would close the channel for it and give all jobs out anew. Acknowledgements have no
answer, but a channel works in order: who wants to know whether they arrived asks for something that has one.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from pamqp import commands
from pamqp import frame as codec

from mailq.core.broker.messages import Consumed
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.frames import Event, reject_frame, settle_frame
from mailq.edges.amqp.methods import BasicConsume
from mailq.ports.broker import BrokerError

_TAG = "mailq"
"""The consumer's name: one per channel, so it may be the same everywhere."""

CANCELS_LATE = (4, 3)
"""Since this version RabbitMQ ends the consumer that acknowledges too late, and no longer its channel."""


_COUNTS_APART = (4, 3)
"""Since this version RabbitMQ counts how often a message was given out and how often that failed, in two headers."""


class ConsumingEndedError(BrokerError):
    """The broker ended consuming by itself."""


class Consumer:
    """Consumes one queue over one connection."""

    def __init__(self, connection: Connection, queue: str, prefetch: int, deliver: Callable[[Consumed], None]) -> None:
        self._connection = connection
        self._queue = queue
        self._prefetch = prefetch
        self._deliver = deliver
        self._open: dict[int, None] = {}
        self._acked: set[int] = set()
        self._asked: deque[asyncio.Future[bool]] = deque()
        self._loop = asyncio.get_running_loop()
        self._counts_apart = connection.version >= _COUNTS_APART
        connection.receiver = self

    async def start(self) -> None:
        """Begin to consume, `prefetch` unacknowledged messages at most.

        Raises:
            BrokerError: the connection is lost, or the queue does not exist or may not be read.
        """
        await self._connection.call(self._qos(), commands.Basic.QosOk)
        await self._connection.call(BasicConsume(0, self._queue, _TAG), commands.Basic.ConsumeOk)

    async def stop(self) -> None:
        """Take no more messages; those on the way still arrive before this returns.

        Raises:
            BrokerError: the connection is lost.
        """
        await self._connection.call(commands.Basic.Cancel(_TAG), commands.Basic.CancelOk)

    def ack(self, tag: int) -> None:
        """Tell the broker that a message is done."""
        if tag not in self._open or tag in self._acked:
            return
        if not self._acked:
            self._loop.call_soon(self.flush)
        self._acked.add(tag)

    def acknowledged(self) -> asyncio.Future[bool]:
        """Return what is true when the broker has what was acknowledged so far, false when that cannot be told."""
        self.flush()
        answer = self._loop.create_future()
        if self._connection.closed.done():
            answer.set_result(False)
        else:
            self._asked.append(answer)
            self._connection.send(codec.marshal(self._qos(), 1))  # it changes nothing for a consumer that there is
        return answer

    def requeue(self, tag: int) -> None:
        """Give a message back to the queue; since RabbitMQ 4.3 basic.nack does not count as a delivery."""
        self._return(tag, settle_frame(tag, ack=False))

    def reject(self, tag: int) -> None:
        """Give a message back to the queue; every version counts basic.reject as a delivery."""
        self._return(tag, reject_frame(tag))

    def _return(self, tag: int, frame: bytes) -> None:
        if tag in self._open and tag not in self._acked:
            del self._open[tag]
            self._connection.send(frame)

    def flush(self) -> None:
        """Send the acknowledgements that were made."""
        acked, self._acked = self._acked, set()
        last = 0
        for tag in self._open:
            if tag not in acked:
                break
            last = tag
        if last:
            self._connection.send(settle_frame(last, ack=True, multiple=True))
        for tag in sorted(acked):
            del self._open[tag]
            if tag > last:
                self._connection.send(settle_frame(tag, ack=True))

    def _qos(self) -> commands.Basic.Qos:
        # Per consumer: quorum queues know no global limit.
        return commands.Basic.Qos(0, self._prefetch, False)

    # The receiver of the connection.

    def received(self, event: Event) -> None:
        """Hand on a delivery; a consumer that the broker ends is the end of the connection."""
        if isinstance(event, Consumed):
            self._open[event.tag] = None
            self._deliver(_genuine(event) if event.redelivered and self._counts_apart else event)
        elif isinstance(event, commands.Basic.QosOk):
            self._answer(arrived=True)
        elif isinstance(event, commands.Basic.Cancel):
            self._connection.fail(ConsumingEndedError(_ended(self._queue, self._connection.server)))

    def blocked(self, reason: str | None) -> None:
        """Nothing is published here, so nothing is held up."""

    def lost(self, _error: BrokerError) -> None:
        """Forget what was open; the broker gives it out again."""
        self._open.clear()
        self._acked.clear()
        while self._asked:
            self._answer(arrived=False)

    def _answer(self, *, arrived: bool) -> None:
        answer = self._asked.popleft() if self._asked else None
        if answer is not None and not answer.done():
            answer.set_result(arrived)


def _ended(queue: str, server: str) -> str:
    """Return why a broker of that version may have ended consuming; the notice itself gives no reason."""
    version = tuple(int(part) for part in server.split(".")[:2] if part.isdecimal())
    causes = "was deleted, or its leader was lost"
    if version >= CANCELS_LATE:
        causes = (
            "was deleted, its leader was lost, or a job was not acknowledged within RabbitMQ's consumer_timeout"
            " (30 min); the broker's log tells which"
        )
    return f"RabbitMQ ended consuming: queue {queue!r} {causes}"


def _genuine(consumed: Consumed) -> Consumed:
    """Return a message that came again with a delivery count that the broker can mean.

    RabbitMQ 4.3 writes `x-delivery-count` only after a delivery failed. Until then a producer's stands in its place.
    """
    acquired, count = consumed.headers.get("x-acquired-count"), consumed.headers.get("x-delivery-count")
    most = acquired if isinstance(acquired, int) else 0
    if not isinstance(count, int) or count <= most:
        return consumed
    return consumed._replace(headers={**consumed.headers, "x-delivery-count": most})
