"""Fan-out: several observers behind one `Observer`, none of which can harm the flow.

Bookkeeping never shares the error path of the work. An observer that raises is counted, and the
first time also reported to the others as a bug; then the flow goes on as if nothing had happened.
What is seen, and what it is good for, is each observer's own affair.
"""

from collections.abc import Sequence
from datetime import datetime

from mailq.core.answers.verdict import Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.ports.host import STOPS
from mailq.ports.observer import Observer


class _Guard:
    """What becomes of the exceptions of one observer."""

    __slots__ = ("failures", "observer", "others")

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.others: tuple[_Guard, ...] = ()
        self.failures = 0

    def failed(self, error: BaseException) -> None:
        """Count what an observer raised, and let the others see the first."""
        self.failures += 1
        if self.failures == 1:
            where = f"observer {type(self.observer).__name__}"
            for other in self.others:
                try:
                    other.observer.bug(where, error)
                except STOPS:
                    raise
                except BaseException as another:  # noqa: BLE001 - so is the report of it
                    other.failed(another)


class Observers:
    """Passes everything to each of its observers, in order; itself an `Observer` that never raises."""

    def __init__(self, *observers: Observer) -> None:
        self._guarded = tuple((observer, _Guard(observer)) for observer in observers)
        guards = tuple(guard for _, guard in self._guarded)
        for guard in guards:
            guard.others = tuple(other for other in guards if other is not guard)

    @property
    def failures(self) -> int:
        """How often an observer has raised."""
        return sum(guard.failures for _, guard in self._guarded)

    def _tell(self, event: str, *what: object, **named: object) -> None:
        for observer, guard in self._guarded:
            try:
                getattr(observer, event)(*what, **named)
            except STOPS:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is
                guard.failed(error)

    def consumed(self) -> None:
        """A message came from the outbox."""
        self._tell("consumed")

    def ended(self, end: Disposition) -> None:
        """What became of a message that had come."""
        self._tell("ended", end)

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:
        """Whether the journal can be written, and what it has to say."""
        self._tell("journal", trouble, notes, stats)

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:
        """One attempt was judged."""
        self._tell("attempted", job, result, verdict)

    def refused(self, result: Result) -> None:
        """A document that is no job was answered with a result."""
        self._tell("refused", result)

    def delayed(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """A job went back without an attempt."""
        self._tell("delayed", job, until, cause, reason)

    def poisoned(self, reason: str) -> None:
        """A message that is no job went to the poison queue."""
        self._tell("poisoned", reason)

    def published(self, routing_key: str, count: int) -> None:
        """The broker confirmed publications."""
        self._tell("published", routing_key, count)

    def bug(self, where: str, error: BaseException) -> None:
        """Something happened that the code does not foresee."""
        self._tell("bug", where, error)

    def broker(self, event: str, detail: str) -> None:
        """The connection to the broker changed."""
        self._tell("broker", event, detail)

    def in_flight(self, jobs: int, sessions: int) -> None:
        """So many jobs are being worked on and so many SMTP connections are open."""
        self._tell("in_flight", jobs, sessions)

    def session_limit(self, host: str, messages: int) -> None:
        """An MX host was found to take no more than so many messages in one session."""
        self._tell("session_limit", host, messages)

    def stalled(self, *, stalled: bool) -> None:
        """Jobs wait, the worker is connected, and nothing is delivered to it; or that is over."""
        self._tell("stalled", stalled=stalled)
