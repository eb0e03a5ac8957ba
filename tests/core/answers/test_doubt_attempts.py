"""A message that may have arrived is sent again a few times at most, however much time there is left."""

from datetime import UTC, datetime
from random import Random

import orjson
import pytest

from mailq.core.answers.verdict import Outcome, judge
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, failed
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.delivery.policy import Policy

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
DOUBT = {"state": "message", "result": "lost", "in_doubt": True}
CLEAR = {"state": "rcptto", "result": "error", "code": 451}


def verdict(*results, policy=None, failure=None, **properties):
    job = Job.parse(orjson.dumps({"recipient": "to@example.org", "results": results, **properties}), limit=100_000)
    trail = Trail(State.MESSAGE, in_doubt=True)
    failure = failure or Failure(State.MESSAGE, Kind.TIMEOUT)
    result = failed(trail, failure, time=NOW, attempt=job.attempt)
    return judge(job, result, policy or Policy(), NOW, Random(1))


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        ((), Outcome.RETRY),
        ((DOUBT,), Outcome.RETRY),
        ((CLEAR, CLEAR, CLEAR, DOUBT), Outcome.RETRY),
        ((DOUBT, DOUBT), Outcome.FAILURE),
        ((DOUBT, CLEAR, DOUBT), Outcome.FAILURE),
        (({"in_doubt": "yes"}, {"in_doubt": 1}), Outcome.RETRY),  # nothing that mailq has written
    ],
)
def test_the_third_attempt_in_doubt_is_the_last(results, outcome):
    assert verdict(*results).outcome is outcome


def test_who_reads_the_verdict_is_told_why():
    given_up = verdict(DOUBT, DOUBT, on_doubt="retry")

    assert given_up.why == "doubt_attempts"
    assert given_up.expired


def test_the_bound_is_configured():
    assert verdict(policy=Policy(doubt_attempts=1)).outcome is Outcome.FAILURE
    assert verdict(*[DOUBT] * 20, policy=Policy(doubt_attempts=0)).outcome is Outcome.RETRY


def test_an_answer_is_not_in_doubt_whatever_came_before():
    busy = Failure(State.MESSAGE, Kind.ERROR, reply=Reply(451, None, "busy"))
    assert verdict(DOUBT, DOUBT, DOUBT, failure=busy).outcome is Outcome.RETRY
