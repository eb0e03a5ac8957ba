"""Whether another target may help, for every way in which an attempt can end."""

import itertools

import pytest

from mailq.core.answers.classify import Ruleset
from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.patterns import Patterns
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Source, Target

BEFORE = "process suppression storage responsive personalize rewrite"
CONNECTION = "bind connect handshake intro ehlo helo starttls"
LOGIN = "authplain authlogin authusername authpassword authcram authresponse authxoauth2"
EXCHANGE = "mailfrom rcptto data message"
JOB = Job.parse(b'{"recipient": "b@b.test"}', limit=1000)
SILENT = [Kind.TIMEOUT, Kind.LOST, Kind.INVALID]


def product(*sets):
    return list(itertools.product(*sets))


def states(*groups):
    return [State(name) for group in groups for name in group.split()]


def try_next(failure, *, in_doubt):
    trail = Trail(failure.state, in_doubt=in_doubt)
    return Interpreter(Ruleset("none", {}, ()), Patterns(())).falls_back(JOB, failure, trail)


def test_the_groups_are_all_states():
    assert states(BEFORE, "dns", CONNECTION, LOGIN, EXCHANGE) == list(State)


@pytest.mark.parametrize(("state", "kind"), product(states(BEFORE), [*SILENT, Kind.ERROR]))
def test_before_the_connection_no_target_helps(state, kind):
    assert not try_next(Failure(state, kind), in_doubt=False)


@pytest.mark.parametrize(("state", "kind"), product(states(CONNECTION, LOGIN, EXCHANGE), SILENT))
def test_silence_moves_on_unless_the_message_may_have_been_taken(state, kind):
    assert try_next(Failure(state, kind), in_doubt=False)
    assert not try_next(Failure(state, kind), in_doubt=True)


@pytest.mark.parametrize(("state", "code"), product(states(CONNECTION), [450, 500, 554]))
def test_an_answer_about_the_connection_moves_on(state, code):
    assert try_next(Failure(state, Kind.ERROR, reply=Reply(code, None, "no")), in_doubt=False)
    assert try_next(Failure(state, Kind.ERROR), in_doubt=False)


@pytest.mark.parametrize(("state", "code"), product(states(LOGIN, EXCHANGE), [450, 452, 500, 535, 550, 554]))
def test_an_answer_about_the_login_or_the_message_does_not(state, code):
    assert not try_next(Failure(state, Kind.ERROR, reply=Reply(code, None, "no")), in_doubt=False)
    assert not try_next(Failure(state, Kind.ERROR, reply=Reply(code, None, "no")), in_doubt=True)


@pytest.mark.parametrize("state", states(CONNECTION, LOGIN, EXCHANGE))
def test_421_moves_on_from_anywhere(state):
    assert try_next(Failure(state, Kind.ERROR, reply=Reply(421, "4.3.2", "closing")), in_doubt=False)


def test_421_after_the_final_dot_is_an_answer_and_moves_on():
    assert try_next(Failure(State.MESSAGE, Kind.ERROR, reply=Reply(421, None, "closing")), in_doubt=True)


@pytest.mark.parametrize("state", states(EXCHANGE))
def test_our_own_refusal_of_the_exchange_does_not_move_on(state):
    assert not try_next(Failure(state, Kind.ERROR, code=552), in_doubt=False)


@pytest.mark.parametrize(
    ("source", "target", "reaches"),
    [
        (None, "192.0.2.1", True),
        (None, "2001:db8::1", True),
        ("192.0.2.9", "192.0.2.1", True),
        ("192.0.2.9", "2001:db8::1", False),
        ("2001:db8::9", "2001:db8::1", True),
        ("2001:db8::9", "192.0.2.1", False),
    ],
)
def test_a_source_reaches_targets_of_its_family(source, target, reaches):
    mx = Target("mx.example", target, 25)
    assert Source(source, "worker.example").reaches(mx) is reaches
    assert mx.ipv6 is (":" in target)
