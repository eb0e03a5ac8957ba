"""What the supervisor says and hands down: configuration, statuses, the line to a process."""

import asyncio
import os
import subprocess
import sys

import pytest

from mailq.config import Config
from mailq.edges.control import Order, Place, Status, SupervisorEnd, WorkerEnd, pair
from mailq.service.supervisor import cores, describe, dump

FULL = {
    "rabbitmq": {"url": "amqp://me:geheim@broker.example/vhost"},
    "worker": {"drain_timeout": float("inf"), "processes": 3},
    "smarthost": {"hostname": "h.example", "username": "u", "password": 'p"\n\u2028é'},
    "dns": {"overrides": {"*": ["[::1]:2525"], "a.example": ["192.0.2.1", "h.example:25"]}},
    "sources": [{"ip": "192.0.2.1", "ehlo": "a.example"}, {"ip": "2001:db8::1"}],
    "delivery": {"retries": [1, 2, 3]},
}


@pytest.mark.parametrize("tables", [{}, FULL], ids=["defaults", "full"])
def test_a_process_gets_the_very_configuration(tables):
    config = Config.model_validate(tables)
    line = dump(config)

    assert b"\n" not in line
    assert Config.model_validate_json(line) == config


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit status 0"), (78, "exit status 78"), (-9, "signal SIGKILL"), (-15, "signal SIGTERM"), (-63, "signal 63")],
)
def test_how_a_process_ended_in_words(code, words):
    assert describe(code) == words


def test_cores_are_those_this_process_may_use():
    mine = os.sched_getaffinity(0)
    assert 1 <= cores() <= len(mine)
    code = "from mailq.service.supervisor import *\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code += "\nprint(cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "a:b"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - whichever part is wrong
        Place.parse(text)
    done = subprocess.run(
        [sys.executable, "-m", "mailq", "run", "--child", text],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "only a supervisor" in done.stderr


def test_a_place_is_read_as_it_is_written():
    assert Place.parse(str(Place(2, 5))) == Place(2, 5)


async def both(configuration=b"{}"):
    ours, theirs = pair()
    return await SupervisorEnd.open(ours, configuration), await WorkerEnd.open(theirs.detach())


async def test_the_configuration_comes_first_and_orders_in_their_order():
    supervisor, worker = await both(b'{"a": "%s"}' % (b"x" * 1_000_000))
    supervisor.order(Order.DRAIN)
    supervisor.order(Order.STOP_NOW)

    assert len(await worker.configuration()) == 1_000_009
    orders = worker.orders()
    assert [await anext(orders), await anext(orders)] == [Order.DRAIN, Order.STOP_NOW]
    await supervisor.aclose()
    assert [order async for order in orders] == []
    await worker.aclose()


async def test_a_slow_process_is_asked_once_and_its_late_answer_is_the_next_one():
    supervisor, worker = await both()
    await worker.configuration()
    status = Status(None, "not connected\nyet", {"a": [1, 2.5]})

    assert await supervisor.status(0.01) is None
    assert await supervisor.status(0.01) is None
    orders = worker.orders()
    assert await anext(orders) is Order.STATUS
    asked = [asyncio.create_task(supervisor.status(10)) for _ in range(3)]
    await asyncio.sleep(0)
    worker.answer(status)

    assert await asyncio.gather(*asked) == [status] * 3
    supervisor.order(Order.DRAIN)
    assert await anext(orders) is Order.DRAIN  # no question came twice
    await supervisor.aclose()
    await worker.aclose()


async def test_a_process_that_is_gone_is_no_answer_at_once():
    supervisor, worker = await both()
    asked = asyncio.create_task(supervisor.status(20))
    await asyncio.sleep(0)
    await worker.aclose()

    async with asyncio.timeout(5):
        assert await asked is None
        assert await supervisor.status(20) is None
    supervisor.order(Order.DRAIN)
    await supervisor.aclose()


async def test_a_supervisor_that_is_gone_before_it_spoke_is_no_configuration():
    ours, theirs = pair()
    ours.close()
    worker = await WorkerEnd.open(theirs.detach())

    assert await worker.configuration() == b""
    assert [order async for order in worker.orders()] == []
    await worker.aclose()
