"""What is declared, what is only checked, and what the operator is told when it does not fit."""

import asyncio

import pytest
from support.broker import Inbox

from mailq.core.broker.messages import Publication
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp import broker as broker_module
from mailq.ports.broker import BrokerError

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


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"x-queue-type": "classic", "x-max-priority": 10},
        {"x-max-length": 1000, "x-message-ttl": 86_400_000, "x-expires": 3_600_000},
        {"x-queue-type": "quorum"},
        {"x-queue-type": "quorum", "x-delivery-limit": 5},
        {"x-queue-type": "quorum", "x-single-active-consumer": True},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
async def test_queues_that_exist_are_used_as_they_are(open_broker, rabbit, observer, arguments):
    """A second declaration with the same arguments proves that nothing was changed."""
    for name in ("outbox", "results"):
        await rabbit.declare(name, arguments=arguments)
    broker, inbox = await open_broker(), Inbox()
    await broker.consume(inbox)
    await broker.publish([Publication("", "outbox.delay.1s", b"1"), Publication("mailq", "success", b"2")])
    (message,) = await inbox.wait(1)
    broker.ack(message.tag)
    await rabbit.wait_for_count("results", 1)
    for name in ("outbox", "results"):
        await rabbit.declare(name, arguments=arguments)
    assert "queue 'outbox'" in dict(observer.events)["differs"]


async def test_what_differs_is_told_once_with_its_costs(open_broker, rabbit, observer):
    await rabbit.declare("outbox", arguments={"x-max-priority": 10})
    await open_broker()
    (told,) = [detail for event, detail in observer.events if event == "differs"]
    for words in (
        "instead of 'quorum'",  # it has none, say brokers before 4.0, and 'classic' later ones
        "x-dead-letter-exchange is none instead of ''",
        "x-max-priority is '10' instead of none",
        "has no replica",
        "counts no deliveries",
        "moves nothing to poison",
    ):
        assert words in told
    assert "results" not in told


async def test_mailqs_own_queues_are_told_to_nobody(open_broker, observer):
    await open_broker()
    await open_broker()
    assert observer.events == []


@pytest.mark.parametrize(
    ("queue", "arguments", "words"),
    [
        ("outbox.delay.2m", {}, "another x-"),
        ("outbox.delay.2m", {"x-message-ttl": 120_000}, "another x-dead-letter-exchange"),
        ("outbox.delay.2m", {"x-message-ttl": 120_000} | dead_letter_to("results"), "x-dead-letter-routing-key"),
        ("outbox.delay.2m", dead_letter_to("outbox"), "another x-message-ttl"),
        ("outbox", {"x-queue-type": "stream"}, "another x-queue-type: wanted 'quorum', it has 'stream'"),
    ],
)
async def test_a_queue_that_would_lose_jobs_is_refused(open_broker, rabbit, queue, arguments, words):
    await rabbit.declare(queue, arguments=arguments)
    with pytest.raises(BrokerError) as caught:
        await open_broker()
    assert f"queue {queue!r} exists with " in str(caught.value)
    assert words in str(caught.value)
    assert "jobs would be lost there; delete it once it is empty" in str(caught.value)


async def test_delays_of_another_length_are_told(open_broker, rabbit, observer):
    await rabbit.declare("outbox.delay.2m", arguments={"x-message-ttl": 60_000} | dead_letter_to("outbox"))
    await open_broker()
    assert "delays are of another length" in dict(observer.events)["differs"]


async def test_workers_that_start_at_once_find_one_topology(open_broker, observer):
    await asyncio.gather(*(open_broker() for _ in range(4)))
    assert observer.events == []


async def test_plain_queues_are_declared_where_arguments_are_off(open_broker, rabbit):
    broker = await open_broker(arguments=False)
    for name in ("outbox", "results", "success", "failures", "retry"):
        await rabbit.declare(name)
    await rabbit.declare("outbox.poison", arguments=LASTING)
    await broker.publish([Publication("mailq", "success", b"{}")])
    assert await rabbit.count("results") == 1


async def test_queues_have_mailerqs_names_where_configured(open_broker, rabbit):
    broker = await open_broker(failures="failure")
    await broker.publish([Publication("mailq", "failure.hard.unknown", b"{}")])
    assert await rabbit.count("failure") == 1
    assert not await rabbit.exists("failures")


@pytest.mark.parametrize("kind", ["fanout", "direct"])
async def test_an_exchange_that_leads_results_astray_is_refused(open_broker, rabbit, kind):
    await (await rabbit.channel()).declare_exchange("mailq", kind, durable=True)
    with pytest.raises(
        BrokerError, match=rf"exchange 'mailq' exists with another type: wanted 'topic', it has '{kind}', so results"
    ):
        await open_broker()


async def test_an_exchange_that_does_not_last_is_used_as_it_is(open_broker, rabbit, observer):
    await (await rabbit.channel()).declare_exchange("mailq", "topic", durable=False)
    broker = await open_broker()
    await broker.publish([Publication("mailq", "success", b"{}")])
    assert await rabbit.count("results") == 1
    assert "exchange 'mailq': durable is 'false' instead of 'true'" in dict(observer.events)["differs"]


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
