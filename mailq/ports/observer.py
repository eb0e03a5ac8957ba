"""The observer of everything that happens: metrics and logs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from mailq.core.answers.verdict import Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause


class Observer(Protocol):
    """Receives all events of the flow; metrics and logs implement the methods, which must not raise."""

    def consumed(self) -> None:
        """The worker consumed a message of the outbox."""

    def ended(self, end: Disposition) -> None:
        """The handling of a consumed message ended with this disposition."""

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:
        """The journal reports its state: why it cannot be written (None: it can), notes and figures."""

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:
        """The settlement judged the result of an attempt."""

    def refused(self, result: Result) -> None:
        """The settlement published a failure for a document that is no job."""

    def delayed(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """A job is delayed without an attempt."""

    def poisoned(self, reason: str) -> None:
        """The settlement published a message to the poison queue."""

    def published(self, routing_key: str, count: int) -> None:
        """The broker confirmed publications; `routing_key` is an outcome or `delay`, `poison`."""

    def bug(self, where: str, error: BaseException) -> None:
        """An exception occurred that the code does not expect."""

    def broker(self, event: str, detail: str) -> None:
        """The connection to the broker changed: connected, lost, blocked, unblocked, retrying."""

    def in_flight(self, jobs: int, sessions: int) -> None:
        """The worker has so many jobs in flight and so many SMTP sessions open."""

    def session_limit(self, host: str, messages: int) -> None:
        """The worker learnt that an MX host takes at most so many messages in one session."""

    def stalled(self, *, stalled: bool) -> None:
        """The broker delivers no messages to a connected worker although the outbox holds jobs, or delivers again."""
