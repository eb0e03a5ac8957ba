"""What the broker refuses is offered again until it is taken: a result queue that is full gets room some time.

To end the connection instead would cost every open job a delivery, and after some of them the broker would put aside
what was sent and not told. Only one caller at a time offers again, with growing pauses, because queues beside the full
one take a publication each time; once it is taken the others follow without a pause.
"""

import asyncio
from collections.abc import Callable, Sequence

from mailq.core.publication import Publication
from mailq.edges.amqp.publisher import NackedError, Publisher

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds before a refused publication is offered again, doubled each time."""


class Insistence:
    """Publishes over a publisher; `changed` hears of the first refusal, and None when nothing is refused any more."""

    def __init__(self, publisher: Publisher, changed: Callable[[str | None], None]) -> None:
        self._publisher = publisher
        self._changed = changed
        self._turn = asyncio.Lock()
        self._pause = FIRST_PAUSE
        self._waiting = 0

    @property
    def waiting(self) -> bool:
        """Tell whether something is refused just now."""
        return self._waiting > 0

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when every one is confirmed, however long the broker refuses one.

        Raises:
            OversizedError: one is larger than the broker is known to take, and none was sent.
            UnroutableError: no queue takes one of them.
            BrokerError: the connection is lost, or one cannot be encoded.
        """
        try:
            await self._publisher.publish(publications)
        except NackedError as refusal:
            await self._insist(refusal)

    async def _insist(self, refusal: NackedError) -> None:
        self._waiting += 1
        if self._waiting == 1:
            self._pause = FIRST_PAUSE
            self._changed(str(refusal))
        try:
            async with self._turn:
                refused = refusal.refused
                while refused:
                    if self._pause:
                        await self._publisher.pause(self._pause)
                        await self._publisher.renew()
                    refused = await self._again(refused)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._changed(None)

    async def _again(self, publications: Sequence[Publication]) -> Sequence[Publication]:
        """Offer once more, and return what is refused once more."""
        try:
            await self._publisher.publish(publications)
        except NackedError as refusal:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            return refusal.refused
        self._pause = 0.0
        return ()
