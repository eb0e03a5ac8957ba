"""One consumed message to its end: read, looked up, attempted, settled, acknowledged.

`_work` handles a job. Each message ends with exactly one `core.outcomes.Disposition`. The handler acknowledges a
message only after the broker has confirmed everything published for it. The broker redelivers a message that is not
acknowledged. The journal knows which jobs this process, or another one of the host, may have handed over before.
"""

import asyncio
import gzip
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic

import orjson

from mailq.core.answers.verdict import Verdict
from mailq.core.broker import publications
from mailq.core.broker.job_queues import OUTCOMES
from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import UNKNOWN, Outbox, Provenance
from mailq.core.jobs.document import MAX_VALUES, InvalidJobError
from mailq.core.jobs.job import Job, Queues
from mailq.core.journal.records import DELAYED, Entry, EntryId, EntryState, JobKey, JournalError
from mailq.core.outcomes import ENDS, Disposition
from mailq.core.results.result import Result, unpack
from mailq.core.smtp.failure import Cause, Delayed
from mailq.core.states import ORDER, State
from mailq.delivery.attempt import Delivery
from mailq.delivery.offload import offloaded
from mailq.ports.broker import Broker, BrokerError, OversizedError, UnencodableError
from mailq.ports.host import STOPS
from mailq.ports.journal import Duplicates, DuplicatesError, Journal
from mailq.ports.observer import Observer
from mailq.worker.ack_tracker import AckTracker, marked
from mailq.worker.attempts import RunningAttempt, RunningAttempts
from mailq.worker.quarantine import DEADLY, Quarantine
from mailq.worker.reading import Reading, Room
from mailq.worker.settlement import Settlement
from mailq.worker.standstill import Standstill

ELSEWHERE = 5.0
"""Seconds for which a job is delayed, or waits in memory, while another process works on it."""


ERROR_PAUSE = 1.0
"""Seconds until the handler rejects a message after an internal error."""


@dataclass(frozen=True, slots=True)
class WorkerBounds:
    """Limits on the memory of a worker and on how long it waits; times in seconds, sizes in octets."""

    body: int = 100 * 1024 * 1024
    values: int = MAX_VALUES
    strict: bool = False
    in_memory: int = 256 * 1024 * 1024
    drain_timeout: float = 30
    stalled_after: float = 60
    reconnect_delay: float = 1
    reconnect_max: float = 30
    poison_after: int = 3
    standstill: float = 15


@dataclass(slots=True, eq=False)
class InFlight:
    """One message that is being handled: its memory, its attempt and its disposition.

    `octets` counts its memory, and `values` the memory for the values of a heavy document. `begun` is the moment of
    consumption. The handler does nothing with a message while it is `waiting`.
    """

    broker: Broker
    consumed: Consumed
    octets: int
    begun: float
    provenance: Provenance = UNKNOWN
    values: int = 0
    running: RunningAttempt | None = None
    waiting: bool = False
    end: Disposition = Disposition.RETURNED


