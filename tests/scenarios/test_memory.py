"""What a failed attempt held, its message above all, is free when it ends, not when the garbage collector comes by.

A message can have 100 MB, and the collector comes after thousands of objects.
"""

import contextlib
import gc
import types
from collections.abc import Iterator
from typing import Any

import pytest
from support.hostile import mailer

from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Failure, Trouble
from mailq.delivery.smtp.session import Session
from mailq.edges.wire.dialer import TcpWire
from mailq.testbed.free_port import free_port

HELD = (Job, Trail, Session, TcpWire, Failure, Trouble, types.FrameType)


@contextlib.contextmanager
def left_to_the_collector() -> Iterator[list[Any]]:
    """Yield a list that has in the end what only the collector can free."""
    left: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield left
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left += [each for each in gc.garbage if isinstance(each, HELD) and _is_ours(each)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _is_ours(each: object) -> bool:
    """Leave out what the receiver in this process does."""
    return not isinstance(each, types.FrameType) or "/lab/" not in each.f_code.co_filename


@pytest.mark.parametrize(
    "local",
    [
        "accept", "reject-550", "reject-554-message", "tempfail-450-data", "drop-rcptto", "drop-data", "drop-message",
        "drop-before-dot", "drop-after-dot", "reset-message", "garbage-rcptto", "garbage-message", "close-421",
        "close-421-data", "stall-message",
    ],
)  # fmt: skip
async def test_a_message_is_free_when_its_attempt_ends(local, sink):
    server = await sink()
    async with mailer((server.host, server.port), {"timeouts": {"message": 0.3}}) as sender:
        await sender.send()
        with left_to_the_collector() as left:
            result = await sender.send(recipient=f"{local}@b.test")
            await sender.pool.close()
        assert result.accepted == (local == "accept")
    assert left == []


@pytest.mark.parametrize(
    "fault", ["intro=421", "intro=554", "ehlo=421", "intro=drop", "starttls=broken", "intro=stall"]
)
async def test_a_message_is_free_though_no_session_came_about(fault, sink):
    server = await sink(tls=True, faults=[fault])
    tables = {"timeouts": {"intro": 0.3}, "tls": {"retry_plaintext": False}}
    async with mailer((server.host, server.port), tables) as sender:
        with left_to_the_collector() as left:
            result = await sender.send()
        assert not result.accepted
    assert left == []


async def test_messages_are_free_that_a_target_which_takes_no_connections_is_spared():
    async with mailer(("127.0.0.1", free_port())) as sender:
        with left_to_the_collector() as left:
            results = [await sender.send() for _ in range(5)]
    assert "untried" in results[-1].facts
    assert left == []
