"""Connections of the lab's tests, closed when the test ends."""

import asyncio
import contextlib

import pytest


@pytest.fixture
async def dial():
    """Open raw connections to a server: `reader, writer = await dial(sink)`."""
    writers = []

    async def start(server, **options):
        reader, writer = await asyncio.open_connection(server.host, server.port, **options)
        writers.append(writer)
        return reader, writer

    yield start
    for writer in writers:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
