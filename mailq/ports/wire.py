"""The wire: one TCP connection to one server, and its encryption."""

import ssl
from collections.abc import Awaitable
from typing import Any, Protocol

from mailq.core.smtp.reply import Reply
from mailq.core.traffic.routes import Source, Target


class Wire(Protocol):
    """One TCP connection to one target, not yet opened.

    A reply is a value, silence is an exception: what goes wrong is raised as
    `core.failure.Trouble` (lost, invalid, error). Clocks are the caller's but for `reply`. First the opening
    calls, one exchange each; then `take_over`, after which replies are read in order with `reply`.
    """

    @property
    def local(self) -> str | None:
        """Local IP address, once a connection was tried."""

    @property
    def local_port(self) -> int | None:
        """Local port, once a connection was tried; 0 if there was none."""

    @property
    def sent(self) -> int:
        """Octets given to the connection so far (inside TLS: plaintext octets)."""

    @property
    def alive(self) -> bool:
        """Tell whether the peer may still be spoken to: open, in step, nothing unread."""

    async def bind(self, source: Source) -> None:
        """Create the socket and bind it to the source address."""

    async def connect(self) -> None:
        """Set up the TCP connection."""

    async def handshake(self) -> None:
        """Start TLS at once, before the greeting (RFC 8314 section 3.3)."""

    async def greeting(self) -> Reply:
        """Return the server's first reply."""

    async def command(self, line: str) -> Reply:
        """Send one command line and return its reply."""

    async def starttls(self) -> Reply:
        """Ask for TLS and, if the answer is 220, do the handshake; returns the answer."""

    def security(self) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of the TLS session; {} without TLS."""

    def take_over(self) -> None:
        """Switch from the opening protocol to the transaction protocol."""

    def write(self, data: bytes) -> None:
        """Send octets without waiting; a lost connection is noticed by `reply`."""

    async def drain(self) -> None:
        """Wait until the connection can take more, or is lost (write backpressure)."""

    def reply(self, seconds: float) -> Awaitable[Reply]:
        """Return the next reply in order; one is awaited at a time.

        Raises:
            TimeoutError: none came in so many seconds.
        """

    def ready(self) -> Reply | None:
        """Return the next reply if it has come already: replies to pipelined commands come together."""

    def close(self) -> None:
        """Close the connection at once; safe to call twice."""


class Encryption(Protocol):
    """How connections are encrypted, and what is to be told of them."""

    @property
    def context(self) -> ssl.SSLContext:
        """The client's TLS settings, made once."""

    def facts(self, ssl_object: ssl.SSLObject, host: str) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of a TLS session with `host`."""


class Dialer(Protocol):
    """Makes wires."""

    def wire(self, target: Target) -> Wire:
        """Return an unconnected wire to `target`."""
