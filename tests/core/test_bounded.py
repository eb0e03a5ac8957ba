"""What is remembered of destinations is bounded in octets, whoever decides on the names."""

import sys

import pytest

from mailq.core.bounded import ENTRY, BoundedDict, weight
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.breaker import Breaker
from mailq.core.traffic.limits import LimitRule
from mailq.core.traffic.routes import Source, Target
from mailq.delivery.governor import Governor

SOURCE = Source(None, "w.test")


def test_the_oldest_entries_go_when_all_take_too_much():
    recent = BoundedDict(20 * (ENTRY + 200))
    for number in range(100):
        recent.remember(number, "x" * 50)
    assert 20 <= len(recent) < 40
    assert list(recent) == list(range(100 - len(recent), 100))
    assert recent.octets <= 20 * (ENTRY + 200)


def test_an_entry_that_is_written_again_is_counted_once_and_is_the_newest():
    recent = BoundedDict(1_000_000)
    recent.remember("a", "x" * 1000)
    recent.remember("b", "x")
    octets = recent.octets
    recent.remember("a", "x" * 1000)
    assert (recent.octets, list(recent)) == (octets, ["b", "a"])
    recent.forget("a")
    recent.forget("a")
    recent.forget("b")
    assert (recent.octets, dict(recent)) == (0, {})


def test_one_entry_that_is_too_large_does_not_drive_out_the_others():
    recent = BoundedDict(100_000)
    recent.remember("small", "x")
    recent.remember("large", "x" * 50_000)
    assert list(recent) == ["small"]


def test_the_size_may_be_given():
    recent = BoundedDict(100)
    for number in range(20):
        recent.remember(number, None, octets=10)
    assert len(recent) == 10


@pytest.mark.parametrize(
    "value",
    ["x" * 1000, "\u20ac" * 1000, b"x" * 1000, ("x" * 500, ("y" * 400, 1)), ["x" * 100] * 20, frozenset({"x" * 1000})],
)
def test_a_size_is_no_less_than_what_python_says(value):
    def size(each):
        inside = each if isinstance(each, tuple | list | frozenset) else ()
        return sys.getsizeof(each) + sum(size(one) for one in inside)

    assert 0.8 * size(value) < weight(value) < 2 * size(value) + 200


def test_the_text_of_a_server_is_weighed():
    failure = Failure(State.INTRO, Kind.ERROR, reply=Reply(421, None, "x" * 30_000))
    assert weight(Breaker(reason=failure)) > 30_000


def test_three_thousand_hostile_domains_take_little():
    """It was 140 kB a domain: a hundred hosts of 253 octets, joined four times."""
    governor = Governor([LimitRule(mx="google.com", connections=1)])
    for domain in range(3000):
        hosts = tuple(f"{domain:05}-{host:03}-{'x' * 50}.{'y' * 60}.{'z' * 60}.{'w' * 60}.test" for host in range(100))
        allowance = governor.allowance(SOURCE, f"d{domain}.test", hosts, Target(hosts[0], "192.0.2.1", 25))
        assert len(allowance.connections_key) < 200
    assert governor._allowances.octets <= 8 * 1024 * 1024
    assert len(governor._allowances) > 200
