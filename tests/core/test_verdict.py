"""What results mean: by the first digit, within the job's time and number of attempts."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.failure import Failure
from mailq.core.job import Job
from mailq.core.reply import Reply
from mailq.core.result import Trail, accepted, failed
from mailq.core.states import Kind, State
from mailq.core.times import format_time
from mailq.core.verdict import Outcome, Verdict, deadline, expired, judge

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
ENDINGS = [(state, kind) for state, kind in product(State, Kind) if kind is not Kind.ACCEPTED]


@dataclass(frozen=True)
class Policy:
    retries: tuple[int, ...] = (60, 600)
    retry_jitter: float = 0
    max_deliver_time: int = 86_400
    max_attempts: int = 0


def job(attempt=1, **properties):
    document = {"recipient": "to@example.org", "results": [{}] * (attempt - 1), **properties}
    return Job.parse(orjson.dumps(document), limit=1_000_000)


def answered(code, state=State.RCPTTO):
    return failed(Trail(), Failure(state, Kind.ERROR, reply=Reply(code, None, "x")), time=NOW, attempt=1)


def ended(state, kind):
    return failed(Trail(), Failure(state, kind), time=NOW, attempt=1)


def verdict(result, of=None, policy=None, now=NOW):
    return judge(of or job(), result, policy or Policy(), now, Random(1))


TRANSIENT = ended(State.CONNECT, Kind.TIMEOUT)


def in_(**time):
    return format_time(NOW + timedelta(**time))


@pytest.mark.parametrize("code", [250, 200, 252, 299])
def test_accepted_is_success(code):
    result = accepted(Trail(), Reply(code, None, "queued"), time=NOW, attempt=1)
    assert verdict(result) == Verdict(Outcome.SUCCESS)
    assert verdict(result, job(maxdelivertime=in_(days=-1), maxattempts=1)) == Verdict(Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (250, "retry"),
        (354, "retry"),
        (421, "retry"),
        (450, "retry"),
        (499, "retry"),
        (500, "failure"),
        (550, "failure"),
        (599, "failure"),
    ],
)
@pytest.mark.parametrize("state", [State.INTRO, State.EHLO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE])
def test_an_answer_is_judged_by_its_first_digit(code, outcome, state):
    assert verdict(answered(code, state)).outcome == outcome


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_without_an_answer_the_table_of_defaults_decides(state, kind):
    expected = Outcome.FAILURE if Failure(state, kind).permanent else Outcome.RETRY
    assert verdict(ended(state, kind)).outcome is expected


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_nothing_but_an_accepted_message_is_success(state, kind):
    for reply in (None, Reply(250, "2.0.0", "ok")):
        result = failed(Trail(), Failure(state, kind, reply=reply), time=NOW, attempt=1)
        assert verdict(result).outcome is not Outcome.SUCCESS


@pytest.mark.parametrize(
    ("properties", "policy", "seconds"),
    [
        ({}, Policy(), 60),
        ({"attempt": 2}, Policy(), 600),
        ({"attempt": 9}, Policy(), 600),
        ({"retries": [5]}, Policy(), 5),
        ({"retries": [5, 10], "attempt": 2}, Policy(), 10),
        ({"maxattempts": 3, "attempt": 2}, Policy(), 600),
        ({"maxattempts": 0, "attempt": 50}, Policy(max_attempts=3), 600),
        ({"maxdelivertime": in_(seconds=60)}, Policy(), 60),
        ({"seen": in_(seconds=-30)}, Policy(max_deliver_time=90), 60),
    ],
)
def test_a_retry_has_its_time(properties, policy, seconds):
    expected = Verdict(Outcome.RETRY, NOW + timedelta(seconds=seconds))
    assert verdict(TRANSIENT, job(**properties), policy) == expected


@pytest.mark.parametrize(
    ("properties", "policy"),
    [
        ({"maxattempts": 1}, Policy()),
        ({"maxattempts": 3, "attempt": 3}, Policy()),
        ({"maxattempts": 3, "attempt": 4}, Policy()),
        ({"attempt": 3}, Policy(max_attempts=3)),
        ({"maxdelivertime": in_(seconds=59)}, Policy()),
        ({"maxdelivertime": in_(days=-1)}, Policy()),
        ({"seen": in_(seconds=-31)}, Policy(max_deliver_time=90)),
        ({}, Policy(max_deliver_time=59)),
    ],
)
def test_a_retry_that_cannot_be_in_time_is_a_failure(properties, policy):
    assert verdict(TRANSIENT, job(**properties), policy) == Verdict(Outcome.FAILURE, expired=True)


def test_a_permanent_answer_is_not_called_expired():
    assert verdict(answered(550), job(maxattempts=1)) == Verdict(Outcome.FAILURE)


@pytest.mark.parametrize(
    ("properties", "policy", "moment"),
    [
        ({}, Policy(max_deliver_time=90), NOW + timedelta(seconds=90)),
        ({"seen": in_(hours=-1)}, Policy(max_deliver_time=90), NOW + timedelta(hours=-1, seconds=90)),
        ({"seen": in_(hours=-1), "maxdelivertime": in_(days=9)}, Policy(), NOW + timedelta(days=9)),
    ],
)
def test_deadline(properties, policy, moment):
    assert deadline(job(**properties), policy, NOW) == moment


@pytest.mark.parametrize(
    ("properties", "policy", "over"),
    [
        ({}, Policy(), False),
        ({"maxdelivertime": in_()}, Policy(), False),
        ({"maxdelivertime": in_(seconds=-1)}, Policy(), True),
        ({"seen": in_(days=-1)}, Policy(), False),
        ({"seen": in_(days=-1, seconds=-1)}, Policy(), True),
        ({"maxattempts": 2, "attempt": 2}, Policy(), False),
        ({"maxattempts": 2, "attempt": 3}, Policy(), True),
        ({"attempt": 3}, Policy(max_attempts=2), True),
        ({"attempt": 3, "maxattempts": 0}, Policy(max_attempts=2), False),
    ],
)
def test_expired(properties, policy, over):
    assert expired(job(**properties), policy, NOW) is over


@given(
    st.sampled_from(ENDINGS),
    st.none() | st.integers(200, 599),
    st.integers(1, 10),
    st.integers(0, 10),
    st.integers(1, 100_000),
    st.floats(0, 0.5),
    st.randoms(use_true_random=False),
)
def test_every_verdict_is_one_that_settlement_can_carry_out(ending, code, attempt, limit, time, jitter, rng):
    reply = Reply(code, None, "x") if code else None
    result = failed(Trail(), Failure(*ending, reply=reply), time=NOW, attempt=attempt)
    policy = Policy(retry_jitter=jitter, max_deliver_time=time, max_attempts=limit)
    asked = job(attempt)
    found = judge(asked, result, policy, NOW, rng)
    assert (found.outcome is Outcome.RETRY) is (found.at is not None)
    if found.at is not None:
        assert NOW < found.at <= deadline(asked, policy, NOW)
        assert not limit or attempt < limit
        assert not expired(job(attempt + 1, seen=format_time(NOW)), policy, found.at)
    if found.expired:
        assert found.outcome is Outcome.FAILURE
        assert result.code < 500
