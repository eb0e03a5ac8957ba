"""Which connections may be opened while servers do not greet."""

import asyncio
import contextlib
import socket

import pytest
from support.hostile import Hostile, mailer

from mailq.core.smtp.failure import Cause, Delayed
from mailq.delivery import openings
from mailq.delivery.openings import AT_ONCE, Openings

SLOW = (None, "192.0.2.1", 25)
OTHER = (None, "192.0.2.2", 25)
LONE = {"messages_per_session": 1}


@pytest.fixture(autouse=True)
def _haste(monkeypatch):
    monkeypatch.setattr(openings, "SOON", 0.05)


class Server:
    """Greets when it is told to."""

    def __init__(self, mine, ends):
        self.greets = asyncio.Event()
        self.opened = self.open = self.most = 0
        self._openings = mine
        self._ends = ends

    async def job(self):
        await self._openings.admitted(self._ends)
        async with self._openings.opening(self._ends):
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                await self.greets.wait()
            finally:
                self.open -= 1
            self.opened += 1


async def postponed(jobs):
    ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(end is None or (isinstance(end, Delayed) and end.cause is Cause.SILENCE) for end in ends)
    return sum(end is not None for end in ends)


@contextlib.asynccontextmanager
async def under_way(*jobs):
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_greeting_lets_all_jobs_go():
    server = Server(Openings(10), SLOW)
    async with under_way(*(server.job() for _ in range(20))) as jobs:
        await asyncio.sleep(0)
        assert server.open == AT_ONCE
        server.greets.set()
        assert await postponed(jobs) == 0
    assert server.opened == 20
    server.greets.clear()
    async with under_way(*(server.job() for _ in range(20))):
        await asyncio.sleep(0)
        assert server.open == 20, "a server that greeted lately need not greet first"


async def test_jobs_for_a_silent_server_are_postponed_but_the_first():
    mine = Openings(10)
    server = Server(mine, SLOW)
    async with under_way(*(server.job() for _ in range(20))) as jobs:
        assert await postponed(jobs[AT_ONCE:]) == 20 - AT_ONCE
        with pytest.raises(Delayed, match="port 25 does not greet"):
            await asyncio.wait_for(mine.admitted(SLOW), 0.01)  # known by now: nobody waits
        assert (server.most, mine.slow) == (AT_ONCE, AT_ONCE)
        server.greets.set()
        await asyncio.gather(*jobs[:AT_ONCE])
        await mine.admitted(SLOW)
    assert mine.slow == 0


async def test_slow_openings_are_bounded_over_all_servers_and_new_servers_get_their_chance():
    mine = Openings(6)
    servers = [Server(mine, (None, f"192.0.2.{n}", 25)) for n in range(20)]
    async with under_way(*(server.job() for server in servers)) as jobs:
        broken_off, kept = await asyncio.wait(jobs, timeout=1)
        assert (len(kept), mine.slow) == (6, 6)
        assert await postponed(broken_off) == 14
        good = Server(mine, (None, "192.0.2.99", 25))
        good.greets.set()
        await good.job()
        left_alone = [server for job, server in zip(jobs, servers, strict=True) if job in broken_off]
        for server in left_alone:
            with pytest.raises(Delayed):
                await server.job()
    assert mine.slow == 0


async def test_of_a_server_that_stopped_greeting_an_earlier_greeting_says_nothing(monkeypatch):
    monkeypatch.setattr(openings, "LONG", 0.1)
    mine = Openings(50)
    server = Server(mine, SLOW)
    server.greets.set()
    await server.job()
    server.greets.clear()
    async with under_way(*(server.job() for _ in range(5))):
        await asyncio.sleep(0.2)
        assert server.open == 5
        with pytest.raises(Delayed):
            await mine.admitted(SLOW)
        await mine.admitted(OTHER)


async def test_a_failure_wakes_the_next_and_is_passed_on():
    mine = Openings(10)
    failing = asyncio.Event()

    async def job():
        await mine.admitted(SLOW)
        async with mine.opening(SLOW):
            await failing.wait()
            raise ConnectionError

    async with under_way(*(job() for _ in range(9))) as jobs:
        await asyncio.sleep(0)
        failing.set()
        ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(end, ConnectionError) for end in ends)
    assert mine.slow == 0


async def test_jobs_go_on_to_the_next_mx_host_while_the_preferred_one_is_silent():
    """Only those that wait for its greeting spend time on it, and no job an attempt."""

    async def good(peer):
        for said in (b"220 good\r\n", b"250 good\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await peer.say(said)
            await peer.hear(b"\r\n")
        await peer.hear(b"\r\n.\r\n")
        await peer.say(b"250 taken\r\n")

    async with Hostile(good) as server:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            places = [f"127.0.0.1:{silent.getsockname()[1]}", f"127.0.0.1:{server.address[1]}"]
            tables = {"dns": {"overrides": {"*": places}}, "timeouts": {"intro": 2}, "limits": [LONE]}
            async with mailer(server.address, tables) as client:
                results = await asyncio.gather(*(client.send() for _ in range(6)))
    assert all(result.accepted for result in results)
    assert sum("intro" in result.timing and result.timing["intro"] > 1500 for result in results) <= AT_ONCE
