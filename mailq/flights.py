"""Attempts under way, by what names their job's attempt: begun, made and noted; and the leave to hand a message over.

When the connection to the broker is lost, the broker hands the unacknowledged jobs out again while
their attempts still run here. A job that comes again adopts the attempt made for it, so that one e-mail
is sent and one result published. Two equal jobs without an id are two attempts: each is adopted once.
What became of an attempt that is over, or that another process makes, is known to the journal.
"""

import asyncio
from dataclasses import dataclass, field

from mailq.core.failure import Cause, Postponed
from mailq.core.job import Job
from mailq.core.journal import EntryId, JournalError, key_of
from mailq.core.result import Result, Trail, pack
from mailq.core.verdict import Verdict
from mailq.delivery import Delivery
from mailq.ports import Broker, Journal
from mailq.settlement import Settlement

UNRECORDED = 1.0
"""Seconds for which a job goes away whose result could not be recorded."""

Ending = tuple[Result, Verdict] | Postponed
"""What an attempt came to and what that means, or that none was made."""


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt, under way or made and not yet settled.

    `again` tells that somebody else may have the same job; `entry` is the attempt's place in the journal.
    """

    job: Job
    broker: Broker
    journal: Journal
    ending: asyncio.Future[Ending]
    again: bool = False
    trail: Trail = field(default_factory=Trail)
    entry: EntryId | None = None

    def begin(self) -> None:
        """Refuse to begin what could not be recorded now (see `ports.Claim`)."""
        if not (self.broker.alive and self.broker.recording):
            raise Postponed(UNRECORDED, Cause.BROKER, "the broker records no results at the moment")

    def hand_over(self) -> None:
        """Note that the message is about to be handed over (see `ports.Claim`)."""
        if self.entry is not None:  # to the target before this one, which refused it
            self.journal.withdrawn(self.entry)
            self.entry = None
        self.enter()

    def enter(self) -> None:
        """Note the attempt in the journal.

        Of a job that nobody named and that the broker gives out again, what another process may have done with it
        meanwhile looks like an equal job's: whoever has it now begins anew.

        Raises:
            Postponed: another process has the same job, or may have.
            JournalError: it cannot be noted.
        """
        alive = self.broker.alive
        if not alive and not self.job.identified:
            raise Postponed(UNRECORDED, Cause.ELSEWHERE, "the broker gives the job out again")
        self.entry = self.journal.hand_over(key_of(self.job), contested=self.again or not alive)

    def withdraw(self) -> None:
        """Note that no receiver has the message, unless one may have it."""
        if self.entry is not None and not self.trail.in_doubt:
            self.journal.withdrawn(self.entry)
            self.entry = None


class Flights:
    """The attempts of this process that may still be asked for."""

    def __init__(self, journal: Journal, delivery: Delivery, settlement: Settlement) -> None:
        self._journal = journal
        self._delivery = delivery
        self._settlement = settlement
        self._flights: dict[tuple[str, int], list[Flight]] = {}

    def begin(self, job: Job, broker: Broker, *, again: bool) -> Flight:
        """Note a new attempt for a job that came from `broker`."""
        flight = Flight(job, broker, self._journal, asyncio.get_running_loop().create_future(), again)
        flight.trail.warnings = job.warnings
        self._flights.setdefault((job.identity, job.attempt), []).append(flight)
        return flight

    def adopt(self, job: Job, broker: Broker) -> Flight | None:
        """Return an attempt made for this job since an earlier life of the connection, from now on of `broker`."""
        for flight in self._flights.get((job.identity, job.attempt), ()):
            if flight.broker is not broker:
                flight.broker, flight.again = broker, True
                return flight
        return None

    def has(self, job: Job) -> bool:
        """Tell whether there is an attempt for the job, or for an equal one that nobody told apart from it."""
        return (job.identity, job.attempt) in self._flights

    def end(self, flight: Flight) -> None:
        """Forget an attempt."""
        key = (flight.job.identity, flight.job.attempt)
        flights = self._flights.get(key, [])
        if flight in flights:
            flights.remove(flight)
        if not flights:
            self._flights.pop(key, None)

    async def fly(self, flight: Flight, *, returned: bool, closing: bool) -> None:
        """Make the attempt and leave its ending in the flight and in the journal; cancels that if none is made."""
        try:
            # A job of a lost connection is handed out again: to begin now would be to send it twice.
            if closing or not flight.broker.alive:
                return
            made = await self._delivery.attempt(flight.job, flight.trail, flight, returned=returned)
            if not isinstance(made, Postponed):
                made = self._recorded(flight, made)
            if isinstance(made, Postponed):
                flight.withdraw()
                flight.ending.set_result(made)
                return
            flight.ending.set_result((made, self._settlement.judge(flight.job, made)))
        finally:
            if not flight.ending.done():
                flight.withdraw()
                flight.ending.cancel()
                self.end(flight)

    def _recorded(self, flight: Flight, result: Result) -> Result | Postponed:
        """Note what came of an attempt, so that its job, should it come again, is not attempted again.

        A retry that was published twice is two messages of one attempt: only one of them may go on from here.
        """
        try:
            if flight.entry is None:
                flight.enter()
        except Postponed as later:
            return later
        except JournalError:
            return result  # the receiver has nothing, so another attempt does no harm
        assert flight.entry is not None
        self._journal.answered(flight.entry, pack(result))
        return result
