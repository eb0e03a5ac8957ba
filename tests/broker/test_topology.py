"""What is declared, what is only checked, and what the operator is told when it does not fit."""

import asyncio

import pytest
from support.broker import Inbox

from mailq.core.publication import Publication
from mailq.core.retry import STEPS
from mailq.edges.amqp import broker as broker_module
from mailq.ports import BrokerError

SAFE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


LASTING = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}


def dead_letter_to(queue):
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


async def test_everything_is_declared_with_its_arguments(open_broker, rabbit):
    """RabbitMQ refuses to declare a queue again with other arguments; so these are the arguments."""
    await open_broker(delivery_limit=7)
    await open_broker(delivery_limit=7)
    quorum = {"x-queue-type": "quorum"}
    outbox = quorum | SAFE | dead_letter_to("outbox.poison") | {"x-delivery-limit": 7}
    await rabbit.declare("outbox", arguments=outbox)
    for name in ("outbox.poison", "results", "success", "failures", "retry"):
        await rabbit.declare(name, arguments=LASTING)
    for step, seconds in STEPS.items():
        delay = quorum | SAFE | dead_letter_to("outbox") | {"x-message-ttl": seconds * 1000}
        await rabbit.declare(f"outbox.delay.{step}", arguments=delay)


async def test_classic_queues_have_no_quorum_arguments_and_work(open_broker, rabbit):
    broker, inbox = await open_broker(queue_type="classic"), Inbox()
    classic = {"x-queue-type": "classic"}
    await rabbit.declare("outbox", arguments=classic | dead_letter_to("outbox.poison"))
    await rabbit.declare("results", arguments=classic)
    await rabbit.declare("outbox.delay.1s", arguments=classic | dead_letter_to("outbox") | {"x-message-ttl": 1000})
    await broker.consume(inbox)
    await broker.publish([Publication("", "outbox.delay.1s", b"1"), Publication("mailq", "success", b"2")])
    (message,) = await inbox.wait(1)
    broker.ack(message.tag)
    assert (await rabbit.get("results")).body == b"2"
    await broker.close()
    assert await rabbit.count("outbox") == 0


async def test_results_are_bound_by_outcome(open_broker, rabbit):
    broker = await open_broker()
    for key in ("success", "failure.hard.unknown", "retry.soft.greylisted"):
        await broker.publish([Publication("mailq", key, key.encode())])
    found = [(await rabbit.get(name)).body for name in ("success", "failures", "retry")]
    assert found == [b"success", b"failure.hard.unknown", b"retry.soft.greylisted"]
    assert [m.body for m in await rabbit.get_many("results", 2)] == [b"success", b"failure.hard.unknown"]


async def test_an_empty_name_is_no_queue(open_broker, rabbit):
    await open_broker(results="", retry="", success="")
    assert await rabbit.exists("failures")
    assert not [name for name in ("results", "success", "retry") if await rabbit.exists(name)]


async def test_one_queue_for_several_outcomes_gets_each_message_once(open_broker, rabbit):
    broker = await open_broker(results="all", success="all", failures="all", retry="all")
    for key in ("success", "failure.hard.x", "retry.soft.y"):
        await broker.publish([Publication("mailq", key, b"{}")])
    assert await rabbit.count("all") == 3


async def test_names_may_be_any_text(open_broker, rabbit):
    broker, inbox = await open_broker(outbox="sortie (été) 100%", exchange="mél & co"), Inbox()
    await broker.consume(inbox)
    await broker.publish([Publication("", "sortie (été) 100%", b"1"), Publication("mél & co", "success", b"2")])
    await inbox.wait(1)
    assert (await rabbit.get("success")).body == b"2"


async def test_a_queue_with_other_arguments_is_explained(open_broker, rabbit):
    await rabbit.declare("results")
    with pytest.raises(BrokerError) as caught:
        await open_broker()
    before, after = "wanted the value 'quorum' of type 'longstr', it has none", "wanted 'quorum', it has 'classic'"
    assert str(caught.value) in {  # as brokers before 4.0 and since then say what differs
        f"queue 'results' exists with another x-queue-type: {values}; make the configuration match,"
        " or delete the queue once it is empty, or set rabbitmq.declare = false to use it as it is"
        for values in (before, after)
    }


async def test_a_changed_delivery_limit_is_explained(open_broker):
    await open_broker(delivery_limit=5)
    with pytest.raises(BrokerError, match=r"queue 'outbox' exists with another x-delivery-limit: .*'6'.* it has .*'5'"):
        await open_broker(delivery_limit=6)


