"""Sessions of several processes towards one receiver that takes a limited number of connections."""

import asyncio
import contextlib
from dataclasses import replace
from time import monotonic

import pytest
from support.limits import beside, private_table

from mailq.config import Config
from mailq.core.results.result import Trail
from mailq.core.traffic.limits import Allowance
from mailq.core.traffic.routes import Route, Source, Target, Tls
from mailq.delivery.smtp.session_pool import TENURE, SessionPool
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.service.build import timeouts_of

PLACES = 10
ALLOWANCE = Allowance(PLACES, "connections", None, "", None, "", 1_000_000, 3600.0, 60.0)
ONCE = replace(ALLOWANCE, session_age=0.0)
"""Sessions are good for one message."""


@pytest.fixture
async def pools():
    """Return two pools as two processes of a host have them."""
    config = Config()
    with contextlib.closing(private_table()) as table:
        tables = [table, beside(table, 1)]
        dialer = TcpDialer(Security(config.tls))
        both = [SessionPool(dialer, each, timeouts_of(config), config.timeouts.quit, 100, 500) for each in tables]
        yield both
        for pool in both:
            await pool.close()
        tables[1].close()


async def busy(pool, route, until, allowance=ALLOWANCE):
    """Use sessions one after the other, each for a few milliseconds; return how many times."""
    times = 0
    while monotonic() < until:
        held = await pool.find(route, allowance) or await pool.open(Trail(), route, allowance)
        await asyncio.sleep(0.005)
        pool.release(held)
        times += 1
    return times


async def test_two_busy_processes_come_to_equal_shares_and_keep_them(pools, sink):
    receiver = await sink()
    route = Route(Source(None, "worker.test"), Target("mx.test", "127.0.0.1", receiver.port), Tls.NONE)
    shares = []

    async def watch(until):
        while monotonic() < until:
            shares.append([pool.open_sessions for pool in pools])
            await asyncio.sleep(0.05)

    first = monotonic()
    until = first + 4 * TENURE
    load = [busy(pool, route, until) for pool in pools for _ in range(4 * PLACES)]
    await asyncio.gather(watch(until), *load)

    assert receiver.most_sessions <= PLACES
    settled = shares[len(shares) // 2 :]  # from then on all sessions are old enough to be given away
    assert all(PLACES // 2 - 1 <= share <= PLACES // 2 + 1 for pair in settled for share in pair), shares
    assert receiver.connections <= 2 * PLACES


async def test_a_process_whose_sessions_live_shortly_lets_others_in(pools, sink):
    receiver = await sink()
    route = Route(Source(None, "worker.test"), Target("mx.test", "127.0.0.1", receiver.port), Tls.NONE)
    until = monotonic() + 2 * TENURE
    load = [busy(pool, route, until, ONCE) for pool in pools for _ in range(4 * PLACES)]

    times = await asyncio.gather(*load)

    first, second = sum(times[: 4 * PLACES]), sum(times[4 * PLACES :])
    assert receiver.most_sessions <= PLACES
    assert first / 3 < second < 3 * first
