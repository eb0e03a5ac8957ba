"""The line before a limited number of connections: who is next, and how long it takes. Pure.

How long a place is held is learnt from those given back; while none is, the time since the last one is
the least it takes. Who would have to wait too long is told when to come back: each one a little later
than the one before, so that they do not come back all at once. Where several processes stand in line, `owes`
says whose turn it is.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

SMOOTHING = 0.1
"""Weight of the newest holding time in the average."""

OUTLIER = 2.0
"""A holding time counts as at most so many averages: when the process or the machine pauses, all places are
held too long at once, and that says nothing of what comes. Lasting slowness still doubles the average in eight."""

GRACE = 2.0
"""Seconds without a place given back that mean nothing: sessions take that long to open."""

FIRST_ABSENCE = 5.0
LONGEST_ABSENCE = 120.0
"""Seconds after which who was sent away looks again, while nothing is known of the line, and at most."""


def owes(own: int, other: int) -> bool:
    """Tell whether one of the places that a process has is due to another one that waits and has `other`.

    Who has none gets one; else there must be two fewer, so that equal shares are not passed to and fro.
    """
    return own > 0 and (other == 0 or other + 1 < own)


@dataclass(slots=True)
class WaitQueue(Generic[T]):
    """Those waiting for one of `places` connections; moments in seconds on a monotonic clock."""

    places: int
    progress: float
    waiting: deque[T] = field(default_factory=deque)
    holding: float = 0.0
    back: float = 0.0

    def join(self, who: T, now: float) -> None:
        """Put somebody at the end of the line; before anybody waited or was away, there was no progress to be made."""
        if not self.waiting and self.back <= now:
            self.progress = now
        self.waiting.append(who)

    def given_back(self, held: float, now: float) -> None:
        """Note that a place was given back after so many seconds."""
        if self.holding:
            held = min(held, self.holding * OUTLIER)
            self.holding += (held - self.holding) * SMOOTHING
        else:
            self.holding = held
        self.progress = now
        if not self.waiting:
            self.back = 0.0  # who was sent away was sent too far: nobody new goes behind them

    def wait(self, now: float) -> float:
        """Return how many seconds a job that comes now has to wait."""
        return (len(self.waiting) + 1) * self._interval(now)

    def hopeless(self, now: float, patience: float) -> Sequence[T]:
        """Take out, in their order, those who stand too far back to have their turn within so many seconds."""
        interval = self._interval(now)
        some = len(self.waiting) - int(min(patience / interval, len(self.waiting))) if interval else 0
        return [self.waiting.pop() for _ in range(some)][::-1]

    def send_away(self, now: float) -> float:
        """Return in how many seconds a job that cannot wait is to come back."""
        most = LONGEST_ABSENCE if self.holding else FIRST_ABSENCE
        self.back = min(max(self.back, now + self.wait(now)) + self._interval(now), now + most)
        return max(self.back - now, 1.0)

    def _interval(self, now: float) -> float:
        holding = max(self.holding, now - self.progress - GRACE) if self.waiting else self.holding
        return holding / self.places
