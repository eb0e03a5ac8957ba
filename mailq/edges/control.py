"""The line between the supervisor and one worker process: a pair of connected sockets, JSON lines on them.

The supervisor speaks first: its first line is the configuration, which so reaches the process
through no file, argument or environment, secrets included. Then it gives orders: to tell the status, to
drain, to hasten, to reload, which the newest configuration follows. The end of the line is an order too:
whoever finds the other one gone acts on it. What an order means to a worker, and what becomes of a process
that does not answer, is decided elsewhere.

Orders are no signals on purpose: service managers and terminals signal a whole group of processes, and a
worker could not tell the same wish heard twice from a second one.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import orjson

LONGEST = 64 * 1024 * 1024
"""Octets of a line: a configuration may hold overrides for many domains."""


class Order(StrEnum):
    """What the supervisor asks for."""

    STATUS = "status"
    DRAIN = "drain"
    STOP_NOW = "stop_now"
    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class Status:
    """How a process is: why it is not alive or not ready, if so, and what `Metrics.snapshot` counts."""

    dead: str | None
    unready: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """What a process is started with: its index, and the inherited descriptor of its line."""

    index: int
    line: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that `str` has written.

        Raises:
            ValueError: it is none.
        """
        index, line = map(int, text.split(":"))
        return cls(index, line)

    def __str__(self) -> str:
        """Return it as an argument."""
        return f"{self.index}:{self.line}"


class WorkerEnd:
    """The line as a worker process has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, descriptor: int) -> Self:
        """Take the inherited descriptor, which now belongs to the line."""
        return cls(*await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor), limit=LONGEST))

    async def configuration(self) -> bytes:
        """Return the first line, or the one after the order `RELOAD`; b"" if the supervisor is gone."""
        return await _line(self._reader)

    async def orders(self) -> AsyncIterator[Order]:
        """Yield the orders until the supervisor is gone."""
        while line := await _line(self._reader):
            yield Order(orjson.loads(line))

    def answer(self, status: Status) -> None:
        """Answer the order `STATUS`; every one gets one answer."""
        self._writer.write(orjson.dumps(asdict(status)) + b"\n")

    async def aclose(self) -> None:
        """Close this end."""
        await _close(self._writer)


class SupervisorEnd:
    """The line as the supervisor has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._asked: asyncio.Future[Status] | None = None
        self._listener = asyncio.create_task(self._listen(reader))

    @classmethod
    async def open(cls, end: socket.socket, configuration: bytes) -> Self:
        """Begin to talk over one end of `pair`; `configuration` is one line without its end."""
        line = cls(*await asyncio.open_unix_connection(sock=end, limit=LONGEST))
        line._writer.write(configuration + b"\n")
        return line

    def order(self, order: Order) -> None:
        """Send an order; nothing happens if the process is gone."""
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(order) + b"\n")

    def reload(self, configuration: bytes) -> None:
        """Send the order `RELOAD` and one line of configuration; nothing happens if the process is gone."""
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(Order.RELOAD) + b"\n" + configuration + b"\n")

    async def status(self, patience: float) -> Status | None:
        """Return how the process is; None if it is gone or does not answer within `patience` seconds.

        One question is open at a time: a process that is slow is not asked again before it answered.
        """
        if self._listener.done():
            return None
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self.order(Order.STATUS)
        done, _ = await asyncio.wait({self._asked}, timeout=patience)
        asked = next(iter(done), None)
        return asked.result() if asked is not None and not asked.cancelled() else None

    async def aclose(self) -> None:
        """Close this end, which makes a process that still lives drain."""
        self._listener.cancel()
        await asyncio.wait({self._listener})
        await _close(self._writer)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await _line(reader):
                asked, self._asked = self._asked, None
                if asked is not None:
                    asked.set_result(Status(**orjson.loads(line)))
        finally:
            if self._asked is not None:
                self._asked.cancel()


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new line: the supervisor's, and the one to hand to a process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next whole line without its end, b"" when there is none: what was cut off is no line."""
    try:
        return (await reader.readuntil(b"\n"))[:-1]
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
