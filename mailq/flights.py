"""Attempts under way or not long settled, by the identity of their job and the number of the attempt.

When the connection to the broker is lost, the broker hands the unacknowledged jobs out again while
their attempts still run here, and some that were acknowledged too late. A job that comes again
adopts the attempt made for it, so that one e-mail is sent and one result published. Two equal jobs
without an id are two attempts: each is adopted once.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

from mailq.core.failure import Postponed
from mailq.core.job import Job
from mailq.core.result import Result, Trail
from mailq.core.verdict import Verdict
from mailq.ports import Broker

KEPT = 3600.0
"""Seconds for which a made attempt waits for its job, which another worker may have got."""

REMEMBERED = 5000
"""Settled attempts that are remembered; the broker's acknowledgements lag by less."""


Ending = tuple[Result, Verdict] | Postponed
"""What an attempt came to and what that means, or that none was made."""


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt: under way, made, or settled."""

    key: tuple[str, int]
    broker: Broker
    ending: asyncio.Future[Ending]
    trail: Trail = field(default_factory=Trail)
    begun: float = field(default_factory=monotonic)
    settled: bool = False


class Flights:
    """The attempts of this process that may still be asked for."""

    def __init__(self) -> None:
        self._flights: dict[tuple[str, int], list[Flight]] = {}
        self._settled: deque[Flight] = deque()

    def begin(self, job: Job, broker: Broker) -> Flight:
        """Note a new attempt for a job that came from `broker`."""
        key = (job.identity, job.attempt)
        flight = Flight(key, broker, asyncio.get_running_loop().create_future())
        self._flights.setdefault(key, []).append(flight)
        return flight

    def adopt(self, job: Job, broker: Broker) -> Flight | None:
        """Return an attempt made for this job in an earlier life of the connection, now of `broker`.

        Unsettled ones come first: every one of them is owed a settlement.
        """
        candidates = [
            flight for flight in self._flights.get((job.identity, job.attempt), ()) if flight.broker is not broker
        ]
        for flight in sorted(candidates, key=lambda each: each.settled):
            flight.broker = broker
            return flight
        return None

    def settle(self, flight: Flight, *, remember: bool) -> None:
        """Note that an attempt is settled; it is remembered where its identity tells it from equal jobs."""
        if not remember:
            self.end(flight)
            return
        flight.settled = True
        self._settled.append(flight)
        if len(self._settled) > REMEMBERED:
            self.end(self._settled.popleft())

    def end(self, flight: Flight) -> None:
        """Forget an attempt."""
        flights = self._flights.get(flight.key, [])
        if flight in flights:
            flights.remove(flight)
        if not flights:
            self._flights.pop(flight.key, None)

    def forget_old(self) -> None:
        """Drop made attempts whose job has not come again for an hour: somebody else has it."""
        limit = monotonic() - KEPT
        for flights in list(self._flights.values()):
            for flight in [each for each in flights if each.ending.done() and each.begun < limit]:
                self.end(flight)
