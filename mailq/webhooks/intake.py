"""Webhooks: the life of `mailq webhooks`, from the result exchange to the queues of the endpoints.

The intake consumes its own queue, bound to the result exchange. From each document the intake makes events, and
publishes each to the queues of all endpoints that want it. The intake acknowledges the document after the broker has
confirmed all of them. Each endpoint has a queue of its own (`endpoint_queue`), so that a slow endpoint does not delay
others.

The intake and each endpoint queue have a connection to the broker each, and open a lost one anew, with back-off. No
document and no endpoint ends the process. A document that makes no event goes to the dead queue. After an unexpected
exception, the intake or endpoint queue starts again after a pause, and the others go on.
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
"""Number of documents that the intake has in memory at most."""

AT_ONCE = 100
"""Number of documents whose events are published and confirmed together."""


@dataclass(frozen=True, slots=True)
class IntakeBounds:
    """Limits on the memory of the intake and on how long it waits; sizes in octets, times in seconds."""

    body: int = 100 * 1024 * 1024
    in_memory: int = 64 * 1024 * 1024
    reconnect_delay: float = 1
    reconnect_max: float = 30
    drain_timeout: float = 30


class Intake:
    """Makes events of documents and publishes them to the endpoints' queues, in the order of the documents."""

    def __init__(
        self,
        endpoint_queues: Mapping[str, EndpointQueue],
        context: Context,
        rules: EndpointRules,
        observer: WebhookObserver,
        bounds: IntakeBounds,
    ) -> None:
        self.queue = rules.prefix
        self._endpoint_queues = tuple(endpoint_queues.values())
        self._context = context
        self._rules = rules
        self._observer = observer
        self._bounds = bounds

    async def serve(self, broker: WebhookBroker, stopping: asyncio.Event) -> float:
        """Publish events until `stopping` is set; return 0.

        Raises:
            BrokerError: the connection to the broker is lost.
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
        except BaseException as error:  # noqa: BLE001 - a publication must not end the process
            if len(made) > 1:
                for each in made:
                    await self._publish(broker, [each])
            else:
                self._observer.bug("", error)
                await broker.publish(
                    [self._dead_letter(made[0][0], f"its event cannot be published: {_described(error)}")]
                )

    def _publications(self, consumed: Consumed) -> list[Publication]:
        """Return the publications for a document: its events, or the document itself for the dead queue."""
        try:
            return self._events(consumed)
        except InvalidJobError as error:
            return [self._dead_letter(consumed, error.reason, error.pointer)]
        except STOPS:
            raise
        except BaseException as error:  # noqa: BLE001 - a document must not end the process
            self._observer.bug("", error)
            return [self._dead_letter(consumed, f"cannot be made an event: {_described(error)}")]

    def _events(self, consumed: Consumed) -> list[Publication]:
        """Return a document's events for each endpoint that wants them, in their order.

        Raises:
            InvalidJobError: the message is no document, or makes no event.
        """
        document = read_document(consumed.body, consumed.content_encoding, self._bounds.body)
        if is_dry_run(document):
            return []
        now = datetime.now(UTC)
        events = events_of(document, consumed.message_id, self._context, now)
        if not events:
            raise InvalidJobError("has no result of a delivery attempt", "/results")
        wanted = [
            (event, endpoint_queue)
            for event in events
            for endpoint_queue in self._endpoint_queues
            if endpoint_queue.endpoint.wants(event)
        ]
        made = int(now.timestamp())
        return [
            Item.made_of(event, made, again=consumed.redelivered).publication(endpoint_queue.queue, tries=0)
            for event, endpoint_queue in wanted
        ]

    def _dead_letter(self, consumed: Consumed, reason: str, pointer: str = "") -> Publication:
        self._observer.dead("", f"{pointer}: {reason}" if pointer else reason)
        return give_up(consumed, self._rules.dead, reason, pointer=pointer)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Webhooks:
    """Runs the intake and the endpoint queues until `stop`; `open_broker` connects for one of their queues."""

    def __init__(
        self,
        open_broker: Callable[[str], Awaitable[WebhookBroker]],
        intake: Intake,
        endpoint_queues: Mapping[str, EndpointQueue],
        observer: WebhookObserver,
        bounds: IntakeBounds,
    ) -> None:
        self._open_broker = open_broker
        self._intake = intake
        self._endpoint_queues = endpoint_queues
        self._observer = observer
        self._bounds = bounds
        self._stopping = asyncio.Event()
        queues = (intake.queue, *(endpoint_queue.queue for endpoint_queue in endpoint_queues.values()))
        self._problems = dict.fromkeys(queues, "not connected to the broker yet")

    def stop(self) -> None:
        """Begin to drain: running requests are finished, and other events stay in their queues."""
        self._stopping.set()

    @property
    def not_ready(self) -> str | None:
        """The reason why a queue is not consumed; None if all are. A failure of an endpoint is no reason."""
        return "draining" if self._stopping.is_set() else next(iter(self._problems.values()), None)

    async def run(self) -> None:
        """Work until `stop` is called, through every loss of the broker."""
        everything: list[Intake | EndpointQueue] = [self._intake, *self._endpoint_queues.values()]
        parts = [asyncio.create_task(self._serve(part)) for part in everything]
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

    async def _serve(self, part: Intake | EndpointQueue) -> None:
        """Serve the intake or an endpoint queue over one connection after another, whatever ends each."""
        pause = self._bounds.reconnect_delay
        while not self._stopping.is_set():
            try:
                rest = await self._serve_once(part)
            except BrokerError as error:
                self._lost(part.queue, "lost", error)
                rest = None
            except STOPS:
                raise
            except BaseException as error:  # noqa: BLE001 - an error in one part must not end the others
                self._problems[part.queue] = f"{part.queue} met a bug: {_described(error)}"
                self._observer.bug(part.endpoint.name if isinstance(part, EndpointQueue) else "", error)
                rest = None
            await self._sleep(pause if rest is None else rest)
            pause = self._bounds.reconnect_delay if rest is not None else min(pause * 2, self._bounds.reconnect_max)

    async def _serve_once(self, part: Intake | EndpointQueue) -> float | None:
        """Connect, and serve the intake or an endpoint queue until its connection or its endpoint fails.

        Returns:
            The seconds of its pause; None without a connection.
        """
        try:
            broker = await self._open_broker(part.queue)
        except BrokerError as error:
            self._lost(part.queue, "retrying", error)
            return None
        try:
            if self._problems.pop(part.queue, None):
                self._observer.hooks_broker(part.queue, "connected", "consuming")
            return await part.serve(broker, self._stopping)
        finally:
            await broker.close()

    def _lost(self, queue: str, event: str, error: BrokerError) -> None:
        self._problems[queue] = str(error)
        self._observer.hooks_broker(queue, event, str(error))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
