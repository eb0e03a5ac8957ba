"""A process that stood still knows."""

import os
import signal

import pytest
from support.puppet import Puppet

from mailq.worker import standstill
from mailq.worker.standstill import HINDSIGHT, Standstill

PROCESS = """
import sys
from mailq.worker.standstill import Standstill, moment
watch, begun = Standstill(0.3), moment()
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


@pytest.fixture
def clock(monkeypatch):
    """Make time pass when it is told to."""
    now = [100.0]
    monkeypatch.setattr(standstill, "moment", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds
        return now[0]

    return pass_by


def test_short_turns_are_no_standstill(clock):
    watch = Standstill(2)
    begun = watch.look()
    for _ in range(50):
        clock(1.9)
        assert not watch.since(begun)


def test_a_long_turn_counts_for_what_began_before_it_and_for_what_comes_just_after(clock):
    watch = Standstill(2)
    before = watch.look()
    clock(2.1)
    assert watch.since(before)  # whoever asks first notices
    late = clock(0.1)
    watch.look()
    assert watch.since(late)
    assert not watch.since(clock(HINDSIGHT))
    assert watch.since(before)


def test_a_stop_counts():
    process = Puppet(PROCESS)
    try:
        assert process("watch.since(begun)") is False
        process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.process.pid, os.WSTOPPED)
        try:
            signal.sigtimedwait((), 0.5)
        finally:
            process.signal(signal.SIGCONT)
        assert process("watch.since(begun)") is True
    finally:
        process.close()
