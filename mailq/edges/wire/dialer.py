"""Opening a connection, one exchange at a time. Nobody else imports aiosmtplib.

aiosmtplib's protocol opens the conversation (greeting, EHLO, STARTTLS, AUTH); its clocks are off, since every state
has one of ours, and the wire reads the replies, as it does later. Then `take_over` puts it in its place (`stream`).
What goes wrong is told as `Trouble`, classified here, once, by type and not by text.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Any, cast

from aiosmtplib.errors import SMTPException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from mailq.core.smtp.failure import Trouble
from mailq.core.smtp.reply import Reply, printable
from mailq.core.states import Kind
from mailq.core.traffic.routes import Source, Target
from mailq.edges.wire.stream import Stream, words
from mailq.ports.wire import Encryption

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux: choose the local port at connect, so that bound sockets do not use up the ports."""

NO_CLOCK = 86_400.0
"""Seconds for clocks of the library that cannot be switched off; ours end long before."""


class TcpDialer:
    """Makes wires; with a `sink` all of them lead to that one address, whatever their target."""

    def __init__(self, security: Encryption, sink: tuple[str, int] | None = None) -> None:
        self._security = security
        self._sink = sink

    def wire(self, target: Target) -> "TcpWire":
        """Return an unconnected wire to `target`."""
        return TcpWire(target, self._sink or (target.ip, target.port), self._security)


class TcpWire(Stream):
    """One TCP connection to one target (see `ports.wire.Wire`)."""

    def __init__(self, target: Target, address: tuple[str, int], security: Encryption) -> None:
        super().__init__()
        self._target = target
        self._address = address
        self._security = security
        self._socket: socket.socket | None = None
        self._opening: _Opening | None = None
        self.local: str | None = None
        self.local_port: int | None = None

    async def bind(self, source: Source) -> None:
        """Create the socket and bind it to the source address."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source.ip is not None:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                self._socket.bind((source.ip, 0))
        except OSError as trouble:
            raise Trouble(Kind.ERROR, words(trouble)) from trouble

    async def connect(self) -> None:
        """Set up the TCP connection."""
        assert self._socket is not None
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, self._address)
        except TimeoutError:
            raise
        except OSError as trouble:
            raise Trouble(Kind.ERROR, words(trouble)) from trouble
        finally:  # known where the connection does not come about, too
            with contextlib.suppress(OSError):
                self.local, self.local_port = self._socket.getsockname()[:2]

    async def handshake(self) -> None:
        """Start TLS at once, before the greeting (RFC 8314 section 3.3)."""
        with _translated():
            await self._start(self._security.context, self._server_name())

    async def greeting(self) -> Reply:
        """Return the server's first reply."""
        with _translated():
            if self._opening is None:
                await self._start(None, None)
            assert self._opening is not None
            await self._opening.read_response()
        return self._queue.popleft()

    async def command(self, line: str) -> Reply:
        """Send one command line and return its reply."""
        assert self._opening is not None
        if self._queue or self._reader.pending:
            raise Trouble(Kind.INVALID, "the server spoke out of turn")
        if self._trouble is not None:
            raise Trouble(self._trouble.kind, self._trouble.text)
        octets = line.encode()
        self.sent += len(octets) + 2
        with _translated():
            await self._opening.execute_command(octets)
        return self._queue.popleft()

    async def starttls(self) -> Reply:
        """Ask for TLS and, if the answer is 220, do the handshake; returns the answer."""
        answer = await self.command("STARTTLS")
        if answer.code == 220:
            assert self._opening is not None
            if self._trouble is not None and self._trouble.kind is Kind.LOST:
                raise Trouble(Kind.LOST, self._trouble.text)
            self.forget_unread()  # nothing that came outside TLS counts inside it (RFC 3207 section 4.2)
            with _translated():
                self._transport = await self._opening.encrypt(self._security.context, self._server_name())
        return answer

    def security(self) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of the TLS session; {} without TLS."""
        session = self._transport.get_extra_info("ssl_object") if self._transport else None
        return self._security.facts(session, self._target.host) if session else {}

    def take_over(self) -> None:
        """Switch from the opening protocol to the transaction protocol."""
        assert self._transport is not None
        self._opening = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    def close(self) -> None:
        """Close the connection at once; safe to call twice."""
        if self._transport is not None:
            self._transport.abort()
        elif self._socket is not None:
            self._socket.close()

    async def _start(self, context: ssl.SSLContext | None, server_name: str | None) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        transport, self._opening = await loop.create_connection(
            lambda: _Opening(loop, self),
            sock=self._socket,
            ssl=context,
            server_hostname=server_name,
            ssl_handshake_timeout=NO_CLOCK if context else None,
        )
        self._transport = transport

    def _server_name(self) -> str | None:
        """Return the name for SNI: a host name, never an IP address (RFC 6066 section 3)."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(self._target.host)
            return None
        return self._target.host


class _Opening(SMTPProtocol):
    """aiosmtplib's protocol, for which the stream reads: one reader for all states, and nothing unread is dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
        super().__init__(loop)
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        """Take what the peer says."""
        self._stream.data_received(data)
        self._answer()

    def eof_received(self) -> bool:
        """Take the end of the stream."""
        self._stream.eof_received()
        self._answer()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        self._stream.connection_lost(exc)
        self._answer()
        super().connection_lost(exc)

    async def encrypt(self, context: ssl.SSLContext, server_name: str | None) -> asyncio.Transport:
        """Do the handshake and return the transport inside TLS."""
        if self.transport is None:
            raise SMTPServerDisconnected("Connection lost")
        transport = await self._loop.start_tls(
            cast(asyncio.WriteTransport, self.transport),
            self,
            context,
            server_hostname=server_name,
            ssl_handshake_timeout=NO_CLOCK,
        )
        if transport is None:
            raise SMTPServerDisconnected("Connection lost")
        self.transport = transport
        return transport

    def _answer(self) -> None:
        """Tell the library that there is a reply, which the wire takes from the stream, or that none will come."""
        waiter, trouble = self._response_waiter, self._stream.problem
        if waiter is None or waiter.done() or not self._response_pending:
            return
        if self._stream.unread:
            waiter.set_result(SMTPResponse(0, ""))
        elif trouble is not None:
            self._set_response_exception(waiter, Trouble(trouble.kind, trouble.text))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what libraries and the system raise into `Trouble`; the narrow before the wide."""
    try:
        yield
    except (TimeoutError, SMTPTimeoutError):
        raise
    except ssl.SSLCertVerificationError as trouble:
        raise Trouble(Kind.ERROR, f"certificate refused: {trouble.verify_message}") from trouble
    except ssl.SSLError as trouble:
        raise Trouble(Kind.INVALID, f"TLS handshake failed: {trouble.reason or 'unknown reason'}") from trouble
    except SMTPServerDisconnected as trouble:
        raise Trouble(Kind.LOST, "the server closed the connection") from trouble
    except OSError as trouble:
        raise Trouble(Kind.LOST, words(trouble)) from trouble
    except SMTPException as trouble:
        raise Trouble(Kind.INVALID, printable(str(trouble).encode("utf-8", "replace"))) from trouble
