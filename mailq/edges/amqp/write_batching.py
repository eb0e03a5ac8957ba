"""When to send: at the end of this turn of the event loop, or under load a little later, with more in one segment.

What is sent costs us, the kernel and above all the broker less the more of it comes at once; a message that comes
alone must not wait for others. So the last time decides: if many came together, there is much to do, and
a few milliseconds are nothing to a message in a long queue. Acknowledgements are not gathered: who dies before
one leaves gets the job again.
"""

import asyncio
from collections.abc import Callable


class WriteBatcher:
    """Calls `send` once for all that comes meanwhile; when a `crowd` came, it gathers for `seconds` the next time."""

    __slots__ = ("_crowd", "_crowded", "_loop", "_seconds", "_send")

    def __init__(self, send: Callable[[], None], crowd: int, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._crowd = crowd
        self._seconds = seconds
        self._crowded = False

    def begin(self) -> None:
        """Note that the first one came."""
        if self._crowded:
            self._loop.call_later(self._seconds, self._send)
        else:
            self._loop.call_soon(self._send)

    def ended(self, count: int) -> None:
        """Note how many were sent."""
        self._crowded = count >= self._crowd
