"""Reading messages: the large beside the loop, the heavy when there is room, the small at once."""

import asyncio
import gzip
import threading

import orjson
import pytest
from support.broker import until

from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import Outbox
from mailq.core.jobs.document import UNCOUNTED, InvalidJobError
from mailq.core.outcomes import Disposition
from mailq.delivery.offload import LARGE, offloaded
from mailq.edges.observers import Observers
from mailq.worker.handler import Handler, WorkerBounds
from mailq.worker.reading import Reading, Room

LIMIT = 10_000_000


def body(**properties):
    return orjson.dumps({"recipient": "b@b.test", "mime": "x", **properties})


async def test_small_work_is_done_at_once_and_large_work_in_one_thread():
    assert await offloaded(LARGE, threading.get_ident) == threading.get_ident()
    idents = {await offloaded(LARGE + 1, threading.get_ident) for _ in range(5)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


@pytest.mark.parametrize(
    ("made", "apart"),
    [
        (body(), False),
        (gzip.compress(body()), False),
        (gzip.compress(body(mime="y" * (LARGE // 2))), False),
        (body(mime="y" * LARGE), True),
        (gzip.compress(body(mime="y" * LARGE)), True),
        (gzip.compress(body(mime="y" * LARGE)) + b"\0" * 8, True),
        (gzip.compress(b" " * LARGE) + gzip.compress(body()), True),
        (body(x=[{}] * UNCOUNTED), True),
        (body(mime="a, b: c\n" * UNCOUNTED), True),
    ],
    ids=["small", "zipped", "half", "large", "unfolds", "padded", "members", "values", "text"],
)
async def test_what_takes_long_is_read_beside_the_loop(made, apart, monkeypatch):
    threads = []

    async def noted(octets, work):
        threads.append(octets > LARGE)
        return await offloaded(octets, work)

    monkeypatch.setattr("mailq.worker.reading.offloaded", noted)
    reading = Reading(LIMIT, 200_000)
    consumed = Consumed(made, 1, message_id="m")
    job = await reading.job(await reading.unpack(consumed), consumed)

    assert (job.identity, job.recipient.local) == ("m", "b")
    assert (threads[0] if len(threads) > 1 else False) is apart


async def test_what_is_beyond_a_bound_is_refused_beside_the_loop_too():
    reading = Reading(LIMIT, 1000)
    for made in (body(x=[{}] * 200_000), gzip.compress(b" " * (LIMIT + 1)), b" " * (LIMIT + 1)):
        with pytest.raises(InvalidJobError):
            await reading.unpack(Consumed(made, 1))


async def test_heavy_documents_wait_for_each_other_and_one_is_always_read():
    room = Room(100)
    await room.enter(500)
    waiting = [asyncio.create_task(room.enter(60)) for _ in range(2)]
    gone = asyncio.create_task(room.enter(60))
    await asyncio.sleep(0)
    gone.cancel()
    room.leave(500)
    await until(waiting[0].done)
    assert not waiting[1].done()
    room.leave(60)
    await until(waiting[1].done)
    room.leave(60)
    await room.enter(100)


async def test_the_values_of_a_message_count_as_memory_until_it_ends(monkeypatch):
    handling = Handler(None, None, None, Outbox("/", "outbox", "secret"), Observers(), WorkerBounds(in_memory=LIMIT))
    go = asyncio.Event()

    class Life:
        held = False

        def hold(self, *, held):
            self.held = held

    async def process(inflight):
        await handling._read(inflight)
        await go.wait()
        return Disposition.RETURNED

    monkeypatch.setattr(handling, "_process", process)
    life = Life()
    heavy = body(x=[{}] * 30_000)
    for tag in range(3):
        handling.take(life, Consumed(heavy, tag))
    await until(lambda: handling.in_memory > 2 * LIMIT)

    in_flight = list(handling.in_flight.values())
    await until(lambda: sorted(inflight.waiting for inflight in in_flight) == [False, True, True])
    assert life.held
    handling.requeue_unsent(hurried=False)  # nobody has heard of any
    go.set()
    await until(lambda: not handling.in_flight)
    assert handling.in_memory == 0
    assert not life.held
