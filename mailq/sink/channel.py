"""One accepted connection of the sink: bytes in as command lines or message data, replies out.

Bounds everything the peer controls: the length of a line, the size of a message, what waits to be
read and what waits to be sent. Replies are collected and written when the conversation has to wait,
so that a pipelined group (RFC 2920) is answered in one segment. Knows nothing of SMTP's commands.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast

HIGH_WATER = 256 * 1024
"""Octets received or to be sent at which the peer has to wait."""

_END = b"\r\n.\r\n"


class PeerGoneError(Exception):
    """The peer has closed the connection, or stayed silent for too long."""


class LineTooLongError(Exception):
    """The peer sent a line over the limit."""


class Channel(asyncio.Protocol):
    """The protocol of one connection; its conversation awaits what it needs."""

    def __init__(self, timeout: float, connected: Callable[["Channel"], None]) -> None:
        """Make a channel that closes after `timeout` seconds of silence, and is given to `connected` when open."""
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._replies: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading = True
        self._ended = False
        self._heard = self._loop.time()
        self._watchdog: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, start to watch for silence, and let the conversation begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._watch()
        self._connected(self)

    def data_received(self, data: bytes) -> None:
        """Keep what came and wake the conversation."""
        self._received += data
        self._heard = self._loop.time()
        if len(self._received) > HIGH_WATER and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """End the conversation once it has read what is here; without TLS it can still answer."""
        self._ended = True
        self._wake()
        return self.security is None

    def connection_lost(self, _exc: Exception | None) -> None:
        """End the conversation."""
        self._ended = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Note that the peer does not read its replies."""
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Note that the peer reads again, or never will."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    @property
    def pending(self) -> bool:
        """Tell whether the peer has sent something that was not read yet."""
        return bool(self._received)

    @property
    def peer(self) -> str:
        """The peer's IP address."""
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if address else ""

    @property
    def security(self) -> ssl.SSLObject | None:
        """The TLS session, if the connection is encrypted."""
        return cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))

    async def line(self, limit: int) -> bytes:
        """Return the next line without its CRLF; only CRLF ends a line.

        Raises:
            LineTooLongError: no CRLF within `limit` octets.
            PeerGoneError: no line comes any more.
        """
        begin = 0
        while (end := self._received.find(b"\r\n", begin, limit)) < 0:
            if len(self._received) >= limit:
                raise LineTooLongError
            begin = max(0, len(self._received) - 1)
            await self._wait()
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    async def message(self, limit: int) -> bytes | None:
        """Return message data up to CRLF.CRLF, dots unstuffed (RFC 5321 section 4.5.2).

        Data of more than `limit` octets is read to its end and thrown away: None.
        """
        stuffed_limit = limit + limit // 3 + len(_END)
        # The line end of the DATA command belongs to the end mark of an empty message.
        data = bytearray(b"\r\n")
        fits = True
        while True:
            begin = max(0, len(data) - len(_END) + 1)
            data += self._received
            self._received.clear()
            end = data.find(_END, begin)
            if end >= 0:
                self._received += data[end + len(_END) :]
                content = bytes(data[: end + 2].replace(b"\r\n.", b"\r\n")[2:])
                return content if fits and len(content) <= limit else None
            if len(data) > stuffed_limit:
                fits = False
                del data[: -len(_END) + 1]
            await self._wait()

    async def arrival(self) -> None:
        """Return as soon as the peer has sent anything."""
        if not self._received:
            await self._wait()

    async def silence(self) -> None:
        """Throw away what comes and answer nothing until the peer leaves; always ends in PeerGoneError."""
        while True:
            self._received.clear()
            await self._wait()

    def write(self, reply: bytes) -> None:
        """Add a reply to those that are written next."""
        self._replies.append(reply)

    async def flush(self) -> None:
        """Write the collected replies; waits while the peer does not take any."""
        if self._replies:
            self._transport.write(b"".join(self._replies))
            self._replies.clear()
        if self._writable is not None:
            await self._writable

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's side of the TLS handshake (RFC 3207); what came before it is forgotten.

        Raises:
            PeerGoneError: the handshake failed.
        """
        await self.flush()
        self._received.clear()
        try:
            transport = await self._loop.start_tls(
                self._transport, self, context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except OSError:
            raise PeerGoneError from None
        if transport is None:
            raise PeerGoneError
        self._transport = transport

    def reset(self) -> None:
        """End the connection with RST."""
        plain = self._transport.get_extra_info("socket")
        if plain is not None and not self._ended:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def close(self) -> None:
        """Write what is collected and close the connection."""
        if self._replies and not self._ended:
            self._transport.write(b"".join(self._replies))
        self._replies.clear()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    async def _wait(self) -> None:
        """Write the replies and wait for input."""
        await self.flush()
        if self._ended:
            raise PeerGoneError
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch(self) -> None:
        """Abort the connection if nothing was heard for too long."""
        left = self._heard + self._timeout - self._loop.time()
        if left <= 0:
            self._transport.abort()
        else:
            self._watchdog = self._loop.call_later(left, self._watch)
