"""When to try again, and through which delay queues a job gets there. Pure arithmetic.

The schedule is a list of seconds whose last value repeats (MailerQ's `retries`). Waiting is done
by RabbitMQ: queues with one fixed TTL each. A wait goes through one queue where one fits, else
through the largest that is not too long, and is decided anew when the job comes back.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random


def next_attempt(attempt: int, schedule: Sequence[int], jitter: float, now: datetime, rng: Random) -> datetime:
    """Return when to make the attempt after number `attempt` (from 1), rounded up to whole seconds.

    `jitter` is the largest share by which the wait is lengthened, so that jobs which failed
    together do not come back together.
    """
    wait = schedule[min(attempt, len(schedule)) - 1] * (1 + jitter * rng.random())
    at = now + timedelta(seconds=wait)
    return at.replace(microsecond=0) + timedelta(seconds=at.microsecond > 0)
