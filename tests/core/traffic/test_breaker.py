"""The breaker: opens after failures in a row, lets one probe through, closes on success."""

import pytest

from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.breaker import FIRST_PAUSE, LONGEST_PAUSE, THRESHOLD, Breaker, counts, remembered

REFUSED = Failure(State.CONNECT, Kind.ERROR, "Connection refused")


def broken(times, now=0.0):
    breaker = Breaker()
    for _ in range(times):
        breaker = breaker.failed(REFUSED, now)
    return breaker


def test_it_opens_at_the_threshold_and_not_before():
    assert not broken(THRESHOLD - 1).is_open(0.0)
    assert broken(THRESHOLD).is_open(FIRST_PAUSE - 0.1)


def test_one_probe_goes_through_after_the_pause_and_the_others_wait_for_it():
    breaker = broken(THRESHOLD)

    assert not breaker.is_open(FIRST_PAUSE)
    assert breaker.probing(FIRST_PAUSE).is_open(FIRST_PAUSE + 1)


def test_each_failed_probe_doubles_the_pause_up_to_the_longest():
    breaker, pauses = broken(THRESHOLD), []
    for _ in range(7):
        pauses.append(breaker.pause)
        breaker = breaker.probing(0.0).failed(REFUSED, 0.0)

    assert pauses == [30, 60, 120, 240, 480, LONGEST_PAUSE, LONGEST_PAUSE]


def test_those_who_began_before_it_opened_do_not_lengthen_the_pause():
    breaker = broken(THRESHOLD + 17)  # twenty connections at once, all of them time out

    assert breaker.pause == FIRST_PAUSE
    assert not breaker.is_open(FIRST_PAUSE)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure(State.CONNECT, Kind.TIMEOUT), True),
        (Failure(State.CONNECT, Kind.ERROR), True),
        (Failure(State.INTRO, Kind.LOST), True),
        (Failure(State.INTRO, Kind.ERROR, reply=Reply(421, None, "busy")), True),
        (Failure(State.INTRO, Kind.ERROR, reply=Reply(554, None, "no")), False),
        (Failure(State.RCPTTO, Kind.ERROR, reply=Reply(550, None, "no")), False),
        (Failure(State.DNS, Kind.TIMEOUT), False),
    ],
)
def test_only_trouble_with_getting_a_conversation_counts(failure, expected):
    assert counts(failure) is expected


BUSY = Failure(State.INTRO, Kind.ERROR, reply=Reply(421, "4.3.2", "busy"))


@pytest.mark.parametrize("known", [REFUSED, BUSY])
def test_who_did_not_try_gets_the_real_reason(known):
    told = remembered(known)

    assert told is not known
    assert vars(told) == vars(known)
