"""Trouble with the broker, kind by kind: what a running worker does, what it tells, and that it comes back.

Every test ends with each message sent once and each result on its queue. Losing and restarting the broker under
load is in `test_lifecycle.py`, a quorum without its majority in `tests/edges/amqp/test_cluster.py`.
"""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import orjson
import pytest
from support.broker import Remembering
from support.proxy import Proxy
from support.system import MIME, until

from mailq.edges.amqp import republisher, topology
from mailq.edges.amqp.broker import Broker
from mailq.edges.amqp.frames import settle_frame
from mailq.edges.amqp.publisher import Publisher
from mailq.edges.metrics import Metrics
from mailq.edges.observers import Observers


@asynccontextmanager
async def alarm(rabbit):
    """A memory alarm: the broker blocks whoever publishes."""
    await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
    try:
        yield
    finally:
        await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "0.4")


async def publish(rabbit, count, local="slow-20"):
    """Publish jobs and return their recipients."""
    recipients = [f"{local}+{number}@a.test" for number in range(count)]
    for recipient in recipients:
        await rabbit.publish("outbox", orjson.dumps({"recipient": recipient, "mime": MIME, "id": recipient}))
    return recipients


async def all_told_marked(rabbit, recipients):
    """Return how often each job was told, once each has a result: after a lost acknowledgement one more is marked."""
    told, marked = Counter(), Counter()
    while told.keys() != set(recipients):
        document = orjson.loads((await rabbit.get("success")).body)
        told[document["recipient"]] += 1
        marked[document["recipient"]] += "redelivered" in document["results"][-1]
    assert all(told[each] - marked[each] <= 1 for each in recipients)
    return told


async def all_told(rabbit, receiver, recipients):
    """Wait until each job has its result, and make sure that each was sent and told once."""
    await rabbit.wait_for_count("success", len(recipients), deadline=30)
    results = await rabbit.get_many("success", len(recipients))
    assert sorted(orjson.loads(each.body)["recipient"] for each in results) == sorted(recipients)
    assert Counter(each.recipients[0].address for each in receiver.messages) == Counter(recipients)


async def never(true, seconds=1.0):
    """Make sure that something does not happen in that time."""
    with pytest.raises(TimeoutError):
        await until(true, seconds)


def happened(mail, *events):
    """Tell whether the worker told of these events, in this order, whatever was between them."""
    told = iter(mail.seen.broker_events)
    return all(event in told for event in events)


async def test_an_alarm_stops_jobs_in_memory_and_in_the_queue_and_those_under_way_end(system, sink, rabbit):
    """The proxy holds the first jobs until the alarm is there: RabbitMQ tells the worker of it at the next result."""
    receiver = await sink()
    async with Proxy("127.0.0.1", receiver.port) as proxy:
        mail = await system(proxy.port, worker={"prefetch": 100, "sessions": 20, "drain_timeout": 5})
        proxy.stall()
        recipients = await publish(rabbit, 150, "slow-300")
        await until(lambda: proxy.connections > 0)
        async with alarm(rabbit):
            proxy.resume()
            await until(lambda: "blocked" in mail.seen.broker_events)
            before = len(receiver.messages)
            await never(lambda: len(receiver.messages) > before + 20)
            sent = len(receiver.messages)
            assert 0 < sent < 150
            await never(lambda: len(receiver.messages) > sent, 0.5)
        await all_told(rabbit, receiver, recipients)
        assert mail.seen.broker_events == ["connected", "blocked", "unblocked"]
        await mail.stop()


async def test_a_worker_that_begins_during_an_alarm_takes_nothing(system, sink, rabbit):
    """RabbitMQ tells of an alarm only those who publish, so the worker asks before it consumes."""
    receiver = await sink()
    declared = await Broker.open(rabbit.config(), 1, Remembering())
    recipients = await publish(rabbit, 20)
    async with alarm(rabbit):
        mail = await system(receiver)
        assert "blocked" in mail.seen.broker_events
        await never(lambda: receiver.connections > 0)
    await declared.close()
    await all_told(rabbit, receiver, recipients)


async def test_a_worker_stops_during_an_alarm(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, worker={"drain_timeout": 1})
    await publish(rabbit, 5)
    await until(lambda: len(receiver.messages) == 5)
    await rabbit.wait_for_count("success", 5)
    async with alarm(rabbit):
        await mail.stop(15)


