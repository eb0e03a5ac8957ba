"""One endpoint's line: events in, requests out, in the order in which each job's events came.

While all is well up to `concurrency` requests are under way, never two with events of one job. An event that the
endpoint refuses waits in a delay queue, and later events of its job behind it. Everything else that goes wrong is the
endpoint's trouble: the line is let go, which puts what is unanswered back into its old place in the queue, and after
a pause that doubles the first event alone is tried. Then the number of requests grows by one with each success.
So nothing overtakes, nothing is lost, and an endpoint that returns is not flooded. An exception out of the poster is
taken for a refusal of the event, and an event that cannot be handled is given up: neither ends the line. An endpoint
that is gone is not asked again: the line gives up the events that are too old, and looks at the queue again when the
next of them will be.

Which events wait is known in memory, and looked up in the delay queues when a life begins. Who may be sent what, and
what an answer means, is decided in `core.hooks`; connections are made by `webhooks`, requests by the edge.
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
"""Seconds after which an event that has not come back from a delay queue is not waited for."""

STREAK = 10
"""So many refusals in a row, and no success, are the endpoint's trouble and not the events'."""

MOST_IN_HAND = 2000
"""Events of an endpoint in memory at most, or one batch if that is more."""

LONGEST_LEAVE = 3600.0
"""Seconds after which the queue of an endpoint that is gone is looked at again, if no event grows too old before."""

SHORTEST_LEAVE = 1.0
"""Seconds for which it is left alone at least."""

JITTER = 0.1
"""Largest share by which a pause is lengthened."""

NO_EVENT = "is no event made by mailq"
"""The reason for which a message is given up that somebody else put into an endpoint's queue."""


