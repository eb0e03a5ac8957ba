"""The broker: consuming the outbox, publishing with confirms, and the errors of both."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from mailq.core.broker.messages import Consumed, Publication


class Publisher(Protocol):
    """The way back to the broker."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one.

        Raises:
            OversizedError: one is larger than the broker takes, and none was sent.
            UnencodableError: AMQP cannot carry one, and none was sent.
            BrokerError: connection lost, message returned (no such queue) or refused.
        """

    async def ensure_queue(self, name: str) -> bool:
        """Tell whether a queue of that name can be published to (it may be declared for it)."""


class Broker(Publisher, Protocol):
    """One life of the connection to the broker: when any part of it ends, all of it is over."""

    async def consume(self, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume the outbox; each message is handed to `deliver`."""

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""

    def acknowledged(self) -> asyncio.Future[bool]:
        """Return what tells when the broker has all acknowledgements made so far; False: it was lost before."""

    def requeue(self, tag: int) -> None:
        """Give a message back to the outbox, undamaged: the broker need not count a delivery."""

    def reject(self, tag: int) -> None:
        """Give a message back to the outbox after mailq failed on it: the broker counts a delivery."""

    @property
    def alive(self) -> bool:
        """Tell whether the connection is not over yet."""

    @property
    def silent(self) -> bool:
        """Tell whether nothing was heard for so long that the broker may take this process for lost."""

    @property
    def recording(self) -> bool:
        """Tell whether results get recorded at the moment; while they do not, nothing new may be sent."""

    def hold(self, *, held: bool) -> None:
        """Stop or go on to receive messages."""

    async def stop_consuming(self) -> None:
        """Consume no more; what was delivered may still be settled."""

    async def depth(self) -> int | None:
        """Return the number of ready messages in the outbox, None if it cannot be told."""

    async def closed(self) -> "BrokerError":
        """Wait until the connection is over and return why."""

    def fail(self, trouble: "BrokerError") -> None:
        """End the connection because of `trouble`; safe to call twice."""

    async def close(self) -> None:
        """Close what is open."""


class BrokerError(Exception):
    """The broker could not do what was asked; nothing may be taken as done."""


class UnroutableError(BrokerError):
    """Published messages were returned, these: no queue takes them; others of the same call may have been refused."""

    def __init__(self, text: str, returned: Sequence[Publication] = (), refused: Sequence[Publication] = ()) -> None:
        super().__init__(text)
        self.returned = returned
        self.refused = refused


class UnencodableError(Exception):
    """AMQP cannot carry a publication; nothing was sent, and the connection is as it was."""


class OversizedError(Exception):
    """A publication is larger than the broker takes; nothing was sent, and the connection is as it was."""

    def __init__(self, octets: int, most: int) -> None:
        super().__init__(f"RabbitMQ takes no message of {octets} octets: its max_message_size is {most}")
        self.most = most
