"""The wire: one TCP connection, spoken to one exchange at a time. Nobody else imports aiosmtplib.

aiosmtplib's protocol opens the conversation (greeting, EHLO, STARTTLS, AUTH); its clocks are off,
since every state has one of ours. Then `take_over` puts a transaction protocol of our own on the
same transport, plain or TLS, which may write ahead (PIPELINING) and hands out the replies in order.
What goes wrong is told as `Trouble`, classified here, once, by type and not by text.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from aiosmtplib.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from mailq.core.failure import Trouble
from mailq.core.reply import MalformedReplyError, Reply, ReplyReader, make_reply, printable
from mailq.core.routing import Source, Target
from mailq.core.states import Kind
from mailq.ports import Encryption

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux: choose the local port at connect, so that bound sockets do not use up the ports."""

MAX_UNREAD = 32
"""Replies that may wait to be read; a server that sends more talks to itself."""

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


class TcpWire:
    """One TCP connection to one target (see `ports.Wire`)."""

    def __init__(self, target: Target, address: tuple[str, int], security: Encryption) -> None:
        self._target = target
        self._address = address
        self._security = security
        self._socket: socket.socket | None = None
        self._opening: SMTPProtocol | None = None
        self._transport: asyncio.Transport | None = None
        self._replies: _Replies | None = None
        self.sent = 0
        self.local: str | None = None
        self.local_port: int | None = None

    @property
    def alive(self) -> bool:
        """Tell whether the peer may still be spoken to: open, in step, nothing unread."""
        open_ = self._transport is not None and not self._transport.is_closing()
        return open_ and (self._replies is None or self._replies.quiet)

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
            raise Trouble(Kind.ERROR, _words(trouble)) from trouble

    async def connect(self) -> None:
        """Set up the TCP connection."""
        assert self._socket is not None
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, self._address)
        except TimeoutError:
            raise
        except OSError as trouble:
            raise Trouble(Kind.ERROR, _words(trouble)) from trouble
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
            if self._opening._buffer:  # noqa: SLF001 - else it would pass for the answer to this command
                raise Trouble(Kind.INVALID, "the server spoke out of turn")
            self.sent += len(octets) + 2
            return _reply(await self._opening.execute_command(octets))

    async def starttls(self) -> Reply:
        """Ask for TLS and, if the answer is 220, do the handshake; returns the answer."""
        opening = self._opening
        assert opening is not None
        self.sent += len(b"STARTTLS\r\n")
        try:
            with _translated():
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
        self._replies = _Replies(asyncio.get_running_loop())
        unread = bytes(self._opening._buffer)  # noqa: SLF001 - spoken out of turn: must not be lost
        self._transport.set_protocol(self._replies)
        if self._transport.is_closing():
            self._replies.connection_lost(None)
        elif unread:
            self._replies.data_received(unread)

    def write(self, data: bytes) -> None:
        """Send octets without waiting; a lost connection is noticed by `reply`."""
        if self._transport is not None and not self._transport.is_closing():
            self.sent += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the connection can take more, or is lost (write backpressure)."""
        assert self._replies is not None
        await self._replies.writable()

    async def reply(self, seconds: float) -> Reply:
        """Return the next reply in order."""
        assert self._replies is not None
        return await self._replies.next(seconds)

    def ready(self) -> Reply | None:
        """Return the next reply if it has come already."""
        assert self._replies is not None
        return self._replies.ready()

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

    def _read_response_from_buffer(self) -> SMTPResponse | None:
        while (end := self._buffer.find(b"\n", self._looked)) >= 0:
            if not (
                self._buffer[self._looked : self._looked + 3].isdigit() and self._buffer[self._looked + 3] == ord("-")
            ):
                self._looked = 0  # the last line of the reply, or none of a reply
                return super()._read_response_from_buffer()
            self._looked = end + 1
        return None


class _Replies(asyncio.Protocol):
    """The transaction protocol: replies in order, write backpressure, and how it ended."""

    __slots__ = ("_deadline", "_loop", "_paused", "_queue", "_reader", "_timer", "_trouble", "_waiter", "_writable")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reader = ReplyReader()
        self._queue: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._trouble: Trouble | None = None

    @property
    def quiet(self) -> bool:
        """Tell whether nothing was received that nobody asked for."""
        return self._trouble is None and not self._queue and not self._reader.pending

    async def next(self, seconds: float) -> Reply:
        """Return the next reply, or raise what came instead; `TimeoutError` when nothing did in so many seconds."""
        if not self._queue:
            self._run_clock(seconds)
        while not self._queue:
            if self._trouble is not None:
                raise self._trouble
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._queue.popleft()

    def ready(self) -> Reply | None:
        """Return the next reply if it has come already."""
        return self._queue.popleft() if self._queue else None

    async def writable(self) -> None:
        """Wait until the transport takes more; also returns when it never will."""
        while self._paused and self._trouble is None and not self._queue:
            self._writable = self._loop.create_future()
            await self._writable

    def data_received(self, data: bytes) -> None:
        if self._trouble is not None:
            return
        try:
            self._queue.extend(self._reader.feed(data))
        except MalformedReplyError as trouble:
            self._queue.extend(trouble.replies)
            self._end(Trouble(Kind.INVALID, str(trouble)))
        if len(self._queue) > MAX_UNREAD:
            self._queue.clear()
            self._end(Trouble(Kind.INVALID, "the server sends replies that nobody asked for"))
        self._wake()

    def eof_received(self) -> bool:
        self._end(Trouble(Kind.LOST, "the server closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Trouble(Kind.LOST, _words(exc) if exc else "the server closed the connection"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _end(self, trouble: Trouble) -> None:
        self._trouble = self._trouble or trouble
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _run_clock(self, seconds: float) -> None:
        """Set the clock of a wait; a timer that runs already looks again by itself, which is what makes it cheap."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)
        else:
            self._waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        for waiter in (self._waiter, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


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
        raise Trouble(Kind.LOST, _words(trouble)) from trouble
    except SMTPException as trouble:
        raise Trouble(Kind.INVALID, printable(str(trouble).encode("utf-8", "replace"))) from trouble


def _reply(answer: SMTPResponse) -> Reply:
    """Return aiosmtplib's answer as a `Reply`, after the checks that aiosmtplib leaves out."""
    if not 200 <= answer.code <= 599:
        raise Trouble(Kind.INVALID, f"not an SMTP reply code: {answer.code}")
    text = answer.message.encode("utf-8", "surrogateescape")
    return make_reply(answer.code, [printable(line, limit=4096) for line in text.split(b"\n")])


def _words(trouble: Exception) -> str:
    """Return what a system error says, without Python's decoration."""
    if isinstance(trouble, OSError) and trouble.errno and trouble.errno > 0:
        return os.strerror(trouble.errno)
    return str(trouble) or type(trouble).__name__
