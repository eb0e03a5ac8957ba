"""What a result means: success, failure, or another attempt at a given time. Pure.

The default is the first digit of the result's code, which every result has: 2 success, 4 retry,
5 failure (RFC 5321 section 4.2.1: an unknown code is judged by its first digit). 421 is the
connection's trouble wherever it comes, and 4 by its digit. A retry that could not happen in time
is a failure now.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Protocol

from mailq.core.job import Job
from mailq.core.result import Result
from mailq.core.retry import next_attempt


class Outcome(StrEnum):
    """What settlement has to do with a job."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a result means; `at` is the next attempt's time and only there for a retry."""

    outcome: Outcome
    at: datetime | None = None
    expired: bool = False


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


def deadline(job: Job, policy: RetryPolicy, now: datetime) -> datetime:
    """Return the moment after which the job is given up."""
    return job.maxdelivertime or (job.seen or now) + timedelta(seconds=policy.max_deliver_time)


def expired(job: Job, policy: RetryPolicy, now: datetime) -> bool:
    """Tell whether no further attempt may be made at `now`."""
    limit = job.maxattempts if job.maxattempts is not None else policy.max_attempts
    return now > deadline(job, policy, now) or bool(limit and job.attempt > limit)


def judge(job: Job, result: Result, policy: RetryPolicy, now: datetime, rng: Random) -> Verdict:
    """Return what the result of `job`'s attempt means."""
    if result.delivered:
        return Verdict(Outcome.SUCCESS)
    if result.code // 100 == 5:
        return Verdict(Outcome.FAILURE)
    at = next_attempt(job.attempt, job.retries or policy.retries, policy.retry_jitter, now, rng)
    limit = job.maxattempts if job.maxattempts is not None else policy.max_attempts
    if at > deadline(job, policy, now) or (limit and job.attempt >= limit):
        return Verdict(Outcome.FAILURE, expired=True)
    return Verdict(Outcome.RETRY, at)
