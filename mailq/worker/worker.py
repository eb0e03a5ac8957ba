"""The worker of one process: connect, consume, update gauges, reconnect, drain.

When any part of the connection to the broker ends, the worker opens all of it anew, with back-off. Running attempts go
on meanwhile. `handler` decides the disposition of each message.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from mailq.core.broker.provenance import Outbox
from mailq.delivery.attempt import Delivery
from mailq.ports.broker import Broker, BrokerError
from mailq.ports.journal import Duplicates, Journal
from mailq.ports.observer import Observer
from mailq.worker.handler import Handler, WorkerBounds
from mailq.worker.settlement import Settlement

TICK = 1.0
"""Seconds between updates of the gauges and of the stalled alarm."""

PATIENCE = 3.0
HASTE = 1.0
"""Seconds in which the broker has to confirm `basic.cancel` when the worker stops; `HASTE` after `stop_now`."""


class DriftError(Exception):
    """The number of messages consumed differs from the number of messages ended and in flight."""


class Worker:
    """Consumes jobs over one connection after another until `stop` is called."""

    def __init__(
        self,
        open_broker: Callable[[], Awaitable[Broker]],
        delivery: Delivery,
        settlement: Settlement,
        journal: Journal,
        outbox: Outbox,
        observer: Observer,
        bounds: WorkerBounds,
        duplicates: Duplicates | None = None,
    ) -> None:
        self._open_broker = open_broker
        self._delivery = delivery
        self._handler = Handler(delivery, settlement, journal, outbox, observer, bounds, duplicates)
        self._journal = journal
        self._duplicates = duplicates
        self._observer = observer
        self._bounds = bounds
        self._broker: Broker | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drifted = False
        self._problem: str | None = "not connected to the broker yet"

    def stop(self) -> None:
        """Begin to drain; `run` returns after the drain."""
        self._handler.closing = True
        self._stopping.set()

    @property
    def bytes_in_memory(self) -> int:
        """Octets of the consumed jobs that are not settled."""
        return self._handler.in_memory

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    def stop_now(self) -> None:
        """Drain at once: the worker waits only for attempts whose message a receiver may have taken."""
        self._hurry.set()

    @property
    def sessions(self) -> int:
        """The number of open SMTP sessions."""
        return self._delivery.pool.open_sessions

    @property
    def not_ready(self) -> str | None:
        """The reason why the worker consumes no jobs; None while it consumes."""
        return "draining" if self._stopping.is_set() else self._problem

    async def run(self) -> None:
        """Work until `stop` is called, through every loss of the broker."""
        # First of all: without a journal the worker makes no connection, and the log names the cause first.
        self._observer.journal(self._journal.problem(), (), self._journal.stats())
        watch = asyncio.create_task(self._watch())
        pause = self._bounds.reconnect_delay
        try:
            while not self._stopping.is_set():
                try:
                    if (broker := await self._connect()) is None:
                        break
                except BrokerError as problem:
                    self._problem = str(problem)
                    self._observer.broker("retrying", f"{problem}; next try in {pause:g} s")
                    await self._sleep(pause)
                    pause = min(pause * 2, self._bounds.reconnect_max)
                    continue
                begun = monotonic()
                await self._serve(broker)
                if monotonic() - begun > self._bounds.reconnect_max:
                    pause = self._bounds.reconnect_delay
                elif not self._stopping.is_set():  # the broker counts a delivery of every unacknowledged job
                    await self._sleep(pause)
                    pause = min(pause * 2, self._bounds.reconnect_max)
            await self._drain(None)  # without a broker, or after the drain in `_serve`: then nothing is in flight
        finally:
            watch.cancel()
            self._journal.close()
            if self._duplicates is not None:
                self._duplicates.close()

    async def _connect(self) -> Broker | None:
        """Return a connection to the broker; None if the worker was stopped meanwhile.

        Without a journal the worker makes no connection, since no hand-over could be recorded.

        Raises:
            BrokerError: the journal cannot be written, or the broker cannot be reached.
        """
        if (unwritable := self._journal.problem()) is not None:
            raise BrokerError(unwritable)
        opening = asyncio.ensure_future(self._open_broker())
        return opening.result() if await self._unless_stopped(opening) else None

    async def _unless_stopped(self, task: asyncio.Future[Any]) -> bool:
        """Wait for an answer of the broker and return whether it came; `stop` cancels the wait."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.done()
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _serve(self, broker: Broker) -> None:
        """Consume over one connection until it is lost or the worker is stopped."""
        self._broker = broker
        closed = asyncio.create_task(broker.closed())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            beginning = asyncio.ensure_future(broker.consume(lambda consumed: self._handler.take(broker, consumed)))
            if await self._unless_stopped(beginning):
                beginning.result()
                self._problem, self._handler.last_delivery = None, monotonic()
                self._observer.broker("connected", "consuming")
            else:
                broker.fail(
                    BrokerError("the worker stops")
                )  # without a closing handshake, which the broker may not answer for long
            await asyncio.wait({closed, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set() and not closed.done():
                await self._drain(broker)
            else:
                self._problem = str(closed.result())
                self._observer.broker("lost", self._problem)
        except BrokerError as problem:
            self._problem = str(problem)
            self._observer.broker("lost", self._problem)
        finally:
            self._broker = None
            closed.cancel()
            stopping.cancel()
            await broker.close()

    async def _drain(self, broker: Broker | None) -> None:
        """Let running attempts end within the drain time, and requeue the other jobs."""
        ends = monotonic() + self._bounds.drain_timeout
        if broker is not None:
            await self._stop_consuming(broker)
        in_flight = self._handler.in_flight
        self._handler.requeue_unsent(hurried=False)
        await self._wait_for_messages(ends, self._hurry)
        self._handler.requeue_unsent(hurried=True)
        await self._wait_for_messages(ends, asyncio.Event())
        for task in list(in_flight):
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
        await self._handler.acks.flush(HASTE)
        await self._delivery.pool.close()

    async def _stop_consuming(self, broker: Broker) -> None:
        """Stop consuming; close the connection if the broker gives no answer, so that it redelivers its messages."""
        stopped = asyncio.ensure_future(broker.stop_consuming())
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({stopped}, timeout=HASTE)
        await asyncio.wait({stopped, hurried}, timeout=PATIENCE - HASTE, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopped.done():
            silent = BrokerError("RabbitMQ gave no answer when the worker stopped")
            broker.fail(silent)
            stopped.cancel()
            self._observer.broker("lost", str(silent))
        await asyncio.gather(stopped, return_exceptions=True)

    async def _wait_for_messages(self, ends: float, hurry: asyncio.Event) -> None:
        """Wait until all messages in flight have ended, `hurry` is set, or time is up."""
        if self._handler.in_flight:
            done = asyncio.ensure_future(asyncio.wait(set(self._handler.in_flight)))
            hurried = asyncio.create_task(hurry.wait())
            left = max(ends - monotonic(), 0)
            await asyncio.wait({done, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            hurried.cancel()

    async def _watch(self) -> None:
        """Update the gauges and the alarms, and housekeep the journal, once a second."""
        while True:
            await asyncio.sleep(TICK)
            self._handler.standstill.look()
            self._delivery.pool.sweep()
            self._observer.in_flight(len(self._handler.in_flight), self._delivery.pool.open_sessions)
            self._housekeep_journal()
            self._handler.acks.poll()
            if self._handler.drift and not self._drifted:
                self._drifted = True
                self._observer.bug("equation", DriftError(f"{self._handler.drift} messages more consumed than ended"))
            self._observer.stalled(stalled=await self._is_stalled())

    def _housekeep_journal(self) -> None:
        """Housekeep the journal; end the connection to the broker while the journal cannot be written."""
        notes = self._journal.housekeep()
        problem = self._journal.problem()
        self._observer.journal(problem, notes, self._journal.stats())
        if problem is not None and self._broker is not None and not self._stopping.is_set():
            self._broker.fail(BrokerError(problem))

    async def _is_stalled(self) -> bool:
        broker = self._broker
        idle = monotonic() - self._handler.last_delivery
        if broker is None or self._handler.in_flight or self._problem or idle < self._bounds.stalled_after:
            return False
        with contextlib.suppress(BrokerError):
            return bool(await broker.depth())
        return False

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
