"""Whether the process stood still: stopped by a signal, paused with its container or host, or held up by its own work.

RabbitMQ gives the jobs of a process that it does not hear to others. Such a process may wake with the answer of a
receiver at hand and the end of its connections not read yet. So whoever is about to hand a message over asks here
first. The clock goes on while the process is stopped and while the host is suspended (CLOCK_BOOTTIME); a virtual
machine whose clocks are paused with it cannot tell.
"""

import math
import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

HINDSIGHT = 1.0
"""Seconds after a standstill in which a message may arrive that RabbitMQ has sent before it gave the process up."""


def moment() -> float:
    """Return the seconds of a clock that never stands still."""
    return time.clock_gettime(_CLOCK)


class Standstill:
    """Notes when the process stood still for longer than `limit` seconds; to be looked at at least once a second."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._looked = moment()
        self._woke = -math.inf

    def look(self) -> float:
        """Note the moment and return it."""
        now = moment()
        if now - self._looked > self._limit:
            self._woke = now
        self._looked = now
        return now

    def since(self, begun: float) -> bool:
        """Tell whether the process stood still after a moment, or just before it."""
        self.look()
        return begun < self._woke + HINDSIGHT
