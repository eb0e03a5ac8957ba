"""What endings mean for those who read them: the smarthost or next target, and rules replaced while running."""

import pytest

from mailq.config.classify import ruleset_of
from mailq.config.patterns import PatternConfig, patterns_of
from mailq.core.failure import Failure
from mailq.core.job import Job
from mailq.core.meaning import Meaning
from mailq.core.reply import Reply
from mailq.core.result import Trail, failed
from mailq.core.states import Kind, State
from mailq.core.times import parse_time

JOB = Job.parse(b'{"recipient": "b@b.test", "mime": "x"}', limit=1000)
NOW = parse_time("2030-01-01 00:00:00")


def meaning(**keys):
    return Meaning(ruleset_of(()), patterns_of([PatternConfig.model_validate({"id": "mine", **keys})] if keys else ()))


def refused(state, code):
    return Failure(state, Kind.ERROR, reply=Reply(code, None, "no"))


@pytest.mark.parametrize(
    ("failure", "keys", "falls"),
    [
        (Failure(State.CONNECT, Kind.TIMEOUT), {}, True),
        (Failure(State.CONNECT, Kind.TIMEOUT), {"states": ["connect"], "fallback": False}, False),
        (Failure(State.DNS, Kind.TIMEOUT), {}, True),
        (Failure(State.DNS, Kind.ERROR, code=451), {}, True),
        (Failure(State.DNS, Kind.ERROR, code=556), {}, False),
        (Failure(State.DNS, Kind.ERROR, code=556), {"states": ["dns"], "fallback": True}, True),
        (refused(State.RCPTTO, 550), {}, False),
        (refused(State.RCPTTO, 550), {"codes": [550], "fallback": True}, True),
        (refused(State.RCPTTO, 550), {"domains": ["a.test"], "fallback": True}, False),
    ],
)
def test_what_falls_back(failure, keys, falls):
    assert meaning(**keys).falls_back(JOB, failure, Trail()) is falls


def test_doubt_never_falls_back_but_an_answer_ends_it():
    everything = meaning(fallback=True)
    assert not everything.falls_back(JOB, Failure(State.MESSAGE, Kind.LOST), Trail(in_doubt=True))
    assert everything.falls_back(JOB, refused(State.MESSAGE, 451), Trail(in_doubt=True))


def test_replaced_rules_and_patterns_hold_from_then_on():
    mine, newest = meaning(), meaning(codes=[450], retry=5)
    result = failed(Trail(), refused(State.RCPTTO, 450), time=NOW, attempt=1)
    assert mine.of(JOB, result).effects.patterns == ()

    mine.replace(newest)

    assert mine.of(JOB, result).effects.patterns == ("mine",)


def test_only_patterns_that_say_so_pause():
    assert not meaning().patterns.pauses
    assert not meaning(codes=[450], individual=True).patterns.pauses
    assert meaning(codes=[450], individual=False).patterns.pauses
    assert (len(meaning().patterns), len(meaning(codes=[450], retry=5).patterns)) == (0, 1)
