"""Destinations that are left alone: from where, how long, and what is left when some sources are free."""

from dataclasses import replace

import pytest

from mailq.core.smtp.failure import Cause, Delayed, Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.breaker import FIRST_PAUSE, PROBE_TIME, PROBE_WAIT, THRESHOLD, about_login, login_refusal
from mailq.core.traffic.pause import LEAST, MOST, Pause, paused
from mailq.core.traffic.routes import Login, Route, Source, Target, Tls
from mailq.delivery import governor
from mailq.delivery.governor import Governor

SITE = ("mx.a.test",)
BULK, OTHER = (Source(f"192.0.2.{number}", "w.test", "bulk") for number in (1, 2))
ALONE = Source("192.0.2.3", "w.test")
ANY = Source(None, "w.test")
SIX = Source("2001:db8::1", "w.test")
TARGETS = [Target("mx.a.test", "198.51.100.1", 25)]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(governor, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds", "lasts"), [(0, LEAST), (-5, LEAST), (600, 600), (86_400, MOST)])
def test_a_pause_has_bounds(seconds, lasts):
    assert paused(None, seconds, "why", 50.0) == Pause(50.0 + lasts, "why")


def test_a_pause_is_made_longer_but_never_cut_short():
    first = paused(None, 600, "first", 0.0)
    assert paused(first, 100, "second", 10.0) is first
    assert paused(first, 600, "second", 10.0) == Pause(610.0, "second")


def test_a_pool_is_paused_as_one_and_others_are_not(clock):
    mine = Governor([])
    mine.pause(BULK, SITE, 600, "why")

    assert list(mine.unpaused([BULK, OTHER, ALONE, ANY], SITE, TARGETS)) == [ALONE, ANY]
    assert list(mine.unpaused([BULK], ("mx.b.test",), TARGETS)) == [BULK]
    with pytest.raises(Delayed) as later:
        mine.unpaused([BULK, OTHER], SITE, TARGETS)
    assert (later.value.wait, later.value.reason) == (600, "why")

    clock[0] += 601
    assert list(mine.unpaused([BULK, OTHER], SITE, TARGETS)) == [BULK, OTHER]


def test_the_first_pause_that_ends_is_waited_for(clock):
    mine = Governor([])
    mine.pause(ALONE, SITE, 600, "long")
    clock[0] += 100
    mine.pause(ANY, SITE, 60, "short")

    with pytest.raises(Delayed) as later:
        mine.unpaused([ALONE, ANY], SITE, TARGETS)
    assert (later.value.wait, later.value.reason) == (60, "short")


def test_a_free_source_of_the_wrong_family_is_no_way_out():
    mine = Governor([])
    mine.pause(ALONE, SITE, 600, "why")

    with pytest.raises(Delayed):
        mine.unpaused([ALONE, SIX], SITE, TARGETS)
    assert mine.unpaused([SIX], SITE, TARGETS) == [SIX]  # that it reaches nothing is told by state bind


@pytest.mark.parametrize(
    ("ending", "spared"),
    [
        (Failure(State.EHLO, Kind.ERROR, reply=Reply(550, None, "not you")), False),  # it takes connections
        (Failure(State.INTRO, Kind.ERROR, reply=Reply(554, None, "no")), False),
        (Failure(State.INTRO, Kind.TIMEOUT), True),
        (Failure(State.CONNECT, Kind.TIMEOUT), True),
        (Failure(State.BIND, Kind.ERROR), True),  # that says nothing of the target
    ],
)
def test_a_probe_that_gets_a_conversation_ends_the_pause_though_it_is_refused_later(clock, ending, spared):
    mine, route = Governor([]), Route(ALONE, TARGETS[0], Tls.NONE)
    for _ in range(3):
        mine.failed(route, Failure(State.CONNECT, Kind.ERROR, "Connection refused"))
    known, seconds = mine.spared(route)
    assert (known.text, seconds) == ("Connection refused", 30)
    clock[0] += 31
    assert mine.spared(route) is None
    mine.probe(route)
    assert mine.spared(route) is not None

    mine.failed(route, ending)

    assert (mine.spared(route) is not None) is spared


RELAY = Route(ANY, Target("relay.test", "198.51.100.7", 587), Tls.REQUIRED, Login("anna", "geheim"))
WRONG = Failure(State.AUTHPLAIN, Kind.ERROR, reply=Reply(535, "5.7.8", "no, geheim is wrong"))


def refused_login(times):
    mine = Governor([])
    for _ in range(times):
        mine.admit(RELAY)
        mine.probe(RELAY)
        mine.failed(RELAY, WRONG)
    return mine


def test_a_login_is_refused_a_few_times_and_then_nobody_tries(clock):
    refused_login(THRESHOLD - 1).admit(RELAY)

    with pytest.raises(Delayed) as later:
        refused_login(THRESHOLD).admit(RELAY)
    assert (later.value.cause, later.value.wait) == (Cause.LOGIN, FIRST_PAUSE)
    assert later.value.reason == ("relay.test port 587: login as anna failed in state authplain with 535 5.7.8")


def test_who_began_before_the_login_was_known_to_be_refused_spends_no_attempt(clock):
    mine = refused_login(THRESHOLD)

    for _ in range(17):
        with pytest.raises(Delayed) as later:
            mine.failed(RELAY, WRONG)
        assert later.value.cause is Cause.LOGIN


def test_one_job_at_a_time_finds_out_whether_a_login_works_again(clock):
    mine = refused_login(THRESHOLD)
    pauses = []
    for _ in range(8):
        clock[0] += 1000
        mine.admit(RELAY)
        mine.probe(RELAY)
        with pytest.raises(Delayed) as others:
            mine.admit(RELAY)
        assert others.value.wait == PROBE_WAIT
        mine.failed(RELAY, WRONG)
        with pytest.raises(Delayed) as later:
            mine.admit(RELAY)
        pauses.append(later.value.wait)
    assert pauses == [60, 120, 240, 480, 900, 900, 900, 900]

    clock[0] += 1000
    mine.admit(RELAY)
    mine.probe(RELAY)
    mine.connected(RELAY)
    mine.admit(RELAY)
    mine.admit(RELAY)


def test_a_probe_that_finds_nothing_out_does_not_hold_up_the_next(clock):
    mine = refused_login(THRESHOLD)
    clock[0] += FIRST_PAUSE
    mine.probe(RELAY)
    clock[0] += PROBE_TIME
    with pytest.raises(Delayed) as later:
        mine.admit(RELAY)
    assert later.value.wait == FIRST_PAUSE - PROBE_TIME

    clock[0] += FIRST_PAUSE
    mine.admit(RELAY)


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, True),
        ({"source": BULK}, True),
        ({"login": Login("anna", "neu")}, False),
        ({"login": Login("berta", "geheim")}, False),
        ({"target": Target("other.test", "198.51.100.7", 587)}, False),
        ({"login": None}, False),
    ],
)
def test_a_login_is_of_one_user_with_one_password_at_one_server(change, held, clock):
    mine = refused_login(THRESHOLD)

    if held:
        with pytest.raises(Delayed):
            mine.admit(replace(RELAY, **change))
    else:
        mine.admit(replace(RELAY, **change))


@pytest.mark.parametrize(
    ("failure", "counted"),
    [
        (WRONG, True),
        (Failure(State.AUTHPLAIN, Kind.ERROR, "offers none", code=454, status="4.7.0"), True),
        (Failure(State.AUTHPLAIN, Kind.ERROR, reply=Reply(454, "4.7.0", "later")), True),
        (Failure(State.STARTTLS, Kind.ERROR, "not verified", code=454, status="4.7.5"), True),
        (Failure(State.AUTHPLAIN, Kind.LOST), False),
        (Failure(State.AUTHPLAIN, Kind.TIMEOUT), False),
        (Failure(State.EHLO, Kind.ERROR, reply=Reply(550, None, "no")), False),
    ],
)
def test_what_counts_as_trouble_with_a_login(failure, counted):
    assert about_login(RELAY, failure) is counted
    assert about_login(replace(RELAY, login=None), failure) is False


def test_a_password_stands_in_no_reason_of_a_delay():
    assert "geheim" not in login_refusal(RELAY, WRONG).text
