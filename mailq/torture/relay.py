"""A TCP relay on loopback addresses that misbehaves when told to, and stops where traps are set.

It passes everything between workers and one server: reset, stalled, delayed or cut within a line or frame on
demand. What a `Tap` knows of the protocol decides where the stream can be stopped; without one it is just
octets. It keeps who is behind each connection that it opened (`origin`).
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from mailq.torture.traps import Traps

_CHUNK = 64 * 1024


class Piece(NamedTuple):
    """Octets to pass on, once none of the (point, id) steps holds them."""

    octets: bytes
    steps: Sequence[tuple[str, str]] = ()


class Tap(Protocol):
    """What is known of one connection's protocol."""

    def up(self, octets: bytes) -> Iterable[Piece]:
        """Return what came from the worker, in pieces."""

    def down(self, octets: bytes) -> Iterable[Piece]:
        """Return what came from the server, in pieces."""


class NoTap:
    """Nothing is known."""

    def up(self, octets: bytes) -> Iterable[Piece]:
        """Return it all."""
        return (Piece(octets),)

    down = up


class Relay:
    """Passes connections on to `target`, a port that may change; listens on one port of any loopback addresses."""

    def __init__(self, port: int, target: Callable[[], int], traps: Traps, tap: Callable[[], Tap] = NoTap) -> None:
        self.port = port
        self.accepted = 0
        self.truncated = 0
        self._target = target
        self._traps = traps
        self._tap = tap
        self._delay = 0.0
        self._truncating = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._origins: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: dict[str, asyncio.Server] = {}

    async def listen(self, host: str) -> None:
        """Take connections on a loopback address, if it does not yet."""
        if host not in self._servers:
            listener = socket.create_server((host, self.port), backlog=256)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
            self._servers[host] = await asyncio.start_server(self._accept, sock=listener, limit=_CHUNK)

    async def close(self) -> None:
        """Cut everything and listen no more."""
        for server in self._servers.values():
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def origin(self, port: int) -> int:
        """Return the worker's port behind a connection that the relay opened from `port`."""
        return self._origins.get(port, port)

    def cut(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Hold everything back for so long."""
        self._delay = seconds

    def truncate(self) -> None:
        """Pass half of the next octets of every connection and reset it, until told to resume."""
        self._truncating = True

    def resume(self) -> None:
        """Pass on everything again."""
        self._delay, self._truncating = 0.0, False
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("peername")[1]
        near = socket.socket()
        try:
            near.setblocking(False)
            near.bind(("127.0.0.1", 0))
            ours = near.getsockname()[1]
            self._origins[ours] = port  # before the server can ask for it
            await asyncio.get_running_loop().sock_connect(near, ("127.0.0.1", self._target()))
            far_reader, far_writer = await asyncio.open_connection(sock=near, limit=_CHUNK)
        except BaseException:
            near.close()
            raise
        tap = self._tap()
        pair = {writer, far_writer}
        self._writers |= pair
        ways = [
            asyncio.create_task(self._forward(reader, far_writer, tap.up, port)),
            asyncio.create_task(self._forward(far_reader, writer, tap.down, port)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers -= pair
            del self._origins[ours]
            far_writer.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cut: Callable[[bytes], Iterable[Piece]],
        port: int,
    ) -> None:
        """Pass one direction on until it ends; what was passed before its end still arrives."""
        while octets := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            for piece in cut(octets):
                await self._flowing.wait()
                for point, identity in piece.steps:
                    await self._traps.passing(point, identity, port)
                if self._truncating and len(piece.octets) > 1:
                    writer.write(piece.octets[: len(piece.octets) // 2])
                    self.truncated += 1
                    writer.close()
                    await writer.wait_closed()
                    return
                writer.write(piece.octets)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
