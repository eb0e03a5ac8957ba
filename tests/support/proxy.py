"""A TCP proxy on loopback that misbehaves when told to: cut, stall, delay, refuse.

It stands between a client and a server under test and plays the network's part. It knows nothing of
what passes through.
"""

import asyncio
from types import TracebackType
from typing import Self

_CHUNK = 65_536


class Proxy:
    """Forwards connections to one address; an async context manager, listening on `port`."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self._target = (host, port)
        self._delay = 0.0
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._tasks)

    def cut(self) -> None:
        """Abort all connections; new ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Forward nothing more in either direction, but keep the connections open."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again, without delay, what was held back and what comes."""
        self._delay = 0.0
        self._refusing = False
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Hold everything back for so long before it is forwarded."""
        self._delay = seconds

    def refuse(self) -> None:
        """Close new connections at once; open ones stay."""
        self._refusing = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                ways = {
                    asyncio.create_task(self._forward(reader, far_writer)),
                    asyncio.create_task(self._forward(far_reader, writer)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._writers.discard(far_writer)
                far_writer.close()
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy one direction until it ends."""
        while data := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
