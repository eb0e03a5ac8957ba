"""The life of one process: connect, consume, bound what is in flight, reconnect, drain.

A connection to the broker has one life; when any part of it ends, all of it is opened anew, with
backoff, and the attempts under way go on meanwhile. What becomes of each message is for `handling`.
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
"""Seconds between looks at the gauges and the stalled alarm."""

PATIENCE = 3.0
HASTE = 1.0
"""Seconds in which a broker has to end the consuming when the worker stops; the latter once it makes haste."""


class DriftError(Exception):
    """Messages that were consumed and did not end are not in flight either, or the other way round."""


class Worker:
    """Consumes jobs and sees each of them to its settlement."""

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
        self._handling = Handler(delivery, settlement, journal, outbox, observer, bounds, duplicates)
        self._journal = journal
        self._duplicates = duplicates
        self._observer = observer
        self._bounds = bounds
        self._broker: Broker | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drifted = False
        self._trouble: str | None = "not connected to the broker yet"

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._handling.closing = True
        self._stopping.set()

    @property
    def bytes_in_memory(self) -> int:
        """Octets of the jobs that were received and are not settled."""
        return self._handling.in_memory

    @property
    def stopping(self) -> bool:
        """Tell whether the worker was told to stop."""
        return self._stopping.is_set()

    def stop_now(self) -> None:
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
        # First of all: without a journal the broker is not connected to, and the log names the cause first.
        self._observer.journal(self._journal.problem(), (), self._journal.stats())
        watch = asyncio.create_task(self._watch())
        pause = self._bounds.reconnect_delay
        try:
            while not self._stopping.is_set():
                try:
                    if (broker := await self._connect()) is None:
                        break
                except BrokerError as trouble:
                    self._trouble = str(trouble)
                    self._observer.broker("retrying", f"{trouble}; next try in {pause:g} s")
                    await self._sleep(pause)
                    pause = min(pause * 2, self._bounds.reconnect_max)
                    continue
                begun = monotonic()
                await self._serve(broker)
                if monotonic() - begun > self._bounds.reconnect_max:
                    pause = self._bounds.reconnect_delay
                elif not self._stopping.is_set():  # each loss counts as a delivery of every job that is open
                    await self._sleep(pause)
                    pause = min(pause * 2, self._bounds.reconnect_max)
            await self._drain(None)  # without a broker to the end, or with nothing left to do
        finally:
            watch.cancel()
            self._journal.close()
            if self._duplicates is not None:
                self._duplicates.close()

    async def _connect(self) -> Broker | None:
        """Return a connection to the broker, None when told to stop meanwhile.

        Without a journal none is made, for nothing could be recorded.

        Raises:
            BrokerError: there is none to be had now.
        """
        if (unwritable := self._journal.problem()) is not None:
            raise BrokerError(unwritable)
        opening = asyncio.ensure_future(self._open_broker())
        return opening.result() if await self._unless_stopped(opening) else None

    async def _unless_stopped(self, task: asyncio.Future[Any]) -> bool:
        """Wait for something that the broker has to answer, and tell whether it is done; when told to stop, end it."""
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
            beginning = asyncio.ensure_future(broker.consume(lambda consumed: self._handling.take(broker, consumed)))
            if await self._unless_stopped(beginning):
                beginning.result()
                self._trouble, self._handling.last_delivery = None, monotonic()
                self._observer.broker("connected", "consuming")
            else:
                broker.fail(BrokerError("the worker stops"))  # no goodbyes either: it may say nothing for long
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

    async def _drain(self, broker: Broker | None) -> None:
        """Let what is on the wire end within the drain time, and give back the rest; without a broker, all of it."""
        ends = monotonic() + self._bounds.drain_timeout
        if broker is not None:
            await self._stop_consuming(broker)
        in_flight = self._handling.in_flight
        self._handling.requeue_unsent(hurried=False)
        await self._wait_for_cases(ends, self._hurry)
        self._handling.requeue_unsent(hurried=True)
        await self._wait_for_cases(ends, asyncio.Event())
        for task in list(in_flight):
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
        await self._handling.acks.flush(HASTE)
        await self._delivery.pool.close()

    async def _stop_consuming(self, broker: Broker) -> None:
        """Consume no more; a broker that does not answer is left, for what it has given out it gives out again."""
        stopped = asyncio.ensure_future(broker.stop_consuming())
        hastened = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({stopped}, timeout=HASTE)
        await asyncio.wait({stopped, hastened}, timeout=PATIENCE - HASTE, return_when=asyncio.FIRST_COMPLETED)
        hastened.cancel()
        if not stopped.done():
            silent = BrokerError("RabbitMQ gave no answer when the worker stopped")
            broker.fail(silent)
            stopped.cancel()
            self._observer.broker("lost", str(silent))
        await asyncio.gather(stopped, return_exceptions=True)

    async def _wait_for_cases(self, ends: float, hurry: asyncio.Event) -> None:
        """Wait until all that is being handled has ended, `hurry` is set, or time is up."""
        if self._handling.in_flight:
            done = asyncio.ensure_future(asyncio.wait(set(self._handling.in_flight)))
            hastened = asyncio.create_task(hurry.wait())
            left = max(ends - monotonic(), 0)
            await asyncio.wait({done, hastened}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            hastened.cancel()

    async def _watch(self) -> None:
        """Keep the gauges and the alarms current, and see to the journal."""
        while True:
            await asyncio.sleep(TICK)
            self._handling.standstill.look()
            self._delivery.pool.sweep()
            self._observer.in_flight(len(self._handling.in_flight), self._delivery.pool.open_sessions)
            self._tend_journal()
            self._handling.acks.poll()
            if self._handling.drift and not self._drifted:
                self._drifted = True
                self._observer.bug("equation", DriftError(f"{self._handling.drift} messages more consumed than ended"))
            self._observer.stalled(stalled=await self._is_stalled())

    def _tend_journal(self) -> None:
        """Do what the journal needs done; while it cannot be written nothing is consumed."""
        notes = self._journal.housekeep()
        trouble = self._journal.problem()
        self._observer.journal(trouble, notes, self._journal.stats())
        if trouble is not None and self._broker is not None and not self._stopping.is_set():
            self._broker.fail(BrokerError(trouble))

    async def _is_stalled(self) -> bool:
        broker = self._broker
        idle = monotonic() - self._handling.last_delivery
        if broker is None or self._handling.in_flight or self._trouble or idle < self._bounds.stalled_after:
            return False
        with contextlib.suppress(BrokerError):
            return bool(await broker.depth())
        return False

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
