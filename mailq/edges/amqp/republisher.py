"""What the broker does not take is offered again until it is taken: a full result queue gets room some time.

To end the connection instead would cost every open job a delivery, and after some of them the broker would put aside
what was sent and not told. The same holds for what it returns because a queue of mailq's own is gone or unbound: that
is mended, where mailq may, and else waits for people. Only one caller at a time offers again, with growing pauses,
because queues beside the full one take a publication each time; once it is taken the others follow without a pause.

A queue that only a job names is that job's trouble: what it does not take goes where its `fallback` says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mailq.core.broker.messages import Publication
from mailq.edges.amqp.publisher import NackedError, Publisher
from mailq.ports.broker import UnroutableError

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds before a refused publication is offered again, doubled each time."""

MOST_REASONS = 20
"""Different reasons that are told while something is not taken."""


class Republisher:
    """Publishes over a publisher.

    `changed` hears what is not taken, as event and detail, and of `taken` when nothing is left; `mend` is awaited
    before what no queue takes is offered again.
    """

    def __init__(
        self, publisher: Publisher, changed: Callable[[str, str], None], mend: Callable[[], Awaitable[None]]
    ) -> None:
        self._publisher = publisher
        self._changed = changed
        self._mend = mend
        self._turn = asyncio.Lock()
        self._pause = FIRST_PAUSE
        self._waiting = 0
        self._reasons: set[str] = set()

    @property
    def waiting(self) -> bool:
        """Tell whether something is not taken just now."""
        return self._waiting > 0

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when every one is confirmed, however long the broker does not take one.

        Raises:
            OversizedError: one is larger than the broker is known to take, and none was sent.
            UnencodableError: AMQP cannot carry one, and none was sent.
            BrokerError: the connection is lost.
        """
        try:
            await self._publisher.publish(publications)
        except (NackedError, UnroutableError) as trouble:
            await self._insist(trouble)

    async def _insist(self, trouble: NackedError | UnroutableError) -> None:
        left, elsewhere = self._sorted(trouble)
        if elsewhere:
            self._changed("rerouted", f"{trouble}; told on the result exchange instead")
            await self.publish(elsewhere)
        if not left:
            return
        self._waiting += 1
        if self._waiting == 1:
            self._pause = FIRST_PAUSE
        self._tell(trouble)
        returned = isinstance(trouble, UnroutableError)
        try:
            async with self._turn:
                while left:
                    if self._pause:
                        await self._publisher.pause(self._pause)
                        await self._publisher.renew()
                    if returned:
                        await self._mend()
                    left, returned = await self._again(left)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._reasons.clear()
                self._changed("taken", "")

    def _tell(self, trouble: NackedError | UnroutableError) -> None:
        """Tell each reason once, until everything is taken."""
        reason = str(trouble)
        if reason not in self._reasons and len(self._reasons) < MOST_REASONS:
            self._reasons.add(reason)
            self._changed("returned" if isinstance(trouble, UnroutableError) else "nacked", reason)

    async def _again(self, publications: Sequence[Publication]) -> tuple[list[Publication], bool]:
        """Offer once more, and return what is not taken once more, and whether because no queue takes it."""
        try:
            await self._publisher.publish(publications)
        except (NackedError, UnroutableError) as trouble:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            left, elsewhere = self._sorted(trouble)
            return [*left, *elsewhere], isinstance(trouble, UnroutableError)
        self._pause = 0.0
        return [], False

    @staticmethod
    def _sorted(trouble: NackedError | UnroutableError) -> tuple[list[Publication], list[Publication]]:
        """Return what is to be offered again as it is, and what goes elsewhere, each place once."""
        left, elsewhere = list(trouble.refused), {}
        for publication in trouble.returned if isinstance(trouble, UnroutableError) else ():
            if publication.fallback is None:
                left.append(publication)
            else:
                exchange, key, mandatory = publication.fallback
                elsewhere[exchange, key] = publication._replace(
                    exchange=exchange, routing_key=key, mandatory=mandatory, fallback=None
                )
        return left, list(elsewhere.values())
