"""The queue of one endpoint: events in, requests out, in the order of each job's events.

Up to `concurrency` requests run at once, never two with events of one job. An event that the endpoint refuses waits in
a delay queue, and later events of its job wait behind it. Any other failure is a failure of the endpoint. The endpoint
queue then closes its connection, so that the broker requeues the unanswered events in their old places. After a pause
that doubles, a single request tries the first event. The number of requests grows by one with each success. So no event
overtakes another of its job, no event is lost, and a recovered endpoint is not flooded.

An exception in the HTTP client counts as a refusal of the event. An event that cannot be handled goes to the dead
queue. An endpoint that is gone (410) gets no more requests: its events go to the dead queue when they are too old.

Each connection begins with a look-up of the waiting events in the delay queues; memory holds them from then on.
`core.webhooks.endpoint` decides what an answer means, `intake` connects, and the edge sends requests.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from time import monotonic, time
from typing import Protocol

from mailq.core.bounded import BoundedDict
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.delay_queues import STEPS, delay_step
from mailq.core.webhooks.endpoint import Answer, AnswerMeaning, Endpoint, Item, Wait, Waits, give_up, rest
from mailq.ports.broker import BrokerError
from mailq.ports.host import STOPS

GRACE = 300.0
"""Seconds after its time until an event in a delay queue holds later events of its job up no longer."""

STREAK = 10
"""Number of refusals in a row, without a success, that count as a failure of the endpoint."""

MOST_IN_MEMORY = 2000
"""Events of an endpoint in memory at most, or one batch if that is more."""

LONGEST_REST = 3600.0
"""Seconds until the queue of an endpoint that is gone is checked again, if no event is too old earlier."""

SHORTEST_REST = 1.0
"""Least number of seconds until that check."""

JITTER = 0.1
"""Largest share by which a pause is lengthened."""

NO_EVENT = "is no event made by mailq"
"""Reason to dead-letter a message in an endpoint's queue that mailq did not publish."""


