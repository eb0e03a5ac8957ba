"""One consumed message to its end: read, looked up, attempted, settled, acknowledged.

`_work` is the way of a job. Whatever happens, a message ends in exactly one way (`core.ending.End`), and it is
acknowledged only when everything published for it was confirmed; else the broker hands it out again. What may
have been handed to a receiver before, by this process or another one of the host, is known to the journal.
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
from mailq.core.journal.records import PARKED, Entry, EntryId, EntryState, JobKey, JournalError
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
"""Seconds for which a job goes away, or stays here, that another process is just working on."""


STUMBLED = 1.0
"""Seconds until a message goes back on which mailq's own code stumbled."""


@dataclass(frozen=True, slots=True)
class WorkerBounds:
    """How much a worker takes and does at once and how long it waits; times in seconds, sizes in octets."""

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
    """One message being handled: the octets it takes, since when, the octets of many values, its attempt, and its end.

    While it is `waiting` nothing is done with it.
    """

    broker: Broker
    consumed: Consumed
    octets: int
    begun: float
    provenance: Provenance = UNKNOWN
    values: int = 0
    flight: RunningAttempt | None = None
    waiting: bool = False
    end: Disposition = Disposition.RETURNED


class Handler:
    """Sees every message to its end."""

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
        self.cases: dict[asyncio.Task[None], InFlight] = {}
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
        self._flights = RunningAttempts(journal, delivery, settlement, self.standstill)
        self.receipts = AckTracker(journal, self._flights)
        self._suspects = Quarantine(journal)

    @property
    def drift(self) -> int:
        """By how much the equation is wrong: messages consumed that neither ended nor are in flight."""
        return self._consumed - self._ended - len(self.cases)

    def take(self, broker: Broker, consumed: Consumed) -> None:
        """Begin to handle a message, and receive no more where memory is full."""
        self.last_delivery = monotonic()
        case = InFlight(broker, consumed, 0, self.standstill.look())
        self._charge(case, consumed.octets)
        self._consumed += 1
        self._observer.consumed()
        task = asyncio.create_task(self._handle(case))
        self.cases[task] = case
        task.add_done_callback(partial(self._done, case))

    def _charge(self, case: InFlight, octets: int) -> None:
        """Count memory that a message takes, and receive no more where it is full."""
        case.octets += octets
        self.in_memory += octets
        if self.in_memory > self._bounds.in_memory:
            case.broker.hold(held=True)
            self._held.add(case.broker)

    def give_back(self, *, hurried: bool) -> None:
        """Cancel the attempts of which no receiver has heard; hurried, all whose message no receiver may have."""
        for task, case in list(self.cases.items()):
            if case.flight is None:
                unspoken = hurried or case.waiting
            elif case.flight.ending.done():
                unspoken = False  # its result is being published
            else:
                state = case.flight.trail.state
                unspoken = state is not State.MESSAGE if hurried else ORDER[state] < ORDER[State.BIND]
            if unspoken:
                task.cancel()

    def _done(self, case: InFlight, task: asyncio.Task[None]) -> None:
        del self.cases[task]
        self._ended += 1
        self._observer.ended(case.end)
        self.in_memory -= case.octets
        if case.values:
            self._room.leave(case.values)
        if self._held and self.in_memory <= self._bounds.in_memory:
            # All of them: what filled the memory may have come over a connection that is lost.
            for broker in self._held:
                broker.hold(held=False)
            self._held.clear()

    async def _handle(self, case: InFlight) -> None:
        try:
            try:
                while (end := await self._process(case)) is None:
                    await self._wait(case)
                case.end = end
            except (BrokerError, JournalError):
                raise
            except (OversizedError, UnencodableError) as refusal:  # put aside as it came, and alone
                case.end = await self._poison(case, case.consumed, str(refusal))
            except STOPS:
                raise
            except BaseException as error:  # noqa: BLE001 - outside the attempt: the job goes back, in the end to poison
                self._observer.bug("worker", error)
                case.end = await self._stumble(case, error)
        except BrokerError as trouble:
            # Not recorded, so not done: the broker hands the job out again, and what was made is in the journal.
            self._observer.broker("unsettled", str(trouble))
            case.broker.fail(trouble)
        except JournalError as trouble:
            case.broker.fail(BrokerError(str(trouble)))

    async def _wait(self, case: InFlight) -> None:
        """Let time pass for a publication without a mark that may be another process's just now.

        A copy of it on its way could not be told from an equal one, so it stays. The connection lives longer than that,
        or the message comes again over another one.
        """
        case.flight, case.waiting = None, True
        await asyncio.sleep(ELSEWHERE)
        case.waiting = False
        case.begun = self.standstill.look()

    async def _process(self, case: InFlight) -> Disposition | None:
        """Handle a message and return how it ended; None: not yet, it is to be handled once more."""
        read = partial(self._outbox.read, case.consumed)
        case.provenance = await offloaded(len(case.consumed.body), read)
        if (loop := self._settlement.loop(case.consumed)) is not None:
            return await self._poison(case, case.consumed, loop)
        if case.consumed.delivery_count < self._bounds.poison_after:
            while self._suspects.trying:
                await self._suspects.calm()
            return await self._work(case)
        deaths = self._suspects.deaths(case.consumed)
        if deaths >= DEADLY:
            reason = f"{deaths} worker processes died while they handled it alone"
            return await self._poison(case, case.consumed, reason)
        async with self._suspects.trial(case.consumed, case.consumed.delivery_count - self._bounds.poison_after):
            return await self._work(case)

    async def _work(self, case: InFlight) -> Disposition | None:
        broker, consumed = case.broker, case.consumed
        try:
            job = await self._read(case)
        except InvalidJobError as error:
            return await self._refuse(case, error)
        barred = None if job.queues is None else self._settlement.barred(job)
        missing = None if job.queues is None or barred else await _missing(job, job.queues, broker)
        key = self._outbox.key(case.provenance, job.attempt)
        if not key.marked:
            self.receipts.equal(key, broker)
        again = consumed.redelivered or key.marked or case.provenance.requeued
        flight = self._flights.adopt(key, broker, case.begun) if consumed.redelivered else None
        # A known result is told, if not on the queue that was asked for, since that is gone.
        told = job if barred is None and missing is None else job.model_copy(update={"queues": None})
        if flight is None and again and (entry := self._journal.take(key)).standing is not EntryState.UNKNOWN:
            return await self._repeat(case, told, key, entry)
        if self._duplicates is not None and barred is None and flight is None and not key.marked:
            first = await self._first(self._duplicates, case, job, again=again)
            if first is not None:
                return await self._settle(case, told, key, self._settlement.duplicate(job, first), None)
        if barred is None and job.due is not None and job.due > datetime.now(UTC):
            return await self._park(case, job, key, None)
        if (refusal := barred or (missing if flight is None else None)) is not None:
            return await self._refuse(case, refusal)
        if flight is not None:
            case.flight = flight
        else:
            flight = case.flight = self._flights.begin(job, key, broker, case.begun, again=again)
            await self._flights.fly(flight, returned=case.provenance.returned, closing=self.closing)
        return await self._land(case, job, flight)

    async def _read(self, case: InFlight) -> Job:
        """Return the job in a message, once there is memory for it.

        Raises:
            InvalidJobError: it is none.
        """
        unpacked = await self._reading.unpack(case.consumed)
        if unpacked.weight > case.octets:
            self._charge(case, unpacked.weight - case.octets)
        values = unpacked.weight - len(unpacked.text)
        if values:
            case.waiting = True
            await self._room.enter(values)
            case.waiting, case.values = False, values
        return await self._reading.job(unpacked, case.consumed)

    async def _first(self, duplicates: Duplicates, case: InFlight, job: Job, *, again: bool) -> datetime | None:
        """Return when another publication of the job's id was consumed; None: none was, or nobody can tell."""
        name = case.consumed.message_id or job.id
        if not name:
            return None
        try:
            return await duplicates.first(self._outbox.identity(name), case.provenance.content, again=again)
        except DuplicatesError as trouble:
            self._observer.bug("duplicates", trouble)
            return None

    async def _refuse(self, case: InFlight, error: InvalidJobError) -> Disposition:
        await self._settlement.refuse(case.broker, case.consumed, error)
        case.broker.ack(case.consumed.tag)
        return Disposition.POISONED if error.document is None else Disposition.FAILURE

    async def _repeat(self, case: InFlight, job: Job, key: JobKey, entry: Entry) -> Disposition | None:
        """Do for a job that comes again what is left to be done."""
        match entry.standing:
            case EntryState.SETTLED:
                case.broker.ack(case.consumed.tag)
                return Disposition.REPEATED
            case EntryState.UNDERWAY:
                later = Delayed(ELSEWHERE, Cause.ELSEWHERE, "another process is working on it")
                return await self._park(case, job, key, later)
        assert entry.id is not None
        if entry.record == PARKED:
            later = Delayed(ELSEWHERE, Cause.ELSEWHERE, "it was sent on its way back before")
            return await self._park(case, job, key, later, entry.id)
        try:
            result = unpack(entry.record, job, datetime.now(UTC))
            made = result, self._settlement.judge(job, result)
        except BaseException:
            self._journal.released(entry.id)  # or nobody else could settle it
            raise
        return await self._settle(case, job, key, made, entry.id)

    async def _land(self, case: InFlight, job: Job, flight: RunningAttempt) -> Disposition | None:
        """Settle the attempt, unless none was made or the job came again and its new handler settles it."""
        try:
            ending = flight.ending.result() if flight.ending.done() else await asyncio.shield(flight.ending)
        except asyncio.CancelledError:
            self._flights.end(flight)
            if not flight.ending.cancelled():
                raise
            case.broker.requeue(case.consumed.tag)
            return Disposition.RETURNED
        if flight.broker is not case.broker:
            return Disposition.RETURNED
        self._flights.end(flight)
        if not case.broker.alive:  # the job comes again, here or elsewhere, and what was made is in the journal
            if flight.entry is not None:
                self._journal.released(flight.entry)
            return Disposition.RETURNED
        if isinstance(ending, Delayed):
            return await self._park(case, job, flight.key, ending)
        return await self._settle(case, job, flight.key, ending, flight.entry)

    async def _park(
        self, case: InFlight, job: Job, key: JobKey, later: Delayed | None, entry: EntryId | None = None
    ) -> Disposition | None:
        """Send a job away that is postponed, or not due; one that would come back to no use expires now.

        `entry` tells that this was done before, and perhaps to no end. Else a publication without a mark gets one,
        but not while another process may have it, which knows it by its content.
        """
        if entry is None and not key.marked:
            if later is not None and later.cause is Cause.ELSEWHERE:
                return None
            entry = self.receipts.parking(key)
        provenance = marked(case.provenance, entry)
        try:
            parked = await self._settlement.park(case.broker, case.consumed, job, later, provenance)
            if parked:
                case.broker.ack(case.consumed.tag)
        except BaseException:
            if entry is not None:
                self._journal.released(entry)
            raise
        if not parked:
            return await self._settle(case, job, key, self._settlement.expire(job), entry)
        self.receipts.done(key, case.broker, entry)
        return Disposition.PARKED

    async def _settle(
        self, case: InFlight, job: Job, key: JobKey, made: tuple[Result, Verdict], entry: EntryId | None
    ) -> Disposition:
        """Publish what an attempt came to, and acknowledge the job; or leave that to whoever gets it again."""
        result, verdict = made
        try:
            if result.bug is not None and job.bugs + 1 >= self._bounds.poison_after:
                reason = f"{job.bugs + 1} attempts met a bug of mailq"
                told = await offloaded(case.octets, partial(_told, case.consumed, job, result, verdict))
                end = await self._poison(case, told, reason, exception=result.bug, state=result.state)
            else:
                provenance = case.provenance if verdict.at is None else marked(case.provenance, entry)
                await self._settlement.settle(case.broker, case.consumed, job, result, verdict, provenance)
                case.broker.ack(case.consumed.tag)
                end = ENDS[verdict.outcome]
        except BaseException:
            if entry is not None:
                self._journal.released(entry)
            raise
        self.receipts.done(key, case.broker, entry)
        return end

    async def _stumble(self, case: InFlight, error: BaseException) -> Disposition:
        """Give a message back on which the code outside the attempt stumbled, or put it aside at last."""
        if case.consumed.delivery_count + 1 < self._bounds.poison_after:
            # The broker counts a rejected message, so that the bound is reached. Classic queues count nothing: the
            # pause keeps the message from coming round without a break.
            asyncio.get_running_loop().call_later(STUMBLED, case.broker.reject, case.consumed.tag)
            return Disposition.RETURNED
        exception = f"{type(error).__name__}: {error}"
        reason = "mailq met a bug while it handled the message"
        return await self._poison(case, case.consumed, reason, exception=exception)

    async def _poison(
        self,
        case: InFlight,
        message: Consumed,
        reason: str,
        *,
        exception: str | None = None,
        state: str = State.PROCESS,
    ) -> Disposition:
        await self._settlement.poison(case.broker, message, reason, case.provenance, exception=exception, state=state)
        case.broker.ack(case.consumed.tag)
        return Disposition.POISONED


def _told(consumed: Consumed, job: Job, result: Result, verdict: Verdict) -> Consumed:
    """Return a message with its last result, ready for another attempt should somebody requeue it."""
    body = orjson.dumps(publications.with_result(job.document, result, replace(verdict, at=None)))
    zipped = consumed.zipped
    return consumed._replace(
        body=gzip.compress(body, 1) if zipped else body, content_encoding="gzip" if zipped else None
    )


async def _missing(job: Job, queues: Queues, broker: Broker) -> InvalidJobError | None:
    """Return why a job is refused one of whose own result queues does not exist."""
    for name in OUTCOMES:
        queue = getattr(queues, name)
        if queue is not None and not await broker.ensure_queue(queue):
            reason = f"queue {queue!r} does not exist; create it or leave the property out"
            return InvalidJobError(reason, f"/queues/{name}", job.document)
    return None
