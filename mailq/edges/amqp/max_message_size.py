"""The largest message that the broker takes, learnt from the first one that it refuses.

RabbitMQ tells its max_message_size only by closing the channel of whoever exceeds it, and each time that
is a delivery of every open job. So it is told once, and known to the later connections of the process;
for a while only, because operators raise it.
"""

import re
from time import monotonic

from mailq.ports.broker import BrokerError, OversizedError

KNOWN_SECONDS = 600.0
"""How long it is believed."""

_REFUSAL = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


def oversized(error: BrokerError) -> bool:
    """Tell whether the broker refused a message because of its size."""
    return _REFUSAL.search(str(error)) is not None


class MaxMessageSize:
    """What is known of it."""

    def __init__(self) -> None:
        self._most = 0
        self._until = 0.0

    def learn(self, error: BrokerError) -> None:
        """Take it from the reason why a connection ended, if it stands there."""
        if (found := _REFUSAL.search(str(error))) is not None:
            self._most = int(found[1])
            self._until = monotonic() + KNOWN_SECONDS

    def check(self, octets: int) -> None:
        """Let a body of that size pass.

        Raises:
            OversizedError: the broker is known to take none.
        """
        if self._most and octets > self._most and monotonic() < self._until:
            raise OversizedError(octets, self._most)