class WebhookBroker(Protocol):
    """One connection to the broker for one queue."""

    async def consume(self, prefetch: int, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume, and call `deliver` for each message."""

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""

    def hold(self, *, held: bool) -> None:
        """Stop receiving messages, or continue."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one; raises BrokerError."""

    async def peek(self, queue: str) -> list[Consumed]:
        """Return the messages of a queue, which keeps them; raises BrokerError."""

    async def closed(self) -> BrokerError:
        """Wait until the connection is over and return why."""

    async def close(self) -> None:
        """Close the connection; the broker requeues unacknowledged messages in their old places."""


class Post(Protocol):
    """Sends one request; an exception counts as a refusal of the event."""

    async def __call__(self, body: bytes, name: str, event: str | None) -> Answer:
        """Post a body; `name` is the event's, or `batch`; `event` is the identity of a single event."""


class WebhookObserver(Protocol):
    """Receives all events of webhooks; the methods must not raise; endpoints have their configured names."""

    def answered(self, endpoint: str, answer: Answer, events: int, seconds: float) -> None:
        """A request with so many events ended, with or without an answer, after so many seconds."""

    def paused(self, endpoint: str, seconds: float, answer: Answer) -> None:
        """An endpoint has failed, and gets no request for so many seconds."""

    def resumed(self, endpoint: str) -> None:
        """An endpoint that had failed accepts events again."""

    def gone(self, endpoint: str) -> None:
        """An endpoint wants no more events (410)."""

    def dead(self, endpoint: str, reason: str) -> None:
        """A message went to the dead queue; `endpoint` is empty for a message of the intake."""

    def bug(self, endpoint: str, error: BaseException) -> None:
        """An exception occurred that the code does not expect; `endpoint` is empty in the intake."""

    def hooks_broker(self, queue: str, event: str, detail: str) -> None:
        """The connection for a queue changed: connected, lost, retrying."""


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """Queue names and times that all endpoints share; times in seconds."""

    prefix: str = "webhooks"
    max_age: int = 259_200
    retries: tuple[int, ...] = (30, 120, 600, 1800, 3600)
    pause: float = 1
    pause_max: float = 300

    @property
    def dead(self) -> str:
        """The dead queue, for events and documents that cannot be delivered."""
        return f"{self.prefix}.dead"

    @property
    def steps(self) -> tuple[str, ...]:
        """The delay queues that the retries need."""
        return tuple(dict.fromkeys(delay_step(seconds) for seconds in self.retries))


class EndpointQueue:
    """Sends the events of one endpoint, over one connection to the broker after another."""

    def __init__(
        self, endpoint: Endpoint, rules: EndpointRules, post: Post, observer: WebhookObserver, rng: Random
    ) -> None:
        self.endpoint = endpoint
        self.gone = False
        self.queue = f"{rules.prefix}.{endpoint.name}"
        self._rules = rules
        self._post = post
        self._observer = observer
        self._rng = rng
        self._failures = 0
        self._streak = 0
        self._alone: set[str] = set()
        self._done: BoundedDict[str, None] = BoundedDict(8 * 1024 * 1024)
        self._news = asyncio.Event()

    async def serve(self, broker: WebhookBroker, stopping: asyncio.Event) -> float:
        """Send events until `stopping` is set, and return 0; if the endpoint fails, return a pause in seconds.

        Raises:
            BrokerError: the connection to the broker is lost.
        """
        self._broker, self._rest, self._window = broker, -1.0, 1
        self._pending: dict[int, Item] = {}
        self._busy: set[str] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._waits: Waits | None = None
        self._error: BaseException | None = None
        ends = [asyncio.create_task(broker.closed()), asyncio.create_task(stopping.wait())]
        for end in ends:
            end.add_done_callback(lambda _: self._news.set())
        try:
            size = self.endpoint.concurrency * self.endpoint.batch * 2
            await broker.consume(min(size, max(MOST_IN_MEMORY, self.endpoint.batch)), self._take)
            while self._rest < 0 and self._error is None and not any(end.done() for end in ends):
                self._news.clear()
                patience = await self._begin_work()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), patience)
        finally:
            # Running requests must end, or their events would be sent twice at once; timeouts bound the wait.
            if self._work:
                await asyncio.wait(self._work)
            for end in ends:
                end.cancel()
        if self._error is not None:
            raise self._error
        if self._rest < 0 and not stopping.is_set():
            raise await broker.closed()
        return max(self._rest, 0.0)

    def _take(self, consumed: Consumed) -> None:
        """Take a message that the broker delivered."""
        item = Item.of(consumed, monotonic())
        if item is None:
            self._start(partial(self._dead_letter, consumed, NO_EVENT), ())
        else:
            if self._waits is not None:
                self._waits.remove(item.job, item.id)
            self._pending[item.tag] = item
            self._news.set()

    async def _begin_work(self) -> float | None:
        """Begin as many requests as allowed; return the seconds after which to look again, if any."""
        if self.gone:
            self._expire_pending()
            return None
        if self._pending and self._waits is None:
            self._waits = await self._look_up_waits()
        while self._pending and len(self._work) < self._window:
            items, patience = self._pick()
            if patience is not None or not items:
                return patience
            for item in items:
                del self._pending[item.tag]
            self._start(partial(self._handle, items), {item.job for item in items})
        return None

    def _expire_pending(self) -> None:
        """Dead-letter events that are too old, as the endpoint is gone; without any, pause until the next one is."""
        expired = [item for item in self._pending.values() if self._expired(item)]
        for item in expired:
            del self._pending[item.tag]
            self._start(partial(self._handle, [item]), ())
        if self._pending and not expired and not self._work:
            oldest = min(item.time for item in self._pending.values())
            left = oldest + self._rules.max_age - time()
            self._rest = min(max(left, SHORTEST_REST), LONGEST_REST)
            self._news.set()

    async def _look_up_waits(self) -> Waits:
        """Return the events that wait in delay queues; events in memory have come back."""
        waits, now = Waits(), time()
        for step in self._rules.steps:
            for consumed in await self._broker.peek(f"{self.queue}.delay.{step}"):
                if (item := Item.of(consumed)) is not None:
                    waits.add(item.job, item.id, Wait(item.place, step, now + STEPS[step] + GRACE))
        for item in self._pending.values():
            waits.remove(item.job, item.id)
        return waits

    def _pick(self) -> tuple[list[Item], float | None]:
        """Return the next events for one request, oldest first, and the seconds to wait for a full batch, if any."""
        picked: list[Item] = []
        passed = set(self._busy)
        for item in self._pending.values():
            if item.job in passed:
                continue
            if self._is_single(item):
                if not picked:
                    return [item], None
                passed.add(item.job)
                continue
            picked.append(item)
            if len(picked) == self.endpoint.batch:
                return picked, None
        if not picked:
            return [], None
        patience = min(item.since for item in picked) + self.endpoint.batch_wait - monotonic()
        return picked, patience if self.endpoint.batch > 1 and patience > 0 else None

    def _is_single(self, item: Item) -> bool:
        """Return whether an event cannot share a request."""
        return item.id in self._alone or self._answered(item) or self._expired(item) or self._before(item) is not None

    def _answered(self, item: Item) -> bool:
        """Return whether the endpoint accepted the event before the connection to the broker was lost."""
        return item.again and item.id in self._done

    def _expired(self, item: Item) -> bool:
        return abs(time() - item.time) > self._rules.max_age  # mailq made no event with a time far ahead

    def _before(self, item: Item) -> Wait | None:
        assert self._waits is not None, "looked up when the first event came"
        return self._waits.before(item.job, item.place, time())

    def _start(self, work: Callable[[], Coroutine[None, None, None]], jobs: Collection[str]) -> None:
        """Start a task for events of these jobs; other events of these jobs wait until it ends."""
        self._busy.update(jobs)
        task = asyncio.create_task(work())
        self._work.add(task)
        task.add_done_callback(partial(self._ended, jobs))

    def _ended(self, jobs: Collection[str], task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._busy.difference_update(jobs)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
        self._news.set()

    async def _handle(self, items: list[Item]) -> None:
        """Handle events in a task of their own; dead-letter those that raise an exception."""
        try:
            await self._dispatch(items)
        except (BrokerError, *STOPS):
            raise
        except BaseException as error:  # noqa: BLE001 - an event must not end the endpoint queue
            self._observer.bug(self.endpoint.name, error)
            for item in items:
                await self._dead_letter(item.consumed, f"cannot be handled: {type(error).__name__}: {error}")

    async def _dispatch(self, items: list[Item]) -> None:
        first = items[0]
        if self._answered(first):
            self._broker.ack(first.tag)
        elif self._expired(first):
            await self._dead_letter(first.consumed, "is older than webhooks.max_age")
        elif (wait := self._before(first)) is not None:
            await self._delay(first, wait.step, first.tries)
        else:
            await self._send(items)

    async def _send(self, items: list[Item]) -> None:
        single = items[0] if self.endpoint.batch == 1 else None
        body = single.body if single else b"[" + b",".join(item.body for item in items) + b"]"
        began = monotonic()
        try:
            answer = await self._post(body, single.name if single else "batch", single.id if single else None)
        except STOPS:
            raise
        except BaseException as error:  # noqa: BLE001 - an exception in the HTTP client counts as a refusal of this event
            self._observer.bug(self.endpoint.name, error)
            answer = Answer(None, f"the HTTP client raised {type(error).__name__}", is_bug=True)
        self._observer.answered(self.endpoint.name, answer, len(items), monotonic() - began)
        match answer.meaning:
            case AnswerMeaning.DONE:
                self._succeed(items)
            case AnswerMeaning.REFUSED if len(items) > 1:
                self._alone.update(item.id for item in items)  # to learn which event the endpoint refuses
                self._pending = {item.tag: item for item in items} | self._pending
            case AnswerMeaning.REFUSED:
                await self._refuse(items[0], answer)
            case AnswerMeaning.TROUBLE:
                self._pause(answer)
            case AnswerMeaning.GONE:
                self.gone, self._rest = True, 0.0
                self._observer.gone(self.endpoint.name)

    def _succeed(self, items: list[Item]) -> None:
        for item in items:
            self._done.remember(item.id, None)
            self._alone.discard(item.id)
            self._broker.ack(item.tag)
        if self._failures:
            self._observer.resumed(self.endpoint.name)
        self._failures = self._streak = 0
        self._window = min(self._window + 1, self.endpoint.concurrency)

    async def _refuse(self, item: Item, answer: Answer) -> None:
        """Delay an event that the endpoint refuses; an endpoint that refuses `STREAK` events in a row has failed."""
        retries = self._rules.retries
        await self._delay(item, delay_step(retries[min(item.tries, len(retries) - 1)]), item.tries + 1)
        self._alone.discard(item.id)
        self._streak += 1
        if self._streak >= STREAK:
            self._pause(answer)

    def _pause(self, answer: Answer) -> None:
        """Pause the endpoint; the first of several failures at once decides for how long."""
        if self._rest >= 0:
            return
        seconds = rest(self._failures, answer, self._rules.pause, self._rules.pause_max)
        self._rest = seconds * (1 + JITTER * self._rng.random())
        self._failures += 1
        self._observer.paused(self.endpoint.name, self._rest, answer)

    async def _delay(self, item: Item, step: str, tries: int) -> None:
        assert self._waits is not None, "looked up when the first event came"
        # Recorded first: the event may come back before the broker's confirm does.
        self._waits.add(item.job, item.id, Wait(item.place, step, time() + STEPS[step] + GRACE))
        await self._broker.publish([item.publication(f"{self.queue}.delay.{step}", tries=tries)])
        self._broker.ack(item.tag)

    async def _dead_letter(self, consumed: Consumed, reason: str) -> None:
        await self._broker.publish([give_up(consumed, self._rules.dead, reason, self.endpoint.name)])
        self._broker.ack(consumed.tag)
        self._observer.dead(self.endpoint.name, reason)
