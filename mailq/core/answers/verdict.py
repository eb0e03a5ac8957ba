"""What a result means: success, failure, or another attempt at a given time. Pure.

The default is the first digit of the result's code, which every result has: 2 success, 4 retry,
5 failure (RFC 5321 section 4.2.1: an unknown code is judged by its first digit). 421 is the
connection's trouble wherever it comes, and 4 by its digit. Response patterns (`core.answers.patterns`) come
before that, and before them a producer's `on_doubt: fail` and the number of attempts in doubt. A retry that
could not happen in time is a failure now.

When to try again, the first that there is: the interval of a pattern; the time that the server names
(`core.answers.flags`), within bounds; for greylisting a short interval in the first attempts, if the schedule
has not a shorter one; the schedule. `Verdict.why` tells which it was.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import NamedTuple

from mailq.core.answers.actions import NOTHING, Actions
from mailq.core.answers.classify import Classification
from mailq.core.answers.deadline import RetryPolicy, deadline, longest_wait, most_attempts
from mailq.core.answers.flags import NO_FLAGS, Flags, retry_hint
from mailq.core.answers.schedule import next_attempt
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result

GREYLIST_ATTEMPTS = 3
"""Attempts after which greylisting is waited for as for anything else: time alone does not cure it."""


LAST_WAIT = 60.0


LAST_SHARE = 0.1
"""A wait cut short by `useful_until` must be at least so many seconds, and at least this share of the whole."""


class Outcome(StrEnum):
    """What settlement has to do with a job."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a result means; `at` is the next attempt's time and only there for a retry.

    `why` names what decided, in a few words for the log: `code`, `pattern ID`, `on_doubt`, `doubt_attempts`, `attempts`
    or `expired` for an ending; `schedule`, `greylisting`, `hint N s`, `pattern ID` or `useful_until` for the time of a
    retry.
    `effects` is what patterns want written into the result and, for a retry, into the job.
    """

    outcome: Outcome
    at: datetime | None = None
    expired: bool = False
    flags: Flags = NO_FLAGS
    why: str = ""
    effects: Actions = NOTHING
    classification: Classification | None = None
    ruleset: str = ""

    @property
    def routing_key(self) -> str:
        """The words by which the result exchange routes: outcome, and for what failed category and class."""
        if self.classification is None:
            return str(self.outcome)
        return f"{self.outcome}.{self.classification.category}.{self.classification.number}"

    @property
    def same_source(self) -> bool:
        """Tell whether the next attempt must come from the source of this one: a greylisting server knows it by now."""
        return self.outcome is Outcome.RETRY and self.flags.greylisted


_SUCCESS = Verdict(Outcome.SUCCESS)


def judge(
    job: Job,
    result: Result,
    policy: RetryPolicy,
    now: datetime,
    rng: Random,
    effects: Actions = NOTHING,
    flags: Flags | None = None,
) -> Verdict:
    """Return what the result of `job`'s attempt means.

    `flags` are those inferred from the result (`hints.infer`); None: nothing is read into its words, only the code and
    the schedule count. `effects` are those of the patterns that match it.
    """
    if result.accepted:
        return _SUCCESS
    known = effects.over(flags or Flags(fatal=result.code // 100 == 5))
    if result.in_doubt and (why := _given_up_in_doubt(job, policy)):
        return Verdict(Outcome.FAILURE, expired=why != "on_doubt", flags=known, why=why, effects=effects)
    if effects.fail or known.fatal:
        why = "code" if effects.gives_up is None else _pattern(effects)
        return Verdict(Outcome.FAILURE, flags=known, why=why, effects=effects)
    if job.attempt >= most_attempts(job, policy):
        return Verdict(Outcome.FAILURE, expired=True, flags=known, why="attempts", effects=effects)
    wait = _wait(job, policy, effects, known, retry_hint(result.words) if flags and result.from_peer else None)
    at = next_attempt(1, (wait.seconds,), policy.retry_jitter, now, rng)
    planned = _planned(at, wait, deadline(job, policy, now), now, job)
    if planned is None:
        return Verdict(Outcome.FAILURE, expired=True, flags=known, why="expired", effects=effects)
    why = wait.why if planned == at else "useful_until"
    return Verdict(Outcome.RETRY, planned, flags=known, why=why, effects=effects)


def _given_up_in_doubt(job: Job, policy: RetryPolicy) -> str:
    """Return why a message that may have arrived is not sent again; empty if it is.

    The attempts in doubt are counted in the job's results, and the one that is judged is one more.
    """
    if (job.on_doubt or policy.on_doubt) == "fail":
        return "on_doubt"
    before = sum(isinstance(each, dict) and each.get("in_doubt") is True for each in job.results)
    return "doubt_attempts" if 0 < policy.doubt_attempts <= before + 1 else ""


class _Wait(NamedTuple):
    """Seconds to wait and why; `least` seconds must be waited for an attempt to be of use."""

    seconds: int
    why: str
    least: float


def _wait(job: Job, policy: RetryPolicy, effects: Actions, flags: Flags, hint: int | None) -> _Wait:
    if effects.retry is not None:
        return _Wait(effects.retry, _pattern(effects), effects.retry)
    if hint is not None and policy.hint_max:
        seconds = min(max(hint, policy.hint_min), policy.hint_max)
        return _Wait(seconds, f"hint {hint} s", seconds)
    schedule = job.retries or policy.retries
    usual = schedule[min(job.attempt, len(schedule)) - 1]
    if flags.greylisted and job.attempt <= GREYLIST_ATTEMPTS and 0 < policy.greylist_retry < usual:
        return _Wait(policy.greylist_retry, "greylisting", max(LAST_WAIT, policy.greylist_retry * LAST_SHARE))
    return _Wait(usual, "schedule", max(LAST_WAIT, usual * LAST_SHARE))


def _planned(at: datetime, wait: _Wait, end: datetime, now: datetime, job: Job) -> datetime | None:
    """Return the time of the next attempt, None where none would be of use.

    MailerQ's `maxdelivertime` alone cuts off: no attempt is planned after it. A job that says `useful_until` is planned
    to its end: the last attempt begins so early that it comes back in time from the delay queues (which may be late,
    `core.answers.schedule`) and is through; where the schedule would be later, the wait is cut short once.
    """
    if job.useful_until is None:
        return at if at <= end else None
    latest = now + timedelta(seconds=longest_wait(end, now))
    if at <= latest:
        return at
    last = latest.replace(microsecond=0)
    return last if (last - now).total_seconds() >= wait.least else None


def _pattern(effects: Actions) -> str:
    return f"pattern {effects.decider}"
