"""The receiver: an SMTP server that writes down the id of every message before it answers, and can be stopped anywhere.

What it has taken stands in a file, one id a line, handed to the system before the 250 is sent: neither its own
crash nor anything else takes that back. Ids come in the envelope (`<id@…>`), in the recipient, and in the header
X-Torture-Id, and have to agree. Greylisted ids are answered 451 once for each publication. Half of its sessions
offer PIPELINING (RFC 2920).
"""

import asyncio
import os
import re
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mailq.torture.traps import Traps

_ID = re.compile(rb"<([th]x\d{5}-\d{2}g?)@")
_HEADER = re.compile(rb"^X-Torture-Id: (\S+)\r$", re.MULTILINE)
_MAX = 16 * 1024 * 1024
_BUFFER = 64 * 1024
"""Octets of the sockets' buffers: small, so that a large payload stands half sent."""


class Receiver:
    """One receiver on a loopback port; `origin` maps the port of a caller to that of the worker behind the relay."""

    def __init__(self, file: Path, traps: Traps, origin: Callable[[int], int]) -> None:
        self.port = 0
        self.strange = 0
        self.counts: Counter[str] = Counter()
        self._file = file
        self._traps = traps
        self._origin = origin
        self.greylist: Counter[str] = Counter()
        """How often each id is still to be answered 451."""
        self._sessions = 0
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Begin to take connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_BUFFER)
        self.port = listener.getsockname()[1]

    async def crash(self) -> None:
        """Be gone as if killed: nothing more is said, all connections end, the port is closed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End for good."""
        await self.crash()
        os.close(self._descriptor)

    def taken(self) -> Counter[str]:
        """Return how often each id was taken, by the file."""
        return Counter(self._file.read_text("ascii").split())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await _Session(self, reader, writer).run()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def number(self) -> int:
        """Return the number of a new session."""
        self._sessions += 1
        return self._sessions

    def origin(self, port: int) -> int:
        """Return the worker's port for a caller's."""
        return self._origin(port)

    async def passing(self, point: str, identity: str | None, port: int) -> None:
        """Stop where a trap is set."""
        await self._traps.passing(point, identity, port)

    def is_grey(self, identity: str) -> bool:
        """Tell whether the id is to be greylisted now."""
        if not self.greylist[identity]:
            return False
        self.greylist[identity] -= 1
        return True

    def take(self, identity: str, content: bytes) -> None:
        """Write down that a message was taken."""
        header = _HEADER.search(content)
        if header is None or header[1] != identity.encode():
            self.strange += 1
        self.counts[identity] += 1
        os.write(self._descriptor, f"{identity}\n".encode())


class _Session:
    """One SMTP session."""

    def __init__(self, receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._receiver = receiver
        self._reader = reader
        self._writer = writer
        self._port = receiver.origin(writer.get_extra_info("peername")[1])
        self._pipelining = receiver.number() % 2 == 0
        self._identity = ""
        self._refused = False

    async def run(self) -> None:
        """Hold the conversation until QUIT or its end."""
        await self._receiver.passing("intro", None, self._port)
        await self._say("220 receiver.torture.test ESMTP")
        while line := (await self._reader.readuntil(b"\r\n")).strip():
            verb = line[:4].upper()
            if verb == b"EHLO":
                offers = "250-receiver.torture.test\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES"
                await self._answer("ehlo", None, offers if self._pipelining else offers.replace("PIPELINING", "HELP"))
            elif verb == b"MAIL":
                self._note(line)
                await self._answer("mailfrom", self._identity, "250 2.1.0 ok")
            elif verb == b"RCPT":
                self._note(line)
                self._refused = self._receiver.is_grey(self._identity)
                text = "451 4.7.1 greylisted" if self._refused else "250 2.1.5 ok"
                await self._answer("rcptto", self._identity, text)
            elif verb == b"DATA":
                await self._data()
            elif verb == b"QUIT":
                await self._say("221 2.0.0 bye")
                return
            else:
                await self._say("250 2.0.0 ok")

    def _note(self, line: bytes) -> None:
        found = _ID.search(line)
        self._identity = found[1].decode() if found else ""

    async def _data(self) -> None:
        if self._refused:
            await self._say("554 5.5.1 no valid recipients")
            return
        await self._answer("data", self._identity, "354 go ahead")
        first = await self._reader.readexactly(64)
        await self._receiver.passing("in-payload", self._identity, self._port)
        content = await self._content(first)
        self._receiver.take(self._identity, content)
        await self._receiver.passing("before-answer", self._identity, self._port)
        await self._say("250 2.0.0 taken")

    async def _content(self, first: bytes) -> bytes:
        """Return the message up to its final dot; who pipelines nothing after it sends nothing after it."""
        content = bytearray(first)
        while not content.endswith(b"\r\n.\r\n") and len(content) < _MAX:
            block = await self._reader.read(_BUFFER)
            if not block:
                raise ConnectionError("the worker is gone")
            content += block
        return bytes(content)

    async def _answer(self, state: str, identity: str | None, text: str) -> None:
        await self._receiver.passing(f"before-{state}", identity, self._port)
        await self._say(text)
        await self._receiver.passing(f"after-{state}", identity, self._port)

    async def _say(self, text: str) -> None:
        self._writer.write(f"{text}\r\n".encode())
        await self._writer.drain()