class WebhookBroker(Protocol):
    """One life of the way to one queue of the broker."""

    async def consume(self, prefetch: int, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume; each message is handed to `deliver`."""

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""

    def hold(self, *, held: bool) -> None:
        """Stop or go on to receive messages."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one; raises BrokerError."""

    async def peek(self, queue: str) -> list[Consumed]:
        """Return what waits in a queue, which stays there; raises BrokerError."""

    async def closed(self) -> BrokerError:
        """Wait until the connection is over and return why."""

    async def close(self) -> None:
        """Close it; what was not acknowledged is back in its old place."""


class Post(Protocol):
    """Sends one request; an exception is taken for trouble with the event."""

    async def __call__(self, body: bytes, name: str, event: str | None) -> Answer:
        """Post a body; `name` is the event's, or `batch`; `event` the identity of a single one."""


class WebhookObserver(Protocol):
    """Sees what becomes of webhooks, changes nothing and must not raise; endpoints are named as configured."""

    def answered(self, endpoint: str, answer: Answer, events: int, seconds: float) -> None:
        """A request with so many events was answered, or was not, after so many seconds."""

    def paused(self, endpoint: str, seconds: float, answer: Answer) -> None:
        """An endpoint in trouble is left alone."""

    def resumed(self, endpoint: str) -> None:
        """An endpoint that was in trouble takes events again."""

    def gone(self, endpoint: str) -> None:
        """An endpoint wants no more events (410)."""

    def dead(self, endpoint: str, reason: str) -> None:
        """A message was given up; `endpoint` is empty where it was meant for none."""

    def bug(self, endpoint: str, error: BaseException) -> None:
        """Something happened that the code does not foresee; `endpoint` is empty where none is concerned."""

    def hooks_broker(self, queue: str, event: str, detail: str) -> None:
        """The connection for a queue changed: connected, lost, retrying."""


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """Queues and times that endpoints have in common, in seconds."""

    prefix: str = "webhooks"
    max_age: int = 259_200
    retries: tuple[int, ...] = (30, 120, 600, 1800, 3600)
    pause: float = 1
    pause_max: float = 300

    @property
    def dead(self) -> str:
        """The queue for what is given up."""
        return f"{self.prefix}.dead"

    @property
    def steps(self) -> tuple[str, ...]:
        """The delay queues that the retries need."""
        return tuple(dict.fromkeys(delay_step(seconds) for seconds in self.retries))


class EndpointQueue:
    """The events of one endpoint on their way; lives through many lanes, one after the other."""

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
        """Send events until told to stop, and return 0; or the endpoint has trouble, and return a pause in seconds.

        Raises:
            BrokerError: the lane is lost.
        """
        self._broker, self._rest, self._window = broker, -1.0, 1
        self._hand: dict[int, Item] = {}
        self._busy: set[str] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._waits: Waits | None = None
        self._trouble: BaseException | None = None
        ends = [asyncio.create_task(broker.closed()), asyncio.create_task(stopping.wait())]
        for end in ends:
            end.add_done_callback(lambda _: self._news.set())
        try:
            size = self.endpoint.concurrency * self.endpoint.batch * 2
            await broker.consume(min(size, max(MOST_IN_HAND, self.endpoint.batch)), self._take)
            while self._rest < 0 and self._trouble is None and not any(end.done() for end in ends):
                self._news.clear()
                patience = await self._begin_work()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), patience)
        finally:
            # What is under way is waited for, or it would be sent again beside itself; timeouts bound that.
            if self._work:
                await asyncio.wait(self._work)
            for end in ends:
                end.cancel()
        if self._trouble is not None:
            raise self._trouble
        if self._rest < 0 and not stopping.is_set():
            raise await broker.closed()
        return max(self._rest, 0.0)

    def _take(self, consumed: Consumed) -> None:
        """Take a message from the broker."""
        item = Item.of(consumed, monotonic())
        if item is None:
            self._start(partial(self._give_up, consumed, NO_EVENT), ())
        else:
            if self._waits is not None:
                self._waits.remove(item.job, item.id)
            self._hand[item.tag] = item
            self._news.set()

    async def _begin_work(self) -> float | None:
        """Begin as much as may be under way; return the seconds after which to look again, if any."""
        if self.gone:
            self._clear_out()
            return None
        if self._hand and self._waits is None:
            self._waits = await self._look_up_waits()
        while self._hand and len(self._work) < self._window:
            items, patience = self._pick()
            if patience is not None or not items:
                return patience
            for item in items:
                del self._hand[item.tag]
            self._start(partial(self._handle, items), {item.job for item in items})
        return None

    def _clear_out(self) -> None:
        """Give up what is too old, as the endpoint is gone; if nothing in hand is, end this life until it will be."""
        expired = [item for item in self._hand.values() if self._expired(item)]
        for item in expired:
            del self._hand[item.tag]
            self._start(partial(self._handle, [item]), ())
        if self._hand and not expired and not self._work:
            oldest = min(item.time for item in self._hand.values())
            left = oldest + self._rules.max_age - time()
            self._rest = min(max(left, SHORTEST_LEAVE), LONGEST_LEAVE)
            self._news.set()

    async def _look_up_waits(self) -> Waits:
        """Return which events wait in delay queues; those in hand have come back."""
        waits, now = Waits(), time()
        for step in self._rules.steps:
            for consumed in await self._broker.peek(f"{self.queue}.delay.{step}"):
                if (item := Item.of(consumed)) is not None:
                    waits.add(item.job, item.id, Wait(item.place, step, now + STEPS[step] + GRACE))
        for item in self._hand.values():
            waits.remove(item.job, item.id)
        return waits

    def _pick(self) -> tuple[list[Item], float | None]:
        """Return the next events for one request, oldest first; or none, and how long to wait for a full batch."""
        picked: list[Item] = []
        passed = set(self._busy)
        for item in self._hand.values():
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
        """Tell whether an event cannot share a request."""
        return item.id in self._alone or self._answered(item) or self._expired(item) or self._before(item) is not None

    def _answered(self, item: Item) -> bool:
        """Tell whether it was answered already, and the connection lost before the broker knew."""
        return item.again and item.id in self._done

    def _expired(self, item: Item) -> bool:
        return abs(time() - item.time) > self._rules.max_age  # a time far ahead is none of mailq's

    def _before(self, item: Item) -> Wait | None:
        assert self._waits is not None, "looked up when the first event came"
        return self._waits.before(item.job, item.place, time())

    def _start(self, work: Callable[[], Coroutine[None, None, None]], jobs: Collection[str]) -> None:
        """Work on events of these jobs, of which no other is touched meanwhile."""
        self._busy.update(jobs)
        task = asyncio.create_task(work())
        self._work.add(task)
        task.add_done_callback(partial(self._ended, jobs))

    def _ended(self, jobs: Collection[str], task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._busy.difference_update(jobs)
        if not task.cancelled() and (trouble := task.exception()) is not None:
            self._trouble = self._trouble or trouble
        self._news.set()

    async def _handle(self, items: list[Item]) -> None:
        """See to events that nothing else is done with meanwhile; those that cannot be handled are given up."""
        try:
            await self._see_to(items)
        except (BrokerError, *STOPS):
            raise
        except BaseException as error:  # noqa: BLE001 - an event ends no line
            self._observer.bug(self.endpoint.name, error)
            for item in items:
                await self._give_up(item.consumed, f"cannot be handled: {type(error).__name__}: {error}")

    async def _see_to(self, items: list[Item]) -> None:
        first = items[0]
        if self._answered(first):
            self._broker.ack(first.tag)
        elif self._expired(first):
            await self._give_up(first.consumed, "is older than webhooks.max_age")
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
        except BaseException as error:  # noqa: BLE001 - whatever the HTTP client meets is trouble of this event here
            self._observer.bug(self.endpoint.name, error)
            answer = Answer(None, f"the HTTP client raised {type(error).__name__}", is_bug=True)
        self._observer.answered(self.endpoint.name, answer, len(items), monotonic() - began)
        match answer.meaning:
            case AnswerMeaning.DONE:
                self._succeed(items)
            case AnswerMeaning.REFUSED if len(items) > 1:
                self._alone.update(item.id for item in items)  # to learn which of them it is about
                self._hand = {item.tag: item for item in items} | self._hand
            case AnswerMeaning.REFUSED:
                await self._refuse(items[0], answer)
            case AnswerMeaning.TROUBLE:
                self._let_go(answer)
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
        """Let an event wait that the endpoint refuses; one that refuses everything is in trouble itself."""
        retries = self._rules.retries
        await self._delay(item, delay_step(retries[min(item.tries, len(retries) - 1)]), item.tries + 1)
        self._alone.discard(item.id)
        self._streak += 1
        if self._streak >= STREAK:
            self._let_go(answer)

    def _let_go(self, answer: Answer) -> None:
        """End this life for a while; the first of several troubles at once decides for how long."""
        if self._rest >= 0:
            return
        seconds = rest(self._failures, answer, self._rules.pause, self._rules.pause_max)
        self._rest = seconds * (1 + JITTER * self._rng.random())
        self._failures += 1
        self._observer.paused(self.endpoint.name, self._rest, answer)

    async def _delay(self, item: Item, step: str, tries: int) -> None:
        assert self._waits is not None, "looked up when the first event came"
        # Noted first: it may be back before the broker's confirm is.
        self._waits.add(item.job, item.id, Wait(item.place, step, time() + STEPS[step] + GRACE))
        await self._broker.publish([item.publication(f"{self.queue}.delay.{step}", tries=tries)])
        self._broker.ack(item.tag)

    async def _give_up(self, consumed: Consumed, reason: str) -> None:
        await self._broker.publish([give_up(consumed, self._rules.dead, reason, self.endpoint.name)])
        self._broker.ack(consumed.tag)
        self._observer.dead(self.endpoint.name, reason)
