"""The bench's relay before a real smtp-sink: it delays, counts round trips, and ends TLS."""

import asyncio
import contextlib
import json
import ssl
import time
from types import SimpleNamespace

import pytest

from bench.servers import relay, smtp_sink
from mailq.testbed.free_port import free_port

MESSAGE = b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n.\r\n"


@pytest.fixture
def relayed(tmp_path):
    """Start a relay before a sink; the value stops it and returns its counts."""
    with contextlib.ExitStack() as stack:

        def start(*, latency=0.0, tls=False):
            port, sink_port = free_port(), free_port()
            sink = stack.enter_context(smtp_sink(tmp_path, sink_port))
            sink.listening(sink_port)
            options = SimpleNamespace(latency=latency, tls=tls)
            server = stack.enter_context(relay(tmp_path, options, port, sink_port))
            server.listening(port)

            def counts():
                assert server.stop() == 0
                return json.loads((tmp_path / "relay.log").read_text().splitlines()[-1])

            return port, counts

        yield start


@contextlib.asynccontextmanager
async def connected(port):
    """Connect and read the greeting."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await say(reader, writer, b"", b"220")
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def say(reader, writer, command, code):
    """Send a command and return its reply, which must have this code."""
    writer.write(command)
    while True:
        line = await asyncio.wait_for(reader.readline(), 10)
        if line[3:4] != b"-":
            assert line.startswith(code), line
            return


async def deliver(reader, writer):
    """Send one message, envelope pipelined: two round trips."""
    await say(reader, writer, b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n", b"250")
    await say(reader, writer, b"", b"250")
    await say(reader, writer, b"", b"354")
    await say(reader, writer, MESSAGE, b"250")


async def test_it_counts_round_trips(relayed):
    port, counts = relayed()
    async with connected(port) as (reader, writer):
        await say(reader, writer, b"EHLO x.test\r\n", b"250")
        for _ in range(5):
            await deliver(reader, writer)
    assert counts()["round_trips"] == 1 + 5 * 2


@pytest.mark.alone
async def test_each_round_trip_takes_the_latency(relayed):
    port, _ = relayed(latency=50.0)
    async with connected(port) as (reader, writer):
        await say(reader, writer, b"EHLO x.test\r\n", b"250")
        began = time.monotonic()
        for _ in range(5):
            await deliver(reader, writer)
        assert 10 * 0.049 <= time.monotonic() - began < 10 * 0.049 + 2


@pytest.mark.alone
async def test_many_connections_wait_side_by_side(relayed):
    port, _ = relayed(latency=100.0)

    async def one():
        async with connected(port) as (reader, writer):
            await say(reader, writer, b"EHLO x.test\r\n", b"250")
            await deliver(reader, writer)

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(50)))
    assert time.monotonic() - began < 50 * 4 * 0.1 / 2


async def test_it_ends_tls_for_the_sink(relayed, tmp_path):
    port, counts = relayed(tls=True)
    trust = ssl.create_default_context(cafile=str(tmp_path / "certificates" / "ca.pem"))
    async with connected(port) as (reader, writer):
        await say(reader, writer, b"MAIL FROM:<a@a.test>\r\n", b"530")
        await say(reader, writer, b"EHLO x.test\r\n", b"250")
        await say(reader, writer, b"STARTTLS\r\n", b"220")
        await writer.start_tls(trust, server_hostname="localhost")
        await say(reader, writer, b"EHLO x.test\r\n", b"250")
        await deliver(reader, writer)
        assert writer.get_extra_info("cipher")
    assert counts()["round_trips"] == 4 + 2


async def test_an_end_of_the_sink_reaches_the_worker(relayed):
    port, _ = relayed(latency=20.0)
    async with connected(port) as (reader, writer):
        await say(reader, writer, b"QUIT\r\n", b"221")
        assert await asyncio.wait_for(reader.read(), 10) == b""
