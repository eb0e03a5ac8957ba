"""A receiving SMTP server for demos, tests and benches: takes every message, or misbehaves as asked.

    async with Sink(tls=certificate.context(), faults=["ehlo=502"]) as sink:
        ...  # send to sink.host, sink.port
        messages = await sink.wait(3, timeout=10)

It listens, counts and ends sessions; what is said in them is `sink.conversation`, what an address asks
for is `sink.behaviours`, and what was taken is `sink.inbox`. It delivers to nobody and relays nothing.
"""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from mailq.sink.behaviours import parse_fault
from mailq.sink.channel import Channel
from mailq.sink.conversation import EXTENSIONS, Conversation, Options
from mailq.sink.inbox import Inbox, Message
from mailq.sink.login import MECHANISMS

__all__ = ["Message", "Sink"]


class Sink:
    """A server from `async with` to its end; `port` is the real one when 0 was asked for."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        hostname: str = "sink.test",
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        require_tls: bool = False,
        users: Mapping[str, str] | None = None,
        mechanisms: Iterable[str] = tuple(MECHANISMS),
        plaintext_auth: bool = False,
        require_auth: bool = False,
        without: Iterable[str] = (),
        faults: Iterable[str] = (),
        directory: Path | None = None,
        keep: int = 256 * 1024 * 1024,
        max_size: int = 50 * 1024 * 1024,
        max_sessions: int = 1000,
        timeout: float = 300.0,
    ) -> None:
        """Describe a sink.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 picks a free one.
            hostname: Its name in the greeting.
            tls: Offer STARTTLS with this context.
            implicit_tls: Start TLS before the greeting instead (RFC 8314).
            require_tls: Refuse MAIL before TLS with 530.
            users: Offer AUTH for these users and their passwords.
            mechanisms: The AUTH mechanisms to offer.
            plaintext_auth: Offer AUTH without TLS too.
            require_auth: Refuse MAIL before AUTH with 530.
            without: Names of extensions not to offer.
            faults: What to do wrong in all sessions, as `state=action` (see `behaviours.parse_fault`).
            directory: Also write each message here.
            keep: Octets of messages that are kept in memory, the newest ones.
            max_size: Largest message in octets.
            max_sessions: Connections at once; more are answered 421.
            timeout: Seconds of silence after which a connection is closed.

        Raises:
            ValueError: an unknown extension, mechanism or fault, or implicit TLS without a context.
        """
        left_out, wanted = frozenset(without), tuple(mechanisms)
        if left_out - EXTENSIONS:
            raise ValueError(f"no such extension: {', '.join(sorted(left_out - EXTENSIONS))}")
        if set(wanted) - set(MECHANISMS):
            raise ValueError(f"no such mechanism: {', '.join(sorted(set(wanted) - set(MECHANISMS)))}")
        if implicit_tls and tls is None:
            raise ValueError("implicit TLS needs a certificate")
        self.host = host
        self._asked_port = port
        self._max_sessions = max_sessions
        self._options = Options(
            hostname=hostname,
            extensions=EXTENSIONS - left_out,
            tls=tls,
            implicit_tls=implicit_tls,
            require_tls=require_tls,
            users=users or {},
            mechanisms=wanted,
            plaintext_auth=plaintext_auth,
            require_auth=require_auth,
            faults={fault.at: fault for fault in map(parse_fault, faults)},
            max_size=max_size,
            timeout=timeout,
        )
        self._inbox = Inbox(directory, keep)
        self._server: asyncio.Server
        self._sessions: set[asyncio.Task[None]] = set()
        self._bugs: list[BaseException] = []
        self.connections = 0
        """Connections that were opened so far."""
        self.most_sessions = 0
        """Connections that were open at the same time, at most."""

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        options = self._options
        context = options.tls if options.implicit_tls else None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Channel(options.timeout, self._accept), self.host, self._asked_port, ssl=context, backlog=1024
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close the port and end all sessions.

        Raises:
            ExceptionGroup: a session ended with an exception that it should not have.
        """
        self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._server.wait_closed()
        if self._bugs:
            raise BaseExceptionGroup("sessions of the sink failed", self._bugs)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def open(self) -> int:
        """Sessions that are open now."""
        return len(self._sessions)

    @property
    def accepted(self) -> int:
        """Messages taken so far, kept or not."""
        return self._inbox.accepted

    @property
    def messages(self) -> list[Message]:
        """The messages taken and still kept in memory, oldest first."""
        return self._inbox.messages

    def since(self, number: int) -> list[Message]:
        """Return the kept messages after number `number`, oldest first."""
        return self._inbox.since(number)

    async def wait(self, count: int, timeout: float | None = None) -> list[Message]:  # noqa: ASYNC109 - worded in the error
        """Wait until `count` messages were taken since the start, and return the messages.

        Raises:
            TimeoutError: fewer came within `timeout` seconds; says how many.
        """
        await self._inbox.wait(count, timeout)
        return self._inbox.messages

    def _accept(self, channel: Channel) -> None:
        """Hold a conversation on a new connection, if there is room."""
        if len(self._sessions) >= self._max_sessions:
            channel.write(b"421 4.7.0 too many connections\r\n")
            channel.close()
            return
        self.connections += 1
        conversation = Conversation(channel, self._inbox, self._options, self.connections)
        session = asyncio.get_running_loop().create_task(conversation.run())
        self._sessions.add(session)
        self.most_sessions = max(self.most_sessions, len(self._sessions))
        session.add_done_callback(self._ended)

    def _ended(self, session: asyncio.Task[None]) -> None:
        self._sessions.discard(session)
        if not session.cancelled() and (bug := session.exception()) is not None:
            self._bugs.append(bug)
