"""Attempts under way, by the key of the journal: begun, made and noted; and the leave to hand a message over.

When the connection to the broker is lost, the broker hands the unacknowledged jobs out again while
their attempts still run here. A job that comes again adopts the attempt made for it, so that one e-mail
is sent and one result published. Two equal publications are two attempts: each is adopted once.
What became of an attempt that is over, or that another process makes, is known to the journal.
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
"""Seconds for which a job goes away whose result could not be recorded."""

Ending = tuple[Result, Verdict] | Delayed
"""What an attempt came to and what that means, or that none was made."""


@dataclass(slots=True, eq=False)
class RunningAttempt:
    """One attempt, under way or made and not yet settled.

    `begun` is the moment at which its message was consumed; `again` tells that somebody else may have the same job;
    `entry` is the attempt's place in the journal.
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
        """Refuse to begin what could not be recorded now (see `ports.Claim`)."""
        if not (self.broker.alive and self.broker.recording):
            raise Delayed(UNRECORDED, Cause.BROKER, "the broker records no results at the moment")

    def hand_over(self) -> None:
        """Note that the message is about to be handed over (see `ports.Claim`)."""
        if self.entry is not None:  # to the target before this one, which refused it
            self.journal.withdrawn(self.entry)
            self.entry = None
        self.enter()

    def enter(self) -> None:
        """Note the attempt in the journal.

        RabbitMQ may have given the message to another process: the connection is over, silent, or could not be read
        while this process stood still. An attempt of a marked publication looks for the other process's entries first.
        The other process may have forgotten its entry of an unmarked one, so that no attempt is made of that.

        Raises:
            Postponed: another process has the same job, or may have.
            JournalError: it cannot be noted.
        """
        lost = not self.broker.alive or self.broker.silent or self.standstill.since(self.begun)
        if lost and not self.key.marked:
            raise Delayed(UNRECORDED, Cause.ELSEWHERE, "the broker may give the job out again")
        self.entry = self.journal.hand_over(self.key, contested=self.again or lost)

    def withdraw(self) -> None:
        """Note that no receiver has the message, unless one may have it."""
        if self.entry is not None and not self.trail.in_doubt:
            self.journal.withdrawn(self.entry)
            self.entry = None


class RunningAttempts:
    """The attempts of this process that may still be asked for."""

    def __init__(self, journal: Journal, delivery: Delivery, settlement: Settlement, standstill: Standstill) -> None:
        self._journal = journal
        self._delivery = delivery
        self._settlement = settlement
        self._standstill = standstill
        self._attempts: dict[bytes, list[RunningAttempt]] = {}

    def begin(self, job: Job, key: JobKey, broker: Broker, begun: float, *, again: bool) -> RunningAttempt:
        """Note a new attempt for a job that came from `broker` in a message consumed at `begun`."""
        ending = asyncio.get_running_loop().create_future()
        running = RunningAttempt(job, key, broker, begun, self._standstill, self._journal, ending, again)
        running.trail.warnings = job.warnings
        self._attempts.setdefault(key.digest, []).append(running)
        return running

    def adopt(self, key: JobKey, broker: Broker, begun: float) -> RunningAttempt | None:
        """Return an attempt made for this job since an earlier life of the connection, from now on of `broker`."""
        for running in self._attempts.get(key.digest, ()):
            if running.broker is not broker:
                running.broker, running.begun, running.again = broker, begun, True
                return running
        return None

    def has(self, key: JobKey) -> bool:
        """Tell whether there is an attempt for the publication, or for an equal one without a mark."""
        return key.digest in self._attempts

    def end(self, running: RunningAttempt) -> None:
        """Forget an attempt."""
        attempts = self._attempts.get(running.key.digest, [])
        if running in attempts:
            attempts.remove(running)
        if not attempts:
            self._attempts.pop(running.key.digest, None)

    async def run(self, running: RunningAttempt, *, returned: bool, closing: bool) -> None:
        """Make the attempt and leave its ending in the flight and in the journal; cancels that if none is made."""
        try:
            # A job of a lost connection is handed out again: to begin now would be to send it twice.
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
        """Note what came of an attempt, so that its job, should it come again, is not attempted again.

        A retry that was published twice is two messages of one attempt: only one of them may go on from here.
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
