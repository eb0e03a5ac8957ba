"""Destinations that are left alone: from where, how long, and what is left when some sources are free."""

import pytest

from mailq.core.failure import Failure, Postponed
from mailq.core.pause import LEAST, MOST, Pause, paused
from mailq.core.reply import Reply
from mailq.core.routing import Route, Source, Target, Tls
from mailq.core.states import Kind, State
from mailq.traffic import governor
from mailq.traffic.governor import Governor

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
    with pytest.raises(Postponed) as later:
        mine.unpaused([BULK, OTHER], SITE, TARGETS)
    assert (later.value.wait, later.value.reason) == (600, "why")

    clock[0] += 601
    assert list(mine.unpaused([BULK, OTHER], SITE, TARGETS)) == [BULK, OTHER]


def test_the_first_pause_that_ends_is_waited_for(clock):
    mine = Governor([])
    mine.pause(ALONE, SITE, 600, "long")
    clock[0] += 100
    mine.pause(ANY, SITE, 60, "short")

    with pytest.raises(Postponed) as later:
        mine.unpaused([ALONE, ANY], SITE, TARGETS)
    assert (later.value.wait, later.value.reason) == (60, "short")


def test_a_free_source_of_the_wrong_family_is_no_way_out():
    mine = Governor([])
    mine.pause(ALONE, SITE, 600, "why")

    with pytest.raises(Postponed):
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