class Handler:
    """Handles every message until it is acknowledged, rejected or requeued."""

    def __init__(
        self,
        delivery: Delivery,
        settlement: Settlement,
        journal: Journal,
        outbox: Outbox,
        observer: Observer,
        bounds: WorkerBounds,
        duplicates: Duplicates | None = None,
    ) -> None:
        self.in_flight: dict[asyncio.Task[None], InFlight] = {}
        self.in_memory = 0
        self._held: set[Broker] = set()
        self.closing = False
        self.last_delivery = monotonic()
        self._consumed = self._ended = 0
        self._settlement = settlement
        self._journal = journal
        self._outbox = outbox
        self._duplicates = duplicates
        self._observer = observer
        self._bounds = bounds
        self._reading = Reading(bounds.body, bounds.values, strict=bounds.strict)
        self._room = Room(bounds.in_memory)
        self.standstill = Standstill(bounds.standstill)
        self._attempts = RunningAttempts(journal, delivery, settlement, self.standstill)
        self.acks = AckTracker(journal, self._attempts)
        self._quarantine = Quarantine(journal)

    @property
    def drift(self) -> int:
        """The number of consumed messages that neither ended nor are in flight; 0 unless mailq has a bug."""
        return self._consumed - self._ended - len(self.in_flight)

    def take(self, broker: Broker, consumed: Consumed) -> None:
        """Begin to handle a message; hold the broker while memory is full."""
        self.last_delivery = monotonic()
        inflight = InFlight(broker, consumed, 0, self.standstill.look())
        self._charge(inflight, consumed.octets)
        self._consumed += 1
        self._observer.consumed()
        task = asyncio.create_task(self._handle(inflight))
        self.in_flight[task] = inflight
        task.add_done_callback(partial(self._done, inflight))

    def _charge(self, inflight: InFlight, octets: int) -> None:
        """Count the memory of a message; hold the broker while memory is full."""
        inflight.octets += octets
        self.in_memory += octets
        if self.in_memory > self._bounds.in_memory:
            inflight.broker.hold(held=True)
            self._held.add(inflight.broker)

    def requeue_unsent(self, *, hurried: bool) -> None:
        """Cancel the attempts before state `bind`; if hurried, all attempts whose message no receiver may have."""
        for task, inflight in list(self.in_flight.items()):
            if inflight.running is None:
                unsent = hurried or inflight.waiting
            elif inflight.running.ending.done():
                unsent = False  # its result is being published
            else:
                state = inflight.running.trail.state
                unsent = state is not State.MESSAGE if hurried else ORDER[state] < ORDER[State.BIND]
            if unsent:
                task.cancel()

    def _done(self, inflight: InFlight, task: asyncio.Task[None]) -> None:
        del self.in_flight[task]
        self._ended += 1
        self._observer.ended(inflight.end)
        self.in_memory -= inflight.octets
        if inflight.values:
            self._room.leave(inflight.values)
        if self._held and self.in_memory <= self._bounds.in_memory:
            # All of them: the messages that filled the memory may have come over a connection that is lost.
            for broker in self._held:
                broker.hold(held=False)
            self._held.clear()

    async def _handle(self, inflight: InFlight) -> None:
        try:
            try:
                while (end := await self._process(inflight)) is None:
                    await self._wait(inflight)
                inflight.end = end
            except (BrokerError, JournalError):
                raise
            except (OversizedError, UnencodableError) as refusal:  # the message is poison, unchanged
                inflight.end = await self._poison(inflight, inflight.consumed, str(refusal))
            except STOPS:
                raise
            except BaseException as error:  # noqa: BLE001 - outside the attempt: the job is rejected, at last poison
                self._observer.bug("worker", error)
                inflight.end = await self._internal_error(inflight, error)
        except BrokerError as problem:
            # Not confirmed, so not acknowledged: the broker redelivers the job, and the result is in the journal.
            self._observer.broker("unsettled", str(problem))
            inflight.broker.fail(problem)
        except JournalError as problem:
            inflight.broker.fail(BrokerError(str(problem)))

    async def _wait(self, inflight: InFlight) -> None:
        """Wait while another process may have the same publication without a mark.

        The journal cannot distinguish a delayed copy of such a publication from an equal job. So the job waits in
        memory. If the connection is lost meanwhile, the broker redelivers the message over another one.
        """
        inflight.running, inflight.waiting = None, True
        await asyncio.sleep(ELSEWHERE)
        inflight.waiting = False
        inflight.begun = self.standstill.look()

    async def _process(self, inflight: InFlight) -> Disposition | None:
        """Handle a message and return its disposition; None if the message must be handled once more."""
        read = partial(self._outbox.read, inflight.consumed)
        inflight.provenance = await offloaded(len(inflight.consumed.body), read)
        if (loop := self._settlement.loop(inflight.consumed)) is not None:
            return await self._poison(inflight, inflight.consumed, loop)
        if inflight.consumed.delivery_count < self._bounds.poison_after:
            while self._quarantine.trying:
                await self._quarantine.idle()
            return await self._work(inflight)
        crashes = self._quarantine.crashes(inflight.consumed)
        if crashes >= DEADLY:
            reason = f"{crashes} worker processes died while they handled it alone"
            return await self._poison(inflight, inflight.consumed, reason)
        async with self._quarantine.trial(
            inflight.consumed, inflight.consumed.delivery_count - self._bounds.poison_after
        ):
            return await self._work(inflight)

    async def _work(self, inflight: InFlight) -> Disposition | None:
        broker, consumed = inflight.broker, inflight.consumed
        try:
            job = await self._read(inflight)
        except InvalidJobError as error:
            return await self._refuse(inflight, error)
        barred = None if job.queues is None else self._settlement.barred(job)
        missing = None if job.queues is None or barred else await _missing(job, job.queues, broker)
        key = self._outbox.key(inflight.provenance, job.attempt)
        if not key.marked:
            self.acks.duplicate_seen(key, broker)
        again = consumed.redelivered or key.marked or inflight.provenance.requeued
        running = self._attempts.adopt(key, broker, inflight.begun) if consumed.redelivered else None
        # A known result is published on the default queues if a queue that the job names is missing.
        reported = job if barred is None and missing is None else job.model_copy(update={"queues": None})
        if running is None and again and (entry := self._journal.take(key)).state is not EntryState.UNKNOWN:
            return await self._repeat(inflight, reported, key, entry)
        if self._duplicates is not None and barred is None and running is None and not key.marked:
            first = await self._first(self._duplicates, inflight, job, again=again)
            if first is not None:
                return await self._settle(inflight, reported, key, self._settlement.duplicate(job, first), None)
        if barred is None and job.due is not None and job.due > datetime.now(UTC):
            return await self._delay(inflight, job, key, None)
        if (refusal := barred or (missing if running is None else None)) is not None:
            return await self._refuse(inflight, refusal)
        if running is not None:
            inflight.running = running
        else:
            running = inflight.running = self._attempts.begin(job, key, broker, inflight.begun, again=again)
            await self._attempts.run(running, returned=inflight.provenance.returned, closing=self.closing)
        return await self._finish(inflight, job, running)

    async def _read(self, inflight: InFlight) -> Job:
        """Return the job in a message, once there is memory for it.

        Raises:
            InvalidJobError: the message is no job.
        """
        unpacked = await self._reading.unpack(inflight.consumed)
        if unpacked.weight > inflight.octets:
            self._charge(inflight, unpacked.weight - inflight.octets)
        values = unpacked.weight - len(unpacked.text)
        if values:
            inflight.waiting = True
            await self._room.enter(values)
            inflight.waiting, inflight.values = False, values
        return await self._reading.job(unpacked, inflight.consumed)

    async def _first(self, duplicates: Duplicates, inflight: InFlight, job: Job, *, again: bool) -> datetime | None:
        """Return when another publication of the job's id was consumed; None if none was, or if that is unknown."""
        name = inflight.consumed.message_id or job.id
        if not name:
            return None
        try:
            return await duplicates.first(self._outbox.identity(name), inflight.provenance.content, again=again)
        except DuplicatesError as problem:
            self._observer.bug("duplicates", problem)
            return None

    async def _refuse(self, inflight: InFlight, error: InvalidJobError) -> Disposition:
        await self._settlement.refuse(inflight.broker, inflight.consumed, error)
        inflight.broker.ack(inflight.consumed.tag)
        return Disposition.POISONED if error.document is None else Disposition.FAILURE

    async def _repeat(self, inflight: InFlight, job: Job, key: JobKey, entry: Entry) -> Disposition | None:
        """Finish a job that the journal knows from an earlier consumption."""
        match entry.state:
            case EntryState.SETTLED:
                inflight.broker.ack(inflight.consumed.tag)
                return Disposition.REPEATED
            case EntryState.UNDERWAY:
                later = Delayed(ELSEWHERE, Cause.ELSEWHERE, "another process is working on it")
                return await self._delay(inflight, job, key, later)
        assert entry.id is not None
        if entry.record == DELAYED:
            later = Delayed(ELSEWHERE, Cause.ELSEWHERE, "an earlier consumption delayed it already")
            return await self._delay(inflight, job, key, later, entry.id)
        try:
            result = unpack(entry.record, job, datetime.now(UTC))
            made = result, self._settlement.judge(job, result)
        except BaseException:
            self._journal.released(entry.id)  # so that another process can settle it
            raise
        return await self._settle(inflight, job, key, made, entry.id)

    async def _finish(self, inflight: InFlight, job: Job, running: RunningAttempt) -> Disposition | None:
        """Settle the attempt, unless none was made or the job came again and its new handler settles it."""
        try:
            ending = running.ending.result() if running.ending.done() else await asyncio.shield(running.ending)
        except asyncio.CancelledError:
            self._attempts.end(running)
            if not running.ending.cancelled():
                raise
            inflight.broker.requeue(inflight.consumed.tag)
            return Disposition.RETURNED
        if running.broker is not inflight.broker:
            return Disposition.RETURNED
        self._attempts.end(running)
        if not inflight.broker.alive:  # the broker redelivers the job, and the result is in the journal
            if running.entry is not None:
                self._journal.released(running.entry)
            return Disposition.RETURNED
        if isinstance(ending, Delayed):
            return await self._delay(inflight, job, running.key, ending)
        return await self._settle(inflight, job, running.key, ending, running.entry)

    async def _delay(
        self, inflight: InFlight, job: Job, key: JobKey, later: Delayed | None, entry: EntryId | None = None
    ) -> Disposition | None:
        """Delay a job, or let the job expire now if it would expire before its next attempt.

        An `entry` means that an earlier consumption began to delay the job. Without an entry, a publication without a
        mark gets a mark. A publication that another process may have gets none, since that process knows its content.
        """
        if entry is None and not key.marked:
            if later is not None and later.cause is Cause.ELSEWHERE:
                return None
            entry = self.acks.delaying(key)
        provenance = marked(inflight.provenance, entry)
        try:
            delayed = await self._settlement.delay(inflight.broker, inflight.consumed, job, later, provenance)
            if delayed:
                inflight.broker.ack(inflight.consumed.tag)
        except BaseException:
            if entry is not None:
                self._journal.released(entry)
            raise
        if not delayed:
            return await self._settle(inflight, job, key, self._settlement.expire(job), entry)
        self.acks.settled(key, inflight.broker, entry)
        return Disposition.DELAYED

    async def _settle(
        self, inflight: InFlight, job: Job, key: JobKey, made: tuple[Result, Verdict], entry: EntryId | None
    ) -> Disposition:
        """Publish the result of an attempt and acknowledge the job; after an exception a redelivery does so."""
        result, verdict = made
        try:
            if result.bug is not None and job.bugs + 1 >= self._bounds.poison_after:
                reason = f"{job.bugs + 1} attempts met a bug of mailq"
                poison = await offloaded(
                    inflight.octets, partial(_with_result, inflight.consumed, job, result, verdict)
                )
                end = await self._poison(inflight, poison, reason, exception=result.bug, state=result.state)
            else:
                provenance = inflight.provenance if verdict.at is None else marked(inflight.provenance, entry)
                await self._settlement.settle(inflight.broker, inflight.consumed, job, result, verdict, provenance)
                inflight.broker.ack(inflight.consumed.tag)
                end = ENDS[verdict.outcome]
        except BaseException:
            if entry is not None:
                self._journal.released(entry)
            raise
        self.acks.settled(key, inflight.broker, entry)
        return end

    async def _internal_error(self, inflight: InFlight, error: BaseException) -> Disposition:
        """Reject a message after an error outside the attempt; publish it as poison after `poison_after` times."""
        if inflight.consumed.delivery_count + 1 < self._bounds.poison_after:
            # The broker counts deliveries of a rejected message, so the bound is reached. Classic queues count
            # nothing: the pause keeps the broker from redelivering the message without a break.
            asyncio.get_running_loop().call_later(ERROR_PAUSE, inflight.broker.reject, inflight.consumed.tag)
            return Disposition.RETURNED
        exception = f"{type(error).__name__}: {error}"
        reason = "mailq met a bug while it handled the message"
        return await self._poison(inflight, inflight.consumed, reason, exception=exception)

    async def _poison(
        self,
        inflight: InFlight,
        message: Consumed,
        reason: str,
        *,
        exception: str | None = None,
        state: str = State.PROCESS,
    ) -> Disposition:
        await self._settlement.poison(
            inflight.broker, message, reason, inflight.provenance, exception=exception, state=state
        )
        inflight.broker.ack(inflight.consumed.tag)
        return Disposition.POISONED


def _with_result(consumed: Consumed, job: Job, result: Result, verdict: Verdict) -> Consumed:
    """Return a message with its last result appended, ready for another attempt if an operator requeues it."""
    body = orjson.dumps(publications.with_result(job.document, result, replace(verdict, at=None)))
    zipped = consumed.zipped
    return consumed._replace(
        body=gzip.compress(body, 1) if zipped else body, content_encoding="gzip" if zipped else None
    )


async def _missing(job: Job, queues: Queues, broker: Broker) -> InvalidJobError | None:
    """Return why a job is refused if a result queue that it names does not exist."""
    for name in OUTCOMES:
        queue = getattr(queues, name)
        if queue is not None and not await broker.ensure_queue(queue):
            reason = f"queue {queue!r} does not exist; create it or leave the property out"
            return InvalidJobError(reason, f"/queues/{name}", job.document)
    return None
