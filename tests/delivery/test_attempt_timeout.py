"""The clock that many waits share."""

import asyncio

import pytest

from mailq.delivery.attempt_timeout import SharedTimeout


async def stay(clock, until):
    with clock:
        await until.wait()
    return "in time"


async def test_who_stays_too_long_is_told_and_who_does_not_is_left_alone():
    clock, end = SharedTimeout(0.2), asyncio.Event()
    late = asyncio.create_task(stay(clock, asyncio.Event()))
    quick = asyncio.create_task(stay(clock, end))
    end.set()

    assert await quick == "in time"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(late, 5)
    assert late.cancelling() == 0


async def test_each_has_the_whole_time():
    clock, loop = SharedTimeout(0.3), asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.create_task(stay(clock, asyncio.Event()))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(stay(clock, asyncio.Event()))
    await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)

    assert first.done()
    assert not second.done()
    with pytest.raises(TimeoutError):
        await second
    assert loop.time() - began >= 0.45


async def test_a_cancellation_from_outside_stays_one():
    clock = SharedTimeout(30)
    task = asyncio.create_task(stay(clock, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_may_come_again():
    clock = SharedTimeout(0.2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await stay(clock, asyncio.Event())
