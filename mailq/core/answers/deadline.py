"""Deadlines of a job: when it is given up, when it has no use any more, when a delayed job comes back. Pure."""

from datetime import datetime, timedelta
from typing import Protocol

from mailq.core.delay_queues import LATE_SECONDS, LATE_SHARE
from mailq.core.jobs.job import Job
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import printable
from mailq.core.states import Kind, State

LAST_MARGIN = 10.0
"""Seconds before `useful_until` at which the last attempt begins at the latest."""


MAX_ATTEMPTS = 1_000
"""Attempts of a job at most: each leaves a result in it, which travels with all later ones."""


LEAST_ABSENCE = 1.0
"""Seconds that a job goes away at least."""


class RetryPolicy(Protocol):
    """The configured defaults that a verdict needs; see `config.delivery`."""

    @property
    def retries(self) -> tuple[int, ...]:
        """Seconds between attempts, the last repeats."""

    @property
    def retry_jitter(self) -> float:
        """Largest share by which a wait is lengthened."""

    @property
    def max_deliver_time(self) -> int:
        """Seconds from first consumption until a job is given up."""

    @property
    def max_attempts(self) -> int:
        """Number of attempts until a job is given up; 0: no limit."""

    @property
    def on_doubt(self) -> str:
        """What becomes of a message that may have arrived, unless its job says: `retry` or `fail`."""

    @property
    def doubt_attempts(self) -> int:
        """Number of attempts in doubt until a job is given up; 0: no limit of their own."""

    @property
    def greylist_retry(self) -> int:
        """Seconds until a greylisted message is tried again, if the schedule says later; 0: as the schedule says."""

    @property
    def hint_min(self) -> int:
        """Least seconds that are waited where the server names a time."""

    @property
    def hint_max(self) -> int:
        """Most seconds that are waited where the server names a time; 0: what it names is not looked at."""


def deadline(job: Job, policy: RetryPolicy, now: datetime) -> datetime:
    """Return the moment after which the job is given up."""
    end = job.maxdelivertime or (job.seen or now) + timedelta(seconds=policy.max_deliver_time)
    return min(end, job.useful_until or end)


def expired(job: Job, policy: RetryPolicy, now: datetime) -> bool:
    """Tell whether no further attempt may be made at `now`."""
    if job.attempt > most_attempts(job, policy):
        return True
    new = job.seen is None and job.maxdelivertime is None and job.useful_until is None
    return not new and now > deadline(job, policy, now)


def most_attempts(job: Job, policy: RetryPolicy) -> int:
    """Return the number of the last attempt; no job has more than `MAX_ATTEMPTS`, for it carries all their results."""
    limit = job.maxattempts if job.maxattempts is not None else policy.max_attempts
    return min(limit or MAX_ATTEMPTS, MAX_ATTEMPTS)


def expiry(job: Job) -> Failure:
    """Return the ending of a job whose time is over, with the last answer a server gave; it came through strangers."""
    last = job.results[-1] if job.results else {}
    words = printable(" ".join(str(last[name]) for name in ("code", "status", "description") if name in last).encode())
    return Failure(State.PROCESS, Kind.TIMEOUT, timed_out(words))


def timed_out(last: str) -> str:
    """Return SparkPost's words for a job whose time or attempts are used up; `last` is the last answer, if any."""
    return f"[internal] message timeout (last transfail: {last})" if last else "[internal] message timeout"


def back_at(job: Job, policy: RetryPolicy, until: datetime, now: datetime) -> datetime | None:
    """Return when a job that is sent away without an attempt is to come back: at `until`, or before its use ends.

    One whose time is over by then comes back when it is, to be told so. None: its use would have ended by then, or is
    just about to.
    """
    end = deadline(job, policy, now)
    early = job.due is not None and job.due > now  # not before that, says the producer
    if job.useful_until is None:
        return until if early else min(until, max(end, now))
    longest = longest_wait(end, now)
    if until <= now + timedelta(seconds=longest):
        return until
    return None if early or longest < LEAST_ABSENCE else now + timedelta(seconds=longest)


def longest_wait(end: datetime, now: datetime) -> float:
    """Return how many seconds a job may go away, if it is to be back in time for an attempt that ends before `end`."""
    remaining = (end - now).total_seconds() - LAST_MARGIN
    return max(min(remaining / (1 + LATE_SHARE), remaining - LATE_SECONDS), 0.0)
