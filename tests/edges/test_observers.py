"""Observers behind one: all are told, and none can harm the flow."""

from datetime import UTC, datetime

import pytest

from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.states import Kind, State
from mailq.edges.observers import Observers

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
JOB = Job.parse(b'{"recipient":"a@example.com","mime":"x"}', limit=1000)
RESULT = Result(State.MESSAGE, Kind.ACCEPTED, NOW, 1, 250, "2.0.0", "ok", {}, {})

CALLS = [
    ("attempted", (JOB, RESULT, Verdict(Outcome.SUCCESS)), {}),
    ("refused", (RESULT,), {}),
    ("delayed", (JOB, NOW, Cause.RATE, "too fast"), {}),
    ("poisoned", ("no recipient",), {}),
    ("published", ("success", 3), {}),
    ("bug", ("settlement", ValueError("x")), {}),
    ("broker", ("lost", "heartbeat"), {}),
    ("in_flight", (3, 2), {}),
    ("session_limit", ("mx.test", 10), {}),
    ("stalled", (), {"stalled": True}),
]


class Recorder:
    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.seen.append((name, args, kwargs))


class Broken:
    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def call(*_args, **_kwargs):
            raise self.error

        return call


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS, ids=[name for name, *_ in CALLS])
def test_every_observer_is_told_the_same(name, args, kwargs):
    one, two = Recorder(), Recorder()

    getattr(Observers(one, two), name)(*args, **kwargs)

    assert one.seen == two.seen == [(name, args, kwargs)]


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS, ids=[name for name, *_ in CALLS])
def test_a_broken_observer_is_counted_reported_once_and_harms_nobody(name, args, kwargs):
    trouble = RuntimeError("disk full")
    before, after = Recorder(), Recorder()
    observers = Observers(before, Broken(trouble), after)

    getattr(observers, name)(*args, **kwargs)
    getattr(observers, name)(*args, **kwargs)

    told = (name, args, kwargs)
    report = ("bug", ("observer Broken", trouble), {})
    assert before.seen == [told, report, told]
    assert after.seen == [report, told, told]
    assert observers.failures == 2


def test_observers_that_are_all_broken_still_harm_nobody():
    observers = Observers(Broken(RuntimeError("x")), Broken(ValueError("y")))

    for name, args, kwargs in CALLS:
        getattr(observers, name)(*args, **kwargs)

    assert observers.failures > len(CALLS)


def test_what_ends_the_process_is_not_swallowed():
    observers = Observers(Broken(KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        observers.in_flight(1, 1)
