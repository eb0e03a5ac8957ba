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
    """Sees everything, changes nothing: metrics and logs implement it and must not raise."""

    def consumed(self) -> None:
        """A message came from the outbox."""

    def ended(self, end: Disposition) -> None:
        """What became of a message that had come."""

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:
        """The journal cannot be written because of `trouble` (None: it can), and what it has to say."""

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:
        """One attempt was judged."""

    def refused(self, result: Result) -> None:
        """A document that is no job was answered with a result of its own."""

    def delayed(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """A job went back without an attempt."""

    def poisoned(self, reason: str) -> None:
        """A message that is no job went to the poison queue."""

    def published(self, routing_key: str, count: int) -> None:
        """The broker confirmed publications; `routing_key` is an outcome or `delay`, `poison`."""

    def bug(self, where: str, error: BaseException) -> None:
        """Something happened that the code does not foresee."""

    def broker(self, event: str, detail: str) -> None:
        """The connection to the broker changed: connected, lost, blocked, unblocked, retrying."""

    def in_flight(self, jobs: int, sessions: int) -> None:
        """So many jobs are being worked on and so many SMTP connections are open."""

    def session_limit(self, host: str, messages: int) -> None:
        """An MX host was found to take no more than so many messages in one session."""

    def stalled(self, *, stalled: bool) -> None:
        """The outbox holds jobs, the worker is connected, and nothing is delivered to it."""
