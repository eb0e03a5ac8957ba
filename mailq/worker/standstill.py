"""Standstills of the process: a stop by a signal, a paused container or host, or an event loop blocked by work.

RabbitMQ redelivers the jobs of a silent process to other processes. Such a process may resume before it has read that
its connections are over. So an attempt asks this module before it records a hand-over. The clock goes on while the
process is stopped and while the host is suspended (CLOCK_BOOTTIME). A virtual machine whose clocks are paused with it
cannot detect a standstill.
"""

import math
import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

HINDSIGHT = 1.0
"""Seconds after a standstill in which a message may arrive that RabbitMQ sent before it closed the connection."""


def moment() -> float:
    """Return the seconds of a clock that never stops."""
    return time.clock_gettime(_CLOCK)


class Standstill:
    """Detects that the process stood still for more than `limit` seconds; `look` must be called once a second."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._looked = moment()
        self._woke = -math.inf

    def look(self) -> float:
        """Record the current moment and return it."""
        now = moment()
        if now - self._looked > self._limit:
            self._woke = now
        self._looked = now
        return now

    def since(self, begun: float) -> bool:
        """Return whether the process stood still after `begun`, or at most `HINDSIGHT` seconds before it."""
        self.look()
        return begun < self._woke + HINDSIGHT
