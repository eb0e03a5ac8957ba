"""How fast: a rate as an even pace (GCRA), and who may go now, who waits, who comes back later. Pure.

The generic cell rate algorithm (ITU-T I.371) keeps one moment per rate, the theoretical arrival time
of the next message: no window, no burst beyond the one allowed. Two more moments make it fair when
far more jobs wait than the rate lets through: jobs that would wait too long are sent away to come back
one after the other, at the pace of the rate and not all at once, and who is new stands behind them.
"""

from dataclasses import dataclass, replace

CROWD = 100
"""Jobs that may wait in memory for one rate, however patient they are: else they would leave no room for others."""

LEAST_PATIENCE = 1.0
"""Seconds that may be waited in memory all the same: as late as delay queues bring back who was sent away."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events a second, evenly spaced, of which `burst` may come at once."""

    per_second: float
    burst: int = 1

    @property
    def interval(self) -> float:
        """Seconds between two events."""
        return 1 / self.per_second


@dataclass(frozen=True, slots=True)
class Pace:
    """What is remembered of a rate; all three are moments in seconds on one clock.

    `next` is when the next event is due, `front` when the next of those who came back and must go away
    again returns, `back` when the last of those sent away returns.
    """

    next: float = 0.0
    front: float = 0.0
    back: float = 0.0


@dataclass(frozen=True, slots=True)
class Slot:
    """The answer: go in `wait` seconds, or, if `away`, come back after them."""

    wait: float
    away: bool = False


def take(pace: Pace, rate: Rate, now: float, *, patience: float, returned: bool) -> tuple[Pace, Slot]:
    """Return the new pace and the slot of one job.

    `patience` is how many seconds a job may wait here, if that is no `CROWD`; `returned` tells that it was
    sent away before and so goes ahead of those who were not.
    """
    patience = min(patience, max(CROWD * rate.interval, LEAST_PATIENCE))
    due = max(pace.next, now - (rate.burst - 1) * rate.interval)
    wait = max(0.0, due - now)
    if not returned and pace.back > now + patience:
        return replace(pace, back=pace.back + rate.interval), Slot(pace.back - now, away=True)
    if wait <= patience:
        following = due + rate.interval
        return replace(pace, next=following, back=max(pace.back, following)), Slot(wait)
    if returned:
        front = max(pace.front, due)
        return replace(pace, front=front + rate.interval), Slot(front - now, away=True)
    back = max(pace.back, due)
    return replace(pace, back=back + rate.interval), Slot(back - now, away=True)
