"""The life of one process: connect, consume, bound what is in flight, reconnect, drain.

A connection to the broker has one life; when any part of it ends, all of it is opened anew, with
backoff, and the attempts under way go on meanwhile (`flights`). A job is acknowledged only when
everything published for it was confirmed; whatever else happens, the broker hands it out again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import monotonic

from mailq.core import letters
from mailq.core.failure import Postponed
from mailq.core.job import InvalidJobError, Job
from mailq.core.publication import Consumed
from mailq.core.states import ORDER, State
from mailq.delivery import Delivery
from mailq.flights import Flight, Flights
from mailq.ports import Broker, BrokerError, Observer
from mailq.settlement import Settlement

TICK = 1.0
"""Seconds between looks at the gauges and the stalled alarm."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a worker does at once and how long it waits; times in seconds, sizes in octets."""

    body: int = 100 * 1024 * 1024
    in_memory: int = 256 * 1024 * 1024
    drain_timeout: float = 30
    stalled_after: float = 60
    reconnect_delay: float = 1
    reconnect_max: float = 30


class Worker:
    """Consumes jobs and sees each of them to its settlement."""

    def __init__(
        self,
        open_broker: Callable[[], Awaitable[Broker]],
        delivery: Delivery,
        settlement: Settlement,
        observer: Observer,
        bounds: Bounds,
    ) -> None:
        self._open_broker = open_broker
        self._delivery = delivery
        self._settlement = settlement
        self._observer = observer
        self._bounds = bounds
        self._broker: Broker | None = None
        self._flights = Flights()
        self._tasks: dict[asyncio.Task[None], Flight | None] = {}
        self._in_memory = 0
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._last_delivery = monotonic()
        self._trouble: str | None = "not connected to the broker yet"

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._stopping.set()

    @property
    def bytes_in_memory(self) -> int:
        """Octets of the jobs that were received and are not settled."""
        return self._in_memory

    @property
    def stopping(self) -> bool:
        """Tell whether the worker was told to stop."""
        return self._stopping.is_set()

    def hasten(self) -> None:
        """Drain without patience: only what a receiver may have taken already is waited for."""
        self._hurry.set()

    @property
    def sessions(self) -> int:
        """The number of SMTP connections that are open."""
        return self._delivery.pool.open_sessions

    @property
    def not_ready(self) -> str | None:
        """Why no jobs are consumed; None when they are."""
        return "draining" if self._stopping.is_set() else self._trouble

    async def run(self) -> None:
        """Work until `stop` is called, through every loss of the broker."""
        watch = asyncio.create_task(self._watch())
        pause = self._bounds.reconnect_delay
        try:
            while not self._stopping.is_set():
                try:
                    broker = await self._open_broker()
                except BrokerError as trouble:
                    self._trouble = str(trouble)
                    self._observer.broker("retrying", f"{trouble}; next try in {pause:g} s")
                    await self._sleep(pause)
                    pause = min(pause * 2, self._bounds.reconnect_max)
                    continue
                pause = self._bounds.reconnect_delay
                await self._serve(broker)
        finally:
            watch.cancel()

    async def _serve(self, broker: Broker) -> None:
        """Consume over one connection until it is lost or the worker is stopped."""
        self._broker = broker
        self._flights.forget_old()
        closed = asyncio.create_task(broker.closed())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await broker.consume(lambda consumed: self._take(broker, consumed))
            self._trouble, self._last_delivery = None, monotonic()
            self._observer.broker("connected", "consuming")
            await asyncio.wait({closed, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set() and not closed.done():
                await self._drain(broker)
            else:
                self._trouble = str(closed.result())
                self._observer.broker("lost", self._trouble)
        except BrokerError as trouble:
            self._trouble = str(trouble)
            self._observer.broker("lost", self._trouble)
        finally:
            self._broker = None
            closed.cancel()
            stopping.cancel()
            await broker.close()

    def _take(self, broker: Broker, consumed: Consumed) -> None:
        self._last_delivery = monotonic()
        self._in_memory += len(consumed.body)
        if self._in_memory > self._bounds.in_memory:
            broker.hold(held=True)
        task = asyncio.create_task(self._handle(broker, consumed))
        self._tasks[task] = None
        task.add_done_callback(partial(self._done, broker, len(consumed.body)))

    def _done(self, broker: Broker, size: int, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._in_memory -= size
        if self._in_memory <= self._bounds.in_memory:
            broker.hold(held=False)

    async def _handle(self, broker: Broker, consumed: Consumed) -> None:
        try:
            await self._process(broker, consumed)
        except BrokerError as trouble:
            # Not recorded, so not done: the broker hands the job out again, and what was made is kept.
            self._observer.broker("unsettled", str(trouble))
            broker.fail(trouble)
        except Exception as error:  # noqa: BLE001 - outside the attempt: the job goes back, in the end to poison
            self._observer.bug("worker", error)
            broker.requeue(consumed.tag)

    async def _process(self, broker: Broker, consumed: Consumed) -> None:
        try:
            job = Job.parse(
                consumed.body,
                encoding=consumed.content_encoding,
                message_id=consumed.message_id,
                limit=self._bounds.body,
            )
            await _check_queues(job, broker)
        except InvalidJobError as error:
            await self._settlement.refuse(broker, consumed, error)
            broker.ack(consumed.tag)
            return
        if job.due is not None and job.due > datetime.now(UTC):
            await self._settlement.park(broker, consumed, job)
            broker.ack(consumed.tag)
            return
        flight = self._flights.adopt(job, broker) if consumed.redelivered else None
        if flight is None:
            flight = self._flights.begin(job, broker)
            await self._fly(flight, job, returned=letters.RETURNED in consumed.headers)
        await self._land(broker, consumed, job, flight)

    async def _fly(self, flight: Flight, job: Job, *, returned: bool) -> None:
        """Make the attempt and leave its ending in the flight; cancels that if none is made."""
        task = asyncio.current_task()
        assert task is not None
        try:
            # A job of a lost connection is handed out again: to begin now would be to send it twice.
            if self._stopping.is_set() or flight.broker is not self._broker:
                return
            self._tasks[task] = flight
            made = await self._delivery.attempt(job, flight.trail, returned=returned)
            flight.ending.set_result(made if isinstance(made, Postponed) else (made, self._settlement.judge(job, made)))
        finally:
            if not flight.ending.done():
                flight.ending.cancel()

    async def _land(self, broker: Broker, consumed: Consumed, job: Job, flight: Flight) -> None:
        """Settle the attempt, unless none was made or the job came again and its new handler settles it."""
        try:
            ending = await asyncio.shield(flight.ending)
        except asyncio.CancelledError:
            self._flights.end(flight)
            if not flight.ending.cancelled():
                raise
            broker.requeue(consumed.tag)
            return
        if flight.broker is not broker:
            return
        if isinstance(ending, Postponed):
            await self._settlement.postpone(broker, consumed, job, ending)
            self._flights.end(flight)
        elif not flight.settled:
            await self._settlement.settle(broker, consumed, job, *ending)
            self._flights.settle(flight, remember=job.identified)
        broker.ack(consumed.tag)

    async def _drain(self, broker: Broker) -> None:
        """Finish what is on the wire, give back the rest; what waits for the final answer waits longest."""
        await broker.stop_consuming()
        for task, flight in list(self._tasks.items()):
            if flight is not None and ORDER[flight.trail.state] < ORDER[State.BIND]:
                task.cancel()  # it waits for a session or its turn: nothing is on the wire
        await self._wait_for_tasks(hurry=True)
        for task, flight in list(self._tasks.items()):
            if flight is None or flight.trail.state is not State.MESSAGE:
                task.cancel()
        await self._wait_for_tasks(hurry=False)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._delivery.pool.close()

    async def _wait_for_tasks(self, *, hurry: bool) -> None:
        if self._tasks:
            done = asyncio.ensure_future(asyncio.wait(set(self._tasks)))
            hastened = asyncio.create_task(self._hurry.wait() if hurry else asyncio.Event().wait())
            ends = {done, hastened}
            await asyncio.wait(ends, timeout=self._bounds.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
            for each in ends:
                each.cancel()

    async def _watch(self) -> None:
        """Keep the gauges and the stalled alarm current."""
        while True:
            await asyncio.sleep(TICK)
            self._delivery.pool.sweep()
            self._observer.flight(len(self._tasks), self._delivery.pool.open_sessions)
            self._observer.stalled(stalled=await self._is_stalled())

    async def _is_stalled(self) -> bool:
        broker = self._broker
        idle = monotonic() - self._last_delivery
        if broker is None or self._tasks or self._trouble or idle < self._bounds.stalled_after:
            return False
        with contextlib.suppress(BrokerError):
            return bool(await broker.depth())
        return False

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


async def _check_queues(job: Job, broker: Broker) -> None:
    """Refuse a job whose own result queues cannot be published to, before anything is sent."""
    if job.queues is None:
        return
    for name in ("results", "success", "failure", "retry"):
        queue = getattr(job.queues, name)
        if queue is not None and not await broker.ensure_queue(queue):
            reason = f"queue {queue!r} does not exist; create it or leave the property out"
            raise InvalidJobError(reason, f"/queues/{name}", job.document)
