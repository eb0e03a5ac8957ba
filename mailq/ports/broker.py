"""The broker: consuming the outbox, publishing with confirms, and the errors of both."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from mailq.core.broker.messages import Consumed, Publication


class Publisher(Protocol):
    """Publishes to the broker, with confirms."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one.

        Raises:
            OversizedError: a publication is larger than the broker takes, and none was sent.
            UnencodableError: AMQP cannot carry a publication, and none was sent.
            BrokerError: connection lost, message returned (no such queue) or refused.
        """

    async def ensure_queue(self, name: str) -> bool:
        """Return whether a queue of that name accepts publications; the call may declare the queue."""


class Broker(Publisher, Protocol):
    """One connection to the broker with its channels; when any part ends, the whole connection ends."""

    async def consume(self, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume the outbox, and call `deliver` for each message."""

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""

    def acknowledged(self) -> asyncio.Future[bool]:
        """Return a future: True once the broker has all acknowledgements, False if the connection is lost first."""

    def requeue(self, tag: int) -> None:
        """Requeue a message in the outbox; the broker need not count a delivery."""

    def reject(self, tag: int) -> None:
        """Requeue a message in the outbox after an error of mailq; the broker counts a delivery."""

    @property
    def alive(self) -> bool:
        """True while the connection is open."""

    @property
    def silent(self) -> bool:
        """True if the connection was silent for so long that the broker may consider this process lost."""

    @property
    def recording(self) -> bool:
        """True while the broker records results; while it is False, no new message may be sent."""

    def hold(self, *, held: bool) -> None:
        """Stop receiving messages, or continue."""

    async def stop_consuming(self) -> None:
        """Stop consuming; messages consumed before may still be settled."""

    async def depth(self) -> int | None:
        """Return the number of ready messages in the outbox; None if the broker does not say."""

    async def closed(self) -> "BrokerError":
        """Wait until the connection is over and return why."""

    def fail(self, trouble: "BrokerError") -> None:
        """End the connection because of `trouble`; a second call does nothing."""

    async def close(self) -> None:
        """Close the connection."""


class BrokerError(Exception):
    """The broker did not do what was requested, or did not confirm it; no part of it may be assumed."""


class UnroutableError(BrokerError):
    """The broker returned the messages in `returned`, which no queue takes, and refused those in `refused`."""

    def __init__(self, text: str, returned: Sequence[Publication] = (), refused: Sequence[Publication] = ()) -> None:
        super().__init__(text)
        self.returned = returned
        self.refused = refused


class UnencodableError(Exception):
    """AMQP cannot carry a publication; nothing was sent, and the connection stays open."""


class OversizedError(Exception):
    """A publication is larger than the broker takes; nothing was sent, and the connection stays open."""

    def __init__(self, octets: int, most: int) -> None:
        super().__init__(f"RabbitMQ takes no message of {octets} octets: its max_message_size is {most}")
        self.most = most
