"""When to try again, and through which delay queues a job gets there. Pure arithmetic.

The schedule is a list of seconds whose last value repeats (MailerQ's `retries`). Waiting is done
by RabbitMQ: queues with one fixed TTL each. A wait goes through one queue where one fits, else
through the largest that is not too long, and is decided anew when the job comes back.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random

STEPS: dict[str, int] = {
    "1s": 1,
    "2s": 2,
    "5s": 5,
    "15s": 15,
    "30s": 30,
    "1m": 60,
    "2m": 120,
    "5m": 300,
    "10m": 600,
    "15m": 900,
    "30m": 1800,
    "1h": 3600,
    "2h": 7200,
    "4h": 14400,
    "8h": 28800,
    "12h": 43200,
    "24h": 86400,
}
"""The delay queues: name to seconds, ascending."""

LATE_SECONDS = 1.0
LATE_SHARE = 0.05
"""A hop may be late by the larger of these two; it is never early."""


def next_attempt(attempt: int, schedule: Sequence[int], jitter: float, now: datetime, rng: Random) -> datetime:
    """Return when to make the attempt after number `attempt` (from 1), rounded up to whole seconds.

    `jitter` is the largest share by which the wait is lengthened, so that jobs which failed
    together do not come back together.
    """
    wait = schedule[min(attempt, len(schedule)) - 1] * (1 + jitter * rng.random())
    at = now + timedelta(seconds=wait)
    return at.replace(microsecond=0) + timedelta(seconds=at.microsecond > 0)


def delay_step(seconds: float) -> str:
    """Return the name of the delay queue for a wait of so many seconds.

    The smallest step that is at most 5 % or 1 s too long, else the largest that is not too long.
    """
    late = max(LATE_SECONDS, seconds * LATE_SHARE)
    below = "1s"
    for name, step in STEPS.items():
        if seconds <= step <= seconds + late:
            return name
        if step < seconds:
            below = name
    return below