async def test_a_deleted_outbox_is_declared_and_consumed_again(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    await rabbit.delete("outbox")
    await until(lambda: happened(mail, "connected", "cancelled", "lost", "connected"))
    await all_told(rabbit, receiver, await publish(rabbit, 5))


async def test_a_closed_channel_costs_no_message(system, sink, rabbit):
    """Precondition failed, as after an acknowledgement that comes too late: an unknown delivery tag."""
    receiver = await sink()
    mail = await system(receiver, worker={"sessions": 5, "drain_timeout": 5})
    recipients = await publish(rabbit, 60)
    await until(lambda: len(receiver.messages) > 10)
    mail.worker._broker._consuming.send(settle_frame(1_000_000, ack=True))
    await until(lambda: happened(mail, "refused", "lost", "connected"))
    await all_told_marked(rabbit, recipients)
    assert Counter(each.recipients[0].address for each in receiver.messages) == Counter(recipients)


async def test_deleted_result_queues_are_there_again_for_the_result(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    for queue in ("results", "success"):
        await rabbit.delete(queue)
    await rabbit.publish("outbox", orjson.dumps({"recipient": "a@a.test", "mime": MIME, "id": "1"}))
    await until(lambda: happened(mail, "connected", "returned", "taken"))
    await all_told(rabbit, receiver, ["a@a.test"])
    assert mail.seen.broker_events == ["connected", "returned", "taken"]


async def test_an_exchange_without_its_bindings_stops_deliveries_until_people_bind_it(
    system, sink, rabbit, monkeypatch
):
    """The worker may not declare, so it waits; nobody loses a delivery, and nothing is sent that could not be told."""
    monkeypatch.setattr(republisher, "FIRST_PAUSE", 0.1)
    receiver = await sink()
    await (await system(receiver)).stop()
    success = await (await rabbit.channel()).get_queue("success")
    results = await (await rabbit.channel()).get_queue("results")
    for queue in (success, results):
        await queue.unbind("mailq", "success.#")
    mail = await system(receiver, rabbitmq={"declare": False})
    recipients = await publish(rabbit, 1, "accept")
    await until(lambda: happened(mail, "connected", "returned"))
    recipients += await publish(rabbit, 20, "later")
    await never(lambda: any(each.recipients[0].address.startswith("later") for each in receiver.messages))
    for queue in (success, results):
        await queue.bind("mailq", "success.#")
    await all_told(rabbit, receiver, recipients)
    assert mail.seen.broker_events == ["connected", "returned", "taken"]


async def test_a_result_that_the_broker_refuses_is_told_when_it_takes_it(system, sink, rabbit, monkeypatch):
    monkeypatch.setattr(republisher, "FIRST_PAUSE", 0.1)
    receiver = await sink()
    mail = await system(receiver)
    full = '{"max-length": 1, "overflow": "reject-publish"}'
    await asyncio.to_thread(
        rabbit.server.ctl, "set_policy", "-p", rabbit.vhost, "full", "^success$", full, "--apply-to", "queues"
    )
    recipients = []
    async with asyncio.timeout(20):
        while not happened(mail, "nacked"):  # a quorum queue is not exact about its length
            recipients += await publish(rabbit, 1, f"accept+{len(recipients)}")
            await asyncio.sleep(0.05)
    recipients += await publish(rabbit, 20, "later")
    # Nothing is sent of which nothing could be told.
    await never(lambda: any(each.recipients[0].address.startswith("later") for each in receiver.messages))
    await asyncio.to_thread(rabbit.server.ctl, "clear_policy", "-p", rabbit.vhost, "full")
    await all_told(rabbit, receiver, recipients)
    assert mail.seen.broker_events == ["connected", "nacked", "taken"]  # and no delivery was spent on it


async def test_a_worker_stops_while_a_result_is_refused(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, worker={"drain_timeout": 1})
    await rabbit.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await rabbit.publish("full", b"")
    job = {"recipient": "a@a.test", "mime": MIME, "id": "1", "queues": {"results": "full", "success": None}}
    await rabbit.publish("outbox", orjson.dumps(job))
    await until(lambda: happened(mail, "connected", "nacked"))
    await mail.stop(15)
    await rabbit.get("full")
    await system(receiver)
    told = await rabbit.get("full")
    assert orjson.loads(told.body)["results"][-1]["redelivered"] is True
    assert len(receiver.messages) == 1


async def test_a_worker_ends_in_its_drain_time_though_the_broker_hangs(system, sink, rabbit):
    """What was on the wire is known to the journal, so the next worker tells it."""
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port)}, worker={"drain_timeout": 4})
        recipients = await publish(rabbit, 1, "slow-1000")
        await until(lambda: receiver.connections == 1)
        proxy.stall()
        await mail.stop(6)
        proxy.cut()
    assert mail.seen.broker_events == ["connected", "lost", "unsettled"]
    mail = await system(receiver)
    await all_told(rabbit, receiver, recipients)


