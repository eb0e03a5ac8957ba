"""How long a destination is left alone because one message's ending is about all of them. Pure.

Only a response pattern says so (`individual = false`): what is merely inferred never stops other messages. The
pause lasts until the message that met it is tried again, within bounds; so one message goes first and finds out.
"""

from dataclasses import dataclass

LEAST = 10.0
MOST = 1800.0
"""Seconds that a pause lasts."""


@dataclass(frozen=True, slots=True)
class Pause:
    """No message is tried until then (seconds on a monotonic clock), because of `reason`."""

    until: float
    reason: str

    def left(self, now: float) -> float:
        """Return the seconds that are left of it, 0 when it is over."""
        return max(0.0, self.until - now)


def paused(earlier: Pause | None, seconds: float, reason: str, now: float) -> Pause:
    """Return the pause after an ending whose message is tried again in so many seconds; none is ever cut short."""
    pause = Pause(now + min(max(seconds, LEAST), MOST), reason)
    return earlier if earlier is not None and earlier.until >= pause.until else pause
