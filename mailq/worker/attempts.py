"""Running attempts by the key of the journal, and the guard that records each hand-over.

After a lost connection the broker redelivers the unacknowledged jobs while their attempts still run in this process.
A redelivered job adopts the attempt made for it, so that mailq sends one e-mail and publishes one result. Two equal
publications have two attempts, and each attempt is adopted once. The journal knows the attempts that are over, and
those of other processes.
"""

import asyncio
from dataclasses import dataclass, field

from mailq.core.answers.verdict import Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import EntryId, JobKey, JournalError
from mailq.core.results.result import Result, Trail, pack
from mailq.core.smtp.failure import Cause, Delayed
from mailq.delivery.attempt import Delivery
from mailq.ports.broker import Broker
from mailq.ports.journal import Journal
from mailq.worker.settlement import Settlement
from mailq.worker.standstill import Standstill

UNRECORDED = 1.0
"""Seconds for which a job is delayed whose result could not be recorded."""

Ending = tuple[Result, Verdict] | Delayed
"""The result of an attempt and its verdict, or the delay of a job without an attempt."""


@dataclass(slots=True, eq=False)
class RunningAttempt:
    """One attempt that runs, or has ended and is not settled.

    `begun` is the moment at which its message was consumed. `again` says that another process may have the same job.
    `entry` identifies the attempt's entry in the journal.
    """

    job: Job
    key: JobKey
    broker: Broker
    begun: float
    standstill: Standstill
    journal: Journal
    ending: asyncio.Future[Ending]
    again: bool = False
    trail: Trail = field(default_factory=Trail)
    entry: EntryId | None = None

    def begin(self) -> None:
        """Refuse to begin while no result can be recorded (see `ports.journal.HandoverGuard`)."""
        if not (self.broker.alive and self.broker.recording):
            raise Delayed(UNRECORDED, Cause.BROKER, "the broker records no results at the moment")

    def hand_over(self) -> None:
        """Record that the session is about to hand the message over (see `ports.journal.HandoverGuard`)."""
        if self.entry is not None:  # of the target before this one, which refused the message
            self.journal.withdrawn(self.entry)
            self.entry = None
        self.enter()

    def enter(self) -> None:
        """Record the attempt in the journal.

        RabbitMQ may have redelivered the message to another process if the connection is over or silent, or if this
        process stood still. For a marked publication the journal looks for entries of other processes first. Another
        process may have forgotten its entry of an unmarked publication, so the job is delayed without an attempt.

        Raises:
            Delayed: another process has the same job, or may have.
            JournalError: the journal cannot record the attempt.
        """
        lost = not self.broker.alive or self.broker.silent or self.standstill.since(self.begun)
        if lost and not self.key.marked:
            raise Delayed(UNRECORDED, Cause.ELSEWHERE, "the broker may redeliver the job to another process")
        self.entry = self.journal.hand_over(self.key, contested=self.again or lost)

    def withdraw(self) -> None:
        """Withdraw the entry in the journal, unless a receiver may have the message."""
        if self.entry is not None and not self.trail.in_doubt:
            self.journal.withdrawn(self.entry)
            self.entry = None


class RunningAttempts:
    """The attempts of this process that run, or have ended and are not settled."""

    def __init__(self, journal: Journal, delivery: Delivery, settlement: Settlement, standstill: Standstill) -> None:
        self._journal = journal
        self._delivery = delivery
        self._settlement = settlement
        self._standstill = standstill
        self._attempts: dict[bytes, list[RunningAttempt]] = {}

    def begin(self, job: Job, key: JobKey, broker: Broker, begun: float, *, again: bool) -> RunningAttempt:
        """Register a new attempt for a job that came from `broker` in a message consumed at `begun`."""
        ending = asyncio.get_running_loop().create_future()
        running = RunningAttempt(job, key, broker, begun, self._standstill, self._journal, ending, again)
        running.trail.warnings = job.warnings
        self._attempts.setdefault(key.digest, []).append(running)
        return running

    def adopt(self, key: JobKey, broker: Broker, begun: float) -> RunningAttempt | None:
        """Return the attempt made for this job over an earlier connection; `broker` is its connection from now on."""
        for running in self._attempts.get(key.digest, ()):
            if running.broker is not broker:
                running.broker, running.begun, running.again = broker, begun, True
                return running
        return None

    def has(self, key: JobKey) -> bool:
        """Return whether there is an attempt for the publication, or for an equal one without a mark."""
        return key.digest in self._attempts

    def end(self, running: RunningAttempt) -> None:
        """Forget an attempt."""
        attempts = self._attempts.get(running.key.digest, [])
        if running in attempts:
            attempts.remove(running)
        if not attempts:
            self._attempts.pop(running.key.digest, None)

    async def run(self, running: RunningAttempt, *, returned: bool, closing: bool) -> None:
        """Make the attempt and record its ending in `running` and in the journal; without one, cancel the ending."""
        try:
            # The broker redelivers a job of a lost connection: an attempt now would send the message twice.
            if closing or not running.broker.alive:
                return
            made = await self._delivery.attempt(running.job, running.trail, running, returned=returned)
            if not isinstance(made, Delayed):
                made = self._recorded(running, made)
            if isinstance(made, Delayed):
                running.withdraw()
                running.ending.set_result(made)
                return
            running.ending.set_result((made, self._settlement.judge(running.job, made)))
        finally:
            if not running.ending.done():
                running.withdraw()
                running.ending.cancel()
                self.end(running)

    def _recorded(self, running: RunningAttempt, result: Result) -> Result | Delayed:
        """Record the result of an attempt, so that a redelivery of its job makes no second attempt.

        A retry that was published twice is two messages of one attempt; only one of them may be settled.
        """
        try:
            if running.entry is None:
                running.enter()
        except Delayed as later:
            return later
        except JournalError:
            return result  # the receiver has nothing, so another attempt does no harm
        assert running.entry is not None
        self._journal.answered(running.entry, pack(result))
        return result
