"""The pace of a rate: even, fair, and without a standing wave."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.traffic.rate import Pace, Rate, Slot, take


def go(pace, rate, now, *, patience=5.0, returned=False):
    return take(pace, rate, now, patience=patience, returned=returned)


def test_a_burst_goes_at_once_and_then_the_interval_holds():
    pace, rate, waits = Pace(), Rate(2, burst=3), []
    for _ in range(5):
        pace, slot = go(pace, rate, 100.0)
        waits.append(slot.wait)

    assert waits == pytest.approx([0, 0, 0, 0.5, 1.0])


@given(st.lists(st.floats(0, 3), min_size=2, max_size=60), st.floats(0.5, 50), st.integers(1, 5))
def test_no_window_ever_holds_more_than_rate_and_burst_allow(gaps, per_second, burst):
    pace, rate, now, sent = Pace(), Rate(per_second, burst), 1000.0, []
    for gap in gaps:
        now += gap
        pace, slot = go(pace, rate, now, patience=1e9)
        sent.append(now + slot.wait)

    for first, last in itertools.combinations(range(len(sent)), 2):
        window = sent[last] - sent[first]
        assert last - first + 1 <= window * per_second + burst + 1e-6


def test_who_would_wait_too_long_is_sent_away_one_after_the_other():
    pace, rate, slots = Pace(), Rate(1), []
    for _ in range(20):
        pace, slot = go(pace, rate, 0.0)
        slots.append(slot)

    assert [slot.away for slot in slots] == [False] * 6 + [True] * 14
    assert [slot.wait for slot in slots] == pytest.approx(range(20))


@pytest.mark.parametrize(("per_second", "waiting"), [(1, 5), (20, 100), (50, 100), (200, 200)])
def test_no_more_than_a_crowd_waits_for_one_rate_unless_that_is_a_second(per_second, waiting):
    pace, rate, slots = Pace(), Rate(per_second), []
    for _ in range(1000):
        pace, slot = go(pace, rate, 0.0)
        slots.append(slot)

    assert sum(not slot.away and slot.wait > 0 for slot in slots) == pytest.approx(waiting, abs=1)


def test_who_is_new_stands_behind_those_who_were_sent_away():
    pace, rate = Pace(), Rate(1)
    for _ in range(20):
        pace, _ = go(pace, rate, 0.0)

    _, new = go(pace, rate, 8.0)
    _, returned = go(pace, rate, 8.0, returned=True)

    assert new == Slot(12.0, away=True)
    assert returned == Slot(0.0)


@given(st.integers(20, 300), st.floats(0.0, 1.0), st.integers(0, 50))
def test_a_backlog_drains_at_the_full_rate_and_nearly_in_order(count, late, newcomers):
    """Jobs sent away come back up to a second late; the rate is used all the time and kept."""
    rate, pace = Rate(1), Pace()
    arrivals = [(0.0, number, False) for number in range(count)]
    arrivals += [(20.0 + number / 10, count + number, False) for number in range(newcomers)]
    heapq.heapify(arrivals)
    sent = []
    while arrivals:
        now, number, returned = heapq.heappop(arrivals)
        pace, slot = go(pace, rate, now, returned=returned)
        if slot.away:
            heapq.heappush(arrivals, (now + slot.wait + late, number, True))
        else:
            sent.append((now + slot.wait, number))

    moments = sorted(moment for moment, _ in sent)
    assert len(sent) == count + newcomers
    assert all(b - a >= 1 - 1e-6 for a, b in itertools.pairwise(moments))
    assert moments[-1] <= (count + newcomers) * 1.1 + 5
    newest_old = max(moment for moment, number in sent if number < count)
    oldest_new = min((moment for moment, number in sent if number >= count), default=newest_old)
    assert oldest_new >= newest_old - 12  # at the very end of the backlog orders may cross
