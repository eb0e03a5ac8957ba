"""The wire: one TCP connection to one server, and its encryption."""

import ssl
from collections.abc import Awaitable
from typing import Any, Protocol

from mailq.core.smtp.reply import Reply
from mailq.core.traffic.routes import Source, Target


class Wire(Protocol):
    """One TCP connection to one target, not yet opened.

    A reply is a value, silence is an exception: an exchange without a reply raises `core.smtp.failure.Trouble` (lost,
    invalid, error). The caller keeps the timeouts, except for `reply`. The opening calls come first, one exchange each.
    After `take_over` the caller reads replies in order with `reply`.
    """

    @property
    def local(self) -> str | None:
        """Local IP address after `connect`."""

    @property
    def local_port(self) -> int | None:
        """Local port after `connect`; 0 without a connection."""

    @property
    def sent(self) -> int:
        """Number of octets written to the connection so far (inside TLS: plaintext octets)."""

    @property
    def alive(self) -> bool:
        """True while commands may be sent: the connection is open and in step, and nothing is unread."""

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
        """Send STARTTLS and, if the reply is 220, do the handshake; return the reply."""

    def security(self) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of the TLS session; {} without TLS."""

    def take_over(self) -> None:
        """Switch from the opening protocol to the transaction protocol."""

    def write(self, data: bytes) -> None:
        """Send octets without waiting; `reply` reports a lost connection."""

    async def drain(self) -> None:
        """Wait until the connection can take more octets, or is lost (write backpressure)."""

    def reply(self, seconds: float) -> Awaitable[Reply]:
        """Return the next reply in order; only one call may wait at a time.

        Raises:
            TimeoutError: no reply came within `seconds`.
        """

    def ready(self) -> Reply | None:
        """Return the next reply if it has arrived already: replies to pipelined commands arrive together."""

    def close(self) -> None:
        """Close the connection at once; a second call does nothing."""


class Encryption(Protocol):
    """The TLS settings of connections, and the facts about them for results."""

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS settings of the client; made once."""

    def facts(self, ssl_object: ssl.SSLObject, host: str) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of a TLS session with `host`."""


class Dialer(Protocol):
    """Makes wires."""

    def wire(self, target: Target) -> Wire:
        """Return an unconnected wire to `target`."""
