"""Messages being handled: the memory they take, and who may send more of them."""

import asyncio

from support.broker import until

from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import Outbox
from mailq.core.outcomes import Disposition
from mailq.edges.observers import Observers
from mailq.worker.handler import Handler, WorkerBounds


class Life:
    """A connection to the broker that can be held."""

    def __init__(self):
        self.held = False
        self.go = asyncio.Event()

    def hold(self, *, held):
        self.held = held


async def test_a_connection_that_is_held_is_let_go_though_an_earlier_one_filled_the_memory(monkeypatch):
    handling = Handler(None, None, None, Outbox("/", "outbox", "secret"), Observers(), WorkerBounds(in_memory=1000))

    async def process(inflight):
        await inflight.broker.go.wait()
        return Disposition.RETURNED

    monkeypatch.setattr(handling, "_process", process)
    lost, new = Life(), Life()
    handling.take(lost, Consumed(b"x" * 1100, 1))
    handling.take(new, Consumed(b"y" * 10, 1))
    assert lost.held
    assert new.held

    new.go.set()
    await until(lambda: len(handling.in_flight) == 1)
    assert new.held
    lost.go.set()
    await until(lambda: not handling.in_flight)

    assert not new.held
    assert handling.in_memory == handling.drift == 0