async def test_queues_of_an_earlier_version_are_used_as_they_are(open_broker, rabbit):
    for name in ("outbox.poison", "results", "success", "failures", "retry"):
        await rabbit.declare(name, arguments={"x-queue-type": "quorum"})
    broker = await open_broker()
    await broker.publish([Publication("mailq", "success", b"{}")])
    assert [await rabbit.count(name) for name in ("results", "success")] == [1, 1]
    await rabbit.declare("results", arguments={"x-queue-type": "quorum"})  # unchanged


async def test_another_delivery_limit_of_a_result_queue_is_explained(open_broker, rabbit):
    await rabbit.declare("results", arguments={"x-queue-type": "quorum", "x-delivery-limit": 5})
    with pytest.raises(BrokerError, match=r"queue 'results' exists with another x-delivery-limit: .*'1000000000'"):
        await open_broker()


async def test_an_exchange_of_another_type_is_explained(open_broker, rabbit):
    await (await rabbit.channel()).declare_exchange("mailq", "fanout", durable=True)
    with pytest.raises(
        BrokerError, match=r"exchange 'mailq' exists with another type: wanted 'topic', it has 'fanout'"
    ):
        await open_broker()


async def test_without_declare_the_first_missing_thing_is_named(open_broker, rabbit):
    with pytest.raises(BrokerError, match=r"exchange 'mailq' does not exist, and rabbitmq.declare is false"):
        await open_broker(declare=False)
    await open_broker()
    await rabbit.delete("outbox.delay.2m")
    with pytest.raises(BrokerError, match=r"queue 'outbox.delay.2m' does not exist, .* set rabbitmq.declare = true"):
        await open_broker(declare=False)
    assert not await rabbit.exists("outbox.delay.2m")


async def test_without_declare_queues_are_used_as_they_are(open_broker, rabbit):
    await open_broker(delivery_limit=5)
    broker, inbox = await open_broker(declare=False, delivery_limit=9), Inbox()
    await broker.consume(inbox)
    await rabbit.publish("outbox", b"1")
    await inbox.wait(1)


async def test_ensure_queue_declares_what_is_missing_where_that_is_configured(open_broker, rabbit):
    broker = await open_broker(declare_job_queues=True)
    assert await broker.ensure_queue("mine")
    await rabbit.declare("mine", arguments=LASTING)
    await rabbit.declare("theirs", arguments={"x-max-length": 5})
    assert await broker.ensure_queue("theirs")
    await broker.publish([Publication("", "mine", b"1"), Publication("", "theirs", b"2")])


async def test_ensure_queue_declares_nothing_by_default(open_broker, rabbit):
    broker = await open_broker()
    assert not await broker.ensure_queue("mine")
    assert not await rabbit.exists("mine")
    assert await broker.ensure_queue("results")


async def test_ensure_queue_takes_an_exclusive_queue_of_somebody_else(open_broker, rabbit):
    broker = await open_broker()
    await (await rabbit.channel()).declare_queue("theirs", exclusive=True)
    assert await broker.ensure_queue("theirs")


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "amq.reserved", "half \ud800 a pair"])
async def test_ensure_queue_says_no_to_what_cannot_be_a_queue(open_broker, name):
    broker = await open_broker(declare_job_queues=True)
    assert not await broker.ensure_queue(name)
    assert await broker.ensure_queue("results")


async def test_ensure_queue_remembers_and_forgets(open_broker, rabbit, monkeypatch):
    monkeypatch.setattr(broker_module, "KNOWN_QUEUES", 2)
    broker = await open_broker(declare_job_queues=True)
    assert await broker.ensure_queue("mine")
    await rabbit.delete("mine")
    assert await broker.ensure_queue("mine")
    assert not await rabbit.exists("mine")  # remembered, not looked up
    for name in ("results", "retry"):
        assert await broker.ensure_queue(name)
    assert await broker.ensure_queue("mine")
    assert await rabbit.exists("mine")


async def test_many_questions_at_once_and_askers_that_go_away(open_broker):
    broker = await open_broker(declare_job_queues=True)
    tasks = [asyncio.create_task(broker.ensure_queue(f"q{n}")) for n in range(10)]
    tasks += [asyncio.create_task(broker.depth()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n % 3 == 0:
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert outcome == (True if n < 10 else 0)
    assert await broker.depth() == 0
