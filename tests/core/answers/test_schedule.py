"""When to try again, and the way there through the delay queues: never early, hardly late."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.answers.schedule import next_attempt
from mailq.core.delay_queues import STEPS, delay_step

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
WEEK = 7 * 86_400
MAX_HOPS = 20
STEP_SECONDS = sorted(STEPS.values())


def best_step(seconds):
    """Return the step by the rule's own words: smallest that fits, else largest not too long."""
    late = max(1, seconds * 0.05)
    fitting = [step for step in STEP_SECONDS if 0 <= step - seconds <= late]
    return min(fitting) if fitting else max(step for step in STEP_SECONDS if step <= seconds)


def hops(seconds):
    """Return how long a wait of so many seconds takes, and through how many queues."""
    waited = count = 0
    while waited < seconds:
        waited += STEPS[delay_step(seconds - waited)]
        count += 1
    return waited, count


def test_steps_are_named_as_they_last():
    units = {"s": 1, "m": 60, "h": 3600}
    assert {name: int(name[:-1]) * units[name[-1]] for name in STEPS} == STEPS
    assert list(STEPS.values()) == STEP_SECONDS


def test_a_wait_takes_the_step_that_the_rule_says():
    for seconds in [*range(1, 20_000), *range(20_000, WEEK, 61)]:
        assert STEPS[delay_step(seconds)] == best_step(seconds)


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        (-5, "1s"),
        (0, "1s"),
        (0.2, "1s"),
        (1, "1s"),
        (1.01, "2s"),
        (3, "2s"),
        (3.9, "2s"),
        (4, "5s"),
        (57, "30s"),
        (57.2, "1m"),
        (60.5, "1m"),
        (3420, "30m"),
        (3429, "1h"),
        (3599, "1h"),
        (86_401, "24h"),
        (10 * 365 * 86_400, "24h"),
    ],
)
def test_some_steps(seconds, name):
    assert delay_step(seconds) == name


def test_any_wait_up_to_a_week_ends_in_time_after_few_hops():
    for seconds in range(1, WEEK + 1, 11):
        waited, count = hops(seconds)
        assert seconds <= waited <= seconds + max(1, seconds * 0.05)
        assert count <= MAX_HOPS


@given(st.floats(min_value=0.001, max_value=WEEK))
def test_any_fraction_too(seconds):
    waited, count = hops(seconds)
    assert seconds <= waited <= seconds + max(1, seconds * 0.05) + 1e-6
    assert count <= MAX_HOPS


@pytest.mark.parametrize(("attempt", "wait"), [(1, 60), (2, 600), (3, 3600), (4, 3600), (1000, 3600)])
def test_the_last_wait_of_a_schedule_repeats(attempt, wait):
    assert next_attempt(attempt, [60, 600, 3600], 0, NOW, Random(1)) == NOW + timedelta(seconds=wait)


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 31_536_000), min_size=1, max_size=10),
    st.floats(0, 0.5),
    st.integers(0, 999_999),
    st.randoms(use_true_random=False),
)
def test_never_before_the_schedule_and_at_most_the_jitter_after_it(attempt, schedule, jitter, microsecond, rng):
    now = NOW.replace(microsecond=microsecond)
    wait = schedule[min(attempt, len(schedule)) - 1]
    at = next_attempt(attempt, schedule, jitter, now, rng)
    assert at.microsecond == 0
    assert timedelta(seconds=wait) <= at - now <= timedelta(seconds=wait * (1 + jitter) + 1)


def test_jitter_spreads():
    rng = Random(1)
    times = {next_attempt(1, [3600], 0.1, NOW, rng) for _ in range(200)}
    assert len(times) > 100
    assert max(times) - min(times) > timedelta(seconds=300)
