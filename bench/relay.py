"""`python -m bench.relay PORT SINK-PORT MS [DIRECTORY]`: what stands between worker and sink.

Plays a network with a round trip time: replies are handed on so much later, all in one queue since the
time is the same for all, which costs one timer for many. (TCP's and TLS's own handshakes take no longer.) It
counts round trips: bursts of the client that come after it has heard from the server. With a
directory for certificates it also ends TLS (RFC 3207), because smtp-sink has none: until STARTTLS
it answers itself, then it passes on what comes. On SIGTERM it prints its counts as JSON.
"""

import asyncio
import signal
import ssl
import sys
from collections import deque
from pathlib import Path
from typing import cast

import orjson
import uvloop

from mailq.testbed.certificates import Authority

_OFFER = b"250-relay.bench.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 STARTTLS\r\n"
_MAX_LINE = 4096


class Relay:
    """What all connections share: the delay, the counts and the replies on their way."""

    def __init__(self, sink_port: int, delay: float, context: ssl.SSLContext | None) -> None:
        self.sink_port = sink_port
        self.context = context
        self.connections = 0
        self.round_trips = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.delay = delay
        self._held: deque[tuple[float, Client, bytes | None]] = deque()
        self._loop = asyncio.get_running_loop()

    def answer(self, client: "Client", data: bytes | None) -> None:
        """Hand data of the server to a client, delayed; None is the end of the connection."""
        if not self.delay:
            client.heard(data)
            return
        if not self._held:
            self._loop.call_later(self.delay, self._release)
        self._held.append((self._loop.time() + self.delay, client, data))

    def _release(self) -> None:
        now = self._loop.time() + 0.0005  # timers of half a millisecond are none
        while self._held and self._held[0][0] <= now:
            _, client, data = self._held.popleft()
            client.heard(data)
        if self._held:
            self._loop.call_at(self._held[0][0], self._release)


class Client(asyncio.Protocol):
    """The connection of the worker."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._transport: asyncio.Transport
        self._server: asyncio.Transport | None = None
        self._line = b""
        self._plain = relay.context is not None
        self._listened = True
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the sink; until that is done nothing is read."""
        self._transport = cast("asyncio.Transport", transport)
        self._relay.connections += 1
        self._transport.pause_reading()
        self._do(self._connect())

    def data_received(self, data: bytes) -> None:
        """Pass on what the worker says, or answer it as long as TLS is yet to come."""
        if self._listened:
            self._relay.round_trips += 1
            self._listened = False
        if self._plain:
            self._converse(data)
        elif self._server is not None:
            self._server.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        """End the sink's side too."""
        self._ended = True
        if self._server is not None:
            self._server.close()

    def heard(self, data: bytes | None) -> None:
        """Pass on what the sink has said."""
        self._listened = True
        if data is None:
            self._transport.close()
        elif not self._ended:
            self._transport.write(data)

    def pause(self) -> None:
        """Read no more: the sink does not take it."""
        if not self._ended:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._ended:
            self._transport.resume_reading()

    def _do(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._relay.tasks.add(task)
        task.add_done_callback(self._relay.tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            server, _ = await loop.create_connection(
                lambda: Sink(self._relay, self), "127.0.0.1", self._relay.sink_port
            )
        except OSError:
            self._transport.close()
            return
        self._server = server
        if self._ended:
            server.close()
        self.resume()

    def _converse(self, data: bytes) -> None:
        """Speak SMTP until STARTTLS."""
        *lines, self._line = (self._line + data).split(b"\r\n")
        for line in lines:
            verb = line[:8].upper()
            if verb == b"STARTTLS":
                self._transport.pause_reading()
                self._do(self._secure())
                return
            ehlo = verb[:4] in (b"EHLO", b"HELO")
            self._relay.answer(self, _OFFER if ehlo else b"530 5.7.0 STARTTLS first\r\n")
        if len(self._line) > _MAX_LINE:
            self._transport.close()

    async def _secure(self) -> None:
        """Do the handshake; the rest of the session is the sink's."""
        loop, context = asyncio.get_running_loop(), self._relay.context
        assert context is not None
        await asyncio.sleep(self._relay.delay)
        self._transport.write(b"220 2.0.0 go ahead\r\n")
        try:
            transport = await loop.start_tls(self._transport, self, context, server_side=True)
        except OSError:
            transport = None
        if transport is None:
            self._transport.close()
            return
        self._transport, self._plain, self._listened = transport, False, True


class Sink(asyncio.Protocol):
    """The connection to the sink for one client."""

    def __init__(self, relay: Relay, client: Client) -> None:
        self._relay = relay
        self._client = client

    def data_received(self, data: bytes) -> None:
        """Send the sink's words on their way."""
        self._relay.answer(self._client, data)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Send the end after them."""
        self._relay.answer(self._client, None)

    def pause_writing(self) -> None:
        """Hold the client back."""
        self._client.pause()

    def resume_writing(self) -> None:
        """Let the client go on."""
        self._client.resume()


async def serve(port: int, relay: Relay) -> None:
    """Relay until SIGTERM, then print the counts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: Client(relay), "127.0.0.1", port, backlog=1024)
    await stop.wait()
    server.close()
    counts = {"connections": relay.connections, "round_trips": relay.round_trips}
    sys.stdout.write(orjson.dumps(counts).decode() + "\n")
    sys.stdout.flush()


async def main(port: str, sink_port: str, milliseconds: str, directory: str | None = None) -> None:
    """Run one relay as the command line says."""
    context = Authority.create(Path(directory)).issue("127.0.0.1", "localhost").context() if directory else None
    await serve(int(port), Relay(int(sink_port), float(milliseconds) / 1000, context))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
