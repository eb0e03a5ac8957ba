"""Webhooks: the life of `mailq webhooks`, from the result exchange to the queues of the endpoints.

The intake consumes its own queue, bound to the result exchange; it makes one event of each document, publishes it
to the queue of every endpoint that wants it, and acknowledges the document when the broker has confirmed them all. What
happens from there is each endpoint's own affair (`webhook_line`), so that a slow one holds up nobody else. Intake
and lines have a connection each and open it anew, with backoff, when it is lost; jobs and mail are never waited for.
No document and no endpoint ends the process: the intake puts a document aside that makes no event, and a part in
which an unforeseen exception occurs begins again after a pause while the other parts go on.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mailq.core.broker.messages import Consumed, Publication
from mailq.core.jobs.document import InvalidJobError, read_document
from mailq.core.webhooks.endpoint import Item, give_up
from mailq.core.webhooks.event_facts import Context
from mailq.core.webhooks.events import events_of, is_dry_run
from mailq.ports.broker import BrokerError
from mailq.ports.host import STOPS
from mailq.webhooks.endpoint_queue import EndpointQueue, EndpointRules, WebhookBroker, WebhookObserver

PREFETCH = 500
"""Documents of the intake in memory at most."""

AT_ONCE = 100
"""Documents whose events are confirmed together."""


@dataclass(frozen=True, slots=True)
class IntakeBounds:
    """How much is taken in and how long is waited; sizes in octets, times in seconds."""

    body: int = 100 * 1024 * 1024
    in_memory: int = 64 * 1024 * 1024
    reconnect_delay: float = 1
    reconnect_max: float = 30
    drain_timeout: float = 30


class Intake:
    """Makes events of documents and hands them to the endpoints' queues, in the order in which they came."""

    def __init__(
        self,
        lines: Mapping[str, EndpointQueue],
        context: Context,
        rules: EndpointRules,
        observer: WebhookObserver,
        bounds: IntakeBounds,
    ) -> None:
        self.queue = rules.prefix
        self._lines = tuple(lines.values())
        self._context = context
        self._rules = rules
        self._observer = observer
        self._bounds = bounds

    async def serve(self, broker: WebhookBroker, stopping: asyncio.Event) -> float:
        """Hand on events until told to stop; returns 0.

        Raises:
            BrokerError: the lane is lost.
        """
        inbox: list[Consumed] = []
        news = asyncio.Event()
        in_memory = 0

        def take(consumed: Consumed) -> None:
            nonlocal in_memory
            inbox.append(consumed)
            in_memory += len(consumed.body)
            broker.hold(held=in_memory > self._bounds.in_memory)
            news.set()

        ends = [asyncio.create_task(broker.closed()), asyncio.create_task(stopping.wait())]
        for end in ends:
            end.add_done_callback(lambda _: news.set())
        try:
            await broker.consume(PREFETCH, take)
            while not any(end.done() for end in ends):
                if not inbox:
                    news.clear()
                    await news.wait()
                    continue
                batch = inbox[:AT_ONCE]
                del inbox[:AT_ONCE]
                await self._publish(broker, [(consumed, self._publications(consumed)) for consumed in batch])
                for consumed in batch:
                    broker.ack(consumed.tag)
                    in_memory -= len(consumed.body)
                broker.hold(held=in_memory > self._bounds.in_memory)
        finally:
            for end in ends:
                end.cancel()
        if not stopping.is_set():
            raise await broker.closed()
        return 0.0

    async def _publish(self, broker: WebhookBroker, made: Sequence[tuple[Consumed, list[Publication]]]) -> None:
        """Publish the events of a batch; a document whose events cannot be published goes to the dead queue alone."""
        try:
            await broker.publish([publication for _, publications in made for publication in publications])
        except (BrokerError, *STOPS):
            raise
        except BaseException as error:  # noqa: BLE001 - a publication that cannot be sent ends no process
            if len(made) > 1:
                for each in made:
                    await self._publish(broker, [each])
            else:
                self._observer.bug("", error)
                await broker.publish([self._give_up(made[0][0], f"its event cannot be published: {_said(error)}")])

    def _publications(self, consumed: Consumed) -> list[Publication]:
        """Return what to publish for a document: its events, or the document itself for the dead queue."""
        try:
            return self._events(consumed)
        except InvalidJobError as trouble:
            return [self._give_up(consumed, trouble.reason, trouble.pointer)]
        except STOPS:
            raise
        except BaseException as error:  # noqa: BLE001 - a document that makes no event ends no process
            self._observer.bug("", error)
            return [self._give_up(consumed, f"cannot be made an event: {_said(error)}")]

    def _events(self, consumed: Consumed) -> list[Publication]:
        """Return a document's events for each endpoint that wants them, in their order.

        Raises:
            InvalidJobError: the document is none, or makes no event.
        """
        document = read_document(consumed.body, consumed.content_encoding, self._bounds.body)
        if is_dry_run(document):
            return []
        now = datetime.now(UTC)
        events = events_of(document, consumed.message_id, self._context, now)
        if not events:
            raise InvalidJobError("has no result of a delivery attempt", "/results")
        wanted = [(event, line) for event in events for line in self._lines if line.endpoint.wants(event)]
        made = int(now.timestamp())
        return [
            Item.made_of(event, made, again=consumed.redelivered).publication(line.queue, tries=0)
            for event, line in wanted
        ]

    def _give_up(self, consumed: Consumed, reason: str, pointer: str = "") -> Publication:
        self._observer.dead("", f"{pointer}: {reason}" if pointer else reason)
        return give_up(consumed, self._rules.dead, reason, pointer=pointer)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Webhooks:
    """Intake and lines together, until `stop` is called; `open_lane` connects for one of their queues."""

    def __init__(
        self,
        open_lane: Callable[[str], Awaitable[WebhookBroker]],
        intake: Intake,
        lines: Mapping[str, EndpointQueue],
        observer: WebhookObserver,
        bounds: IntakeBounds,
    ) -> None:
        self._open_lane = open_lane
        self._intake = intake
        self._lines = lines
        self._observer = observer
        self._bounds = bounds
        self._stopping = asyncio.Event()
        queues = (intake.queue, *(line.queue for line in lines.values()))
        self._troubles = dict.fromkeys(queues, "not connected to the broker yet")

    def stop(self) -> None:
        """Begin to drain: what is under way is finished, the rest stays with the broker."""
        self._stopping.set()

    @property
    def not_ready(self) -> str | None:
        """Why results are not taken or not told; None when they are. An endpoint's own trouble is no reason."""
        return "draining" if self._stopping.is_set() else next(iter(self._troubles.values()), None)

    async def run(self) -> None:
        """Work until `stop` is called, through every loss of the broker."""
        everything: list[Intake | EndpointQueue] = [self._intake, *self._lines.values()]
        parts = [asyncio.create_task(self._live(part)) for part in everything]
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stopping, *parts}, return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        _, late = await asyncio.wait(parts, timeout=self._bounds.drain_timeout)
        for part in late:
            part.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for part in parts:
            if not part.cancelled():
                part.result()

    async def _live(self, part: Intake | EndpointQueue) -> None:
        """Give a part one lane after the other; whatever one life of it ends with, another follows."""
        pause = self._bounds.reconnect_delay
        while not self._stopping.is_set():
            try:
                rest = await self._life(part)
            except BrokerError as trouble:
                self._lost(part.queue, "lost", trouble)
                rest = None
            except STOPS:
                raise
            except BaseException as error:  # noqa: BLE001 - trouble of one part is none of the others'
                self._troubles[part.queue] = f"{part.queue} met a bug: {_said(error)}"
                self._observer.bug(part.endpoint.name if isinstance(part, EndpointQueue) else "", error)
                rest = None
            await self._sleep(pause if rest is None else rest)
            pause = self._bounds.reconnect_delay if rest is not None else min(pause * 2, self._bounds.reconnect_max)

    async def _life(self, part: Intake | EndpointQueue) -> float | None:
        """Connect and let a part work until its lane or its endpoint has trouble.

        Returns:
            The seconds that the part rests, None if there was no connection.
        """
        try:
            broker = await self._open_lane(part.queue)
        except BrokerError as trouble:
            self._lost(part.queue, "retrying", trouble)
            return None
        try:
            if self._troubles.pop(part.queue, None):
                self._observer.hooks_broker(part.queue, "connected", "consuming")
            return await part.serve(broker, self._stopping)
        finally:
            await broker.close()

    def _lost(self, queue: str, event: str, trouble: BrokerError) -> None:
        self._troubles[queue] = str(trouble)
        self._observer.hooks_broker(queue, event, str(trouble))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
