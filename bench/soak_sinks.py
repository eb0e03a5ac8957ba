"""`python -m bench.soak_sinks DIRECTORY SITE=PORT ...`: the receivers of a soak, all in one process.

Each site of `soak_mix` that listens is a sink of the lab; the dark one is a port whose queue of connections
is full, so that the kernel ignores whoever calls. The recipient of every message taken goes to
`DIRECTORY/taken`, one a line, complete when the process has ended, which SIGTERM asks for.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import uvloop

from bench.soak_mix import SITES
from mailq.sink.server import Sink
from mailq.testbed.certificates import Authority

KEPT = 16_000_000
"""Octets of messages that a sink holds until they are noted down, which is soon."""

TAKEN = "taken"

_CALLERS = 4
"""Connections that fill the queue of the dark port; on Linux one fits into a queue of length 0."""


async def serve(directory: Path, ports: dict[str, int]) -> None:
    """Receive until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    certificate = Authority.create(directory / "certificates").issue("127.0.0.1", "localhost")
    async with AsyncExitStack() as stack:
        file = stack.enter_context((directory / TAKEN).open("w", encoding="ascii"))
        notes = []
        for name, port in ports.items():
            site = SITES[name]
            if site.dark:
                stack.enter_context(ignored(port))
            if site.listens:
                tls = certificate.context() if site.tls else None
                sink = await stack.enter_async_context(Sink(port=port, tls=tls, faults=site.faults, keep=KEPT))
                notes.append(asyncio.create_task(note(sink, partial(print, file=file))))
        await asyncio.wait({asyncio.create_task(stop.wait()), *notes}, return_when=asyncio.FIRST_COMPLETED)
        for each in notes:
            if each.done():
                each.result()
            each.cancel()


async def note(sink: Sink, write: Callable[[str], None]) -> None:
    """Write the recipient of each message once.

    Raises:
        RuntimeError: messages were forgotten before they were noted.
    """
    noted = 0
    while True:
        await sink.wait(noted + 1)
        for message in sink.since(noted):
            if message.number != noted + 1:
                raise RuntimeError(f"messages {noted + 1} to {message.number - 1} were forgotten too early")
            write(message.recipient)
            noted = message.number


@contextmanager
def ignored(port: int) -> Iterator[None]:
    """Have a port that neither takes nor refuses connections."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(_CALLERS):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        yield


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), {name: int(port) for name, port in (pair.split("=") for pair in sys.argv[2:])}))
