"""Opening a connection, one exchange at a time. Nobody else imports aiosmtplib.

aiosmtplib's protocol opens the conversation (greeting, EHLO, STARTTLS, AUTH); its clocks are off,
since every state has one of ours. Then `take_over` puts the wire itself in its place (`stream`).
What goes wrong is told as `Trouble`, classified here, once, by type and not by text.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Any, cast

from aiosmtplib.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from mailq.core.failure import Trouble
from mailq.core.reply import Reply, make_reply, printable
from mailq.core.routing import Source, Target
from mailq.core.states import Kind
from mailq.edges.wire.stream import Stream, words
from mailq.ports import Encryption

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
    """One TCP connection to one target (see `ports.Wire`)."""

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
            return _reply(await self._opening.read_response())

    async def command(self, line: str) -> Reply:
        """Send one command line and return its reply."""
        assert self._opening is not None
        with _translated():
            octets = line.encode()
            self._opening.expect_silence()
            self.sent += len(octets) + 2
            return _reply(await self._opening.execute_command(octets))

    async def starttls(self) -> Reply:
        """Ask for TLS and, if the answer is 220, do the handshake; returns the answer."""
        opening = self._opening
        assert opening is not None
        try:
            with _translated():
                opening.expect_silence()
                self.sent += len(b"STARTTLS\r\n")
                answer = await opening.start_tls(
                    self._security.context, server_hostname=self._server_name(), timeout=NO_CLOCK
                )
        except SMTPResponseException as refusal:
            return _reply(SMTPResponse(refusal.code, refusal.message))
        self._transport = cast(asyncio.Transport, opening.transport)
        return _reply(answer)

    def security(self) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of the TLS session; {} without TLS."""
        session = self._transport.get_extra_info("ssl_object") if self._transport else None
        return self._security.facts(session, self._target.host) if session else {}

    def take_over(self) -> None:
        """Switch from the opening protocol to the transaction protocol."""
        assert self._transport is not None
        assert self._opening is not None
        unread = bytes(self._opening._buffer)  # noqa: SLF001 - spoken out of turn: must not be lost
        self._opening = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)
        elif unread:
            self.data_received(unread)

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
            lambda: _Opening(loop),
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
    """aiosmtplib's protocol, which looks at all lines of an unfinished reply whenever one more comes.

    That costs seconds for the 32 kB that it allows, if they come line by line. Here each line is looked at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._looked = 0

    def expect_silence(self) -> None:
        """Refuse to send a command to which there is an answer already.

        Raises:
            Trouble: there is one, or a part of one.
        """
        if self._buffer:
            raise Trouble(Kind.INVALID, "the server spoke out of turn")

    def _read_response_from_buffer(self) -> SMTPResponse | None:
        while (end := self._buffer.find(b"\n", self._looked)) >= 0:
            if not (
                self._buffer[self._looked : self._looked + 3].isdigit() and self._buffer[self._looked + 3] == ord("-")
            ):
                self._looked = 0  # the last line of the reply, or none of a reply
                return super()._read_response_from_buffer()
            self._looked = end + 1
        return None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what libraries and the system raise into `Trouble`; the narrow before the wide."""
    try:
        yield
    except (TimeoutError, SMTPTimeoutError):
        raise
    except SMTPResponseException as trouble:
        if trouble.code > 0:
            raise
        raise Trouble(Kind.INVALID, printable(trouble.message.encode("utf-8", "replace"))) from trouble
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


def _reply(answer: SMTPResponse) -> Reply:
    """Return aiosmtplib's answer as a `Reply`, after the checks that aiosmtplib leaves out."""
    if not 200 <= answer.code <= 599:
        raise Trouble(Kind.INVALID, f"not an SMTP reply code: {answer.code}")
    text = answer.message.encode("utf-8", "surrogateescape")
    return make_reply(answer.code, [printable(line, limit=4096) for line in text.split(b"\n")])
