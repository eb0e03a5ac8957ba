"""Servers that mean harm, in the test's own loop, and the delivery that meets them.

    async with Hostile(script) as server, mailer(server.address, {"timeouts": {"intro": 0.5}}) as mailer:
        result = await mailer.send()

A script is a coroutine that gets a `Peer` for each connection and says what it likes; when it returns, the
server waits until the client closes. All that was heard and how much was said is kept, also of connections that
broke. `Mailer` is the real thing from `Delivery.attempt` down to the socket, and keeps its sessions between
messages; only the DNS is replaced.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any, Self, cast

import orjson

from mailq.config import Config
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result, Trail
from mailq.core.smtp.failure import Delayed
from mailq.core.traffic.limits import LimitRule
from mailq.delivery.attempt import Delivery
from mailq.delivery.governor import Governor
from mailq.delivery.smtp.session_pool import SessionPool
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.ports.journal import HandoverGuard
from mailq.service.build import meaning_of, policy_of, timeouts_of
from support.dialogue import Leave
from support.limits import private_table

DEADLINE = 10.0
"""Seconds in which a client must have done what is waited for."""

SEND_BUFFER = 16 * 1024
"""Octets that the system keeps on the server's side, so that `said` tells what the client took."""


class Peer:
    """A connection as the server has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.said = 0
        self.heard = b""
        self.gone = asyncio.Event()
        self.address: str = writer.get_extra_info("peername")[0]
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.transport.set_write_buffer_limits(0)

    async def say(self, octets: bytes) -> None:
        """Send octets as one write; returns when the system has them."""
        self._writer.write(octets)
        await self._writer.drain()
        self.said += len(octets)

    async def repeat(self, octets: bytes, times: int | None = None, *, pause: float = 0) -> None:
        """Say something again and again, for ever if not told how often."""
        while times is None or times > 0:
            await self.say(octets)
            await asyncio.sleep(pause)
            times = None if times is None else times - 1

    async def hear(self, end: bytes = b"\r\n") -> bytes:
        """Return what the client says up to `end`, without it."""
        octets = await asyncio.wait_for(self._reader.readuntil(end), DEADLINE)
        self.heard += octets
        return octets.removesuffix(end)

    def hang_up(self) -> None:
        """Close first; what was said still arrives."""
        self._writer.close()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Read nothing meanwhile."""
        transport = cast(asyncio.ReadTransport, self._writer.transport)
        transport.pause_reading()
        try:
            yield
        finally:
            transport.resume_reading()

    async def starttls(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake as server."""
        await self._writer.start_tls(context)

    def raw(self, octets: bytes) -> None:
        """Send octets past TLS."""
        with socket.socket(fileno=self._writer.get_extra_info("socket").dup().detach()) as beneath:
            beneath.send(octets)

    async def close(self) -> None:
        """Wait until the client closes, then close too."""
        with contextlib.suppress(OSError):
            self.heard += await asyncio.wait_for(self._reader.read(), DEADLINE)
        self.gone.set()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


Script = Callable[[Peer], Awaitable[None]]


class Hostile:
    """A server on a free loopback port, inside `async with`; at its end every client must have closed."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.address: tuple[str, int]

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.address = listener.getsockname()
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=64 * 1024 * 1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 2 * DEADLINE)

    @property
    def said(self) -> int:
        """Octets said on all connections."""
        return sum(peer.said for peer in self.peers)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(Peer(reader, writer))
        self._tasks.add(asyncio.create_task(self._speak(self.peers[-1])))

    async def _speak(self, peer: Peer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._script(peer)
        await peer.close()


class Mailer:
    """Makes attempts one by one or at once, over sessions that are kept."""

    def __init__(self, address: tuple[str, int], tables: dict[str, Any]) -> None:
        clocks = dict.fromkeys(("connect", "intro", "ehlo", "starttls", "mailfrom", "rcptto", "data", "message"), 5)
        config = Config.model_validate(
            {
                "delivery": {"ehlo": "client.example"},
                "dns": {"overrides": {"*": ["{}:{}".format(*address)]}},
                **tables,
                "timeouts": clocks | {"quit": 0.1} | tables.get("timeouts", {}),
            }
        )
        self.bugs: list[BaseException] = []
        self.session_limits: list[int] = []
        self.pool = SessionPool(
            TcpDialer(Security(config.tls)), private_table(), timeouts_of(config), config.timeouts.quit, 100, 500
        )
        self._delivery = Delivery(
            policy_of(config),
            DnsResolver(config.dns),
            HostSources(config.sources, config.delivery.ehlo),
            Governor([LimitRule(**rule.model_dump()) for rule in config.limits]),
            self.pool,
            meaning_of(config),
            self,
            lambda: datetime.now(UTC),
            Random(0),
        )

    def bug(self, where: str, error: BaseException) -> None:
        self.bugs.append(error)

    def session_limit(self, host: str, messages: int) -> None:
        self.session_limits.append(messages)

    async def send(self, claim: HandoverGuard | None = None, **properties: Any) -> Result:
        """Return the result of an attempt for a job with these properties."""
        job = {"recipient": "b@b.test", "envelope": "a@a.test", "mime": "Subject: x\n\nhi\n"} | properties
        made = await self._delivery.attempt(Job.parse(orjson.dumps(job), limit=10_000_000), Trail(), claim or Leave())
        assert not isinstance(made, Delayed)
        return made


@contextlib.asynccontextmanager
async def mailer(address: tuple[str, int], tables: dict[str, Any] | None = None) -> AsyncIterator[Mailer]:
    """Yield a `Mailer`; at the end its sessions are closed, and it must have met no bug."""
    made = Mailer(address, tables or {})
    try:
        yield made
    finally:
        await made.pool.close()
    assert made.bugs == []
    assert made.pool.open_sessions == 0