async def test_a_worker_in_haste_leaves_a_broker_that_hangs(system, sink, rabbit):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port)}, worker={"drain_timeout": 30})
        proxy.stall()
        mail.worker.stop_now()
        await mail.stop(2.5)


async def test_a_worker_ends_while_it_connects_to_a_broker_that_says_nothing(system, sink, rabbit):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        connections = proxy.accepted
        proxy.stall()
        proxy.cut()
        await until(lambda: proxy.accepted > connections)
        await mail.stop(1)


@pytest.mark.parametrize("silent", ["declare", "consume"])
async def test_a_worker_ends_though_the_broker_falls_silent_while_it_begins(system, sink, rabbit, monkeypatch, silent):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        prepare, probe = topology.prepare, Publisher.probe

        async def prepared(connection, config):
            await prepare(connection, config)
            proxy.stall()

        async def probed(publisher):
            proxy.stall()
            await probe(publisher)

        if silent == "declare":
            monkeypatch.setattr(topology, "prepare", prepared)
        else:
            monkeypatch.setattr(Publisher, "probe", probed)
        connections = proxy.accepted
        proxy.cut()
        await until(lambda: proxy.accepted == connections + (2 if silent == "declare" else 3))
        await asyncio.sleep(0.3)
        assert mail.seen.broker_events.count("connected") == 1
        await mail.stop(1)


async def test_confirms_that_never_come_count_as_a_lost_broker(system, sink, rabbit):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        slow = {"url": rabbit.url_at(proxy.port), "confirm_timeout": 0.5, "heartbeat": 0, "connect_timeout": 1}
        mail = await system(receiver, rabbitmq=slow | {"reconnect_delay": 0.1})
        recipients = await publish(rabbit, 10, "slow-100")
        await until(lambda: receiver.connections > 0)
        proxy.stall()
        await until(lambda: happened(mail, "unconfirmed", "lost", "retrying"))
        proxy.cut()  # what it held back is gone: with it the broker would have some results twice
        proxy.resume()
        told = await all_told_marked(rabbit, recipients)
        assert Counter(each.recipients[0].address for each in receiver.messages) == Counter(recipients)
        assert max(told.values()) <= 2
        await mail.stop()


async def test_the_wrong_topology_is_told_until_it_is_right(system, sink, rabbit):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        proxy.refuse()
        proxy.cut()
        await rabbit.delete("outbox")
        await rabbit.declare("outbox", arguments={"x-queue-type": "stream"})
        proxy.resume()
        await until(lambda: happened(mail, "connected", "lost", "refused", "retrying"))
        assert "queue 'outbox' exists with another " in mail.worker.not_ready
        await rabbit.delete("outbox")
        await until(lambda: happened(mail, "refused", "retrying", "connected"))
        await all_told(rabbit, receiver, await publish(rabbit, 1))
        await mail.stop()


async def test_a_consumer_that_gets_nothing_raises_the_alarm(system, sink, rabbit):
    """The last net: connected, jobs wait, none is delivered; here because another consumer is the only active one."""
    receiver = await sink()
    declared = await Broker.open(rabbit.config(), 1, Remembering())
    await declared.close()
    await rabbit.delete("outbox")
    await rabbit.declare("outbox", arguments={"x-queue-type": "quorum", "x-single-active-consumer": True})
    channel = await rabbit.channel()
    await channel.set_qos(1)
    held = []

    async def hold(message):
        held.append(message)

    tag = await (await channel.get_queue("outbox")).consume(hold)
    mail = await system(
        receiver, rabbitmq={"url": rabbit.url, "declare": False}, worker={"stalled_after": 0.5, "drain_timeout": 5}
    )
    recipients = await publish(rabbit, 3)
    await until(lambda: mail.seen.stall)
    await held[0].reject(requeue=True)
    await (await channel.get_queue("outbox")).cancel(tag)
    for message in held[1:]:
        await message.reject(requeue=True)
    await all_told(rabbit, receiver, recipients)
    await until(lambda: not mail.seen.stall)


async def test_every_event_has_a_metric(rabbit):
    metrics = Metrics()
    broker = await Broker.open(rabbit.config(), 1, Observers(metrics))
    await broker.consume(lambda _: None)
    await rabbit.delete("outbox")
    await broker.closed()
    await broker.close()
    assert b'mailq_broker_events_total{event="cancelled"} 1.0' in metrics.page()[1]
