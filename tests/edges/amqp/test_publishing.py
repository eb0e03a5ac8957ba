"""Publications: every property, any size, many at once, and every way not to be taken."""

import asyncio
import time
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from support.broker import DEADLINE, Remembering, until
from support.rabbitmq import max_message_size

from mailq.core.broker.application_headers import DROPPED
from mailq.core.broker.messages import Application, Fallback, Publication
from mailq.edges.amqp import republisher
from mailq.edges.amqp.broker import Broker
from mailq.edges.amqp.max_message_size import KNOWN_SECONDS, MaxMessageSize
from mailq.edges.amqp.publisher import NackedError
from mailq.ports.broker import BrokerError, OversizedError, UnencodableError, UnroutableError

BROKERS_OWN = {"x-delivery-count": 0}
"""Added by quorum queues before RabbitMQ 4.0 to what basic.get returns for the first time."""


def published(message):
    """Return the headers of a message without the broker's own."""
    return {name: value for name, value in message.headers.items() if (name, value) not in BROKERS_OWN.items()}


def to_queue(name, body=b"{}", **properties):
    return Publication("", name, body, **properties)


async def test_every_property_arrives(open_broker, rabbit):
    broker = await open_broker()
    headers = {
        "text": "grüße", "raw": b"\xff\x00", "no": False, "small": -5, "large": 1 << 40, "half": 0.5, "nothing": None,
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "list": [1, "two", {"three": 3}], "table": {"deep": [True]},
        "exact": Decimal("-1.25"),
    }  # fmt: skip
    await broker.publish(
        [
            Publication(
                "mailq",
                "failure.hard.unknown-user",
                b'{"a": 1}',
                message_id="job-1",
                content_type="application/json",
                content_encoding="gzip",
                priority=7,
                headers=headers,
            )
        ]
    )
    for queue in ("results", "failures"):
        message = await rabbit.get(queue)
        assert message.body == b'{"a": 1}'
        assert (message.message_id, message.content_type, message.content_encoding) == (
            "job-1", "application/json", "gzip",
        )  # fmt: skip
        assert (message.priority, message.delivery_mode, message.routing_key) == (7, 2, "failure.hard.unknown-user")
        assert published(message) == headers
    assert [await rabbit.count(name) for name in ("success", "retry")] == [0, 0]


async def test_an_empty_body_and_no_properties(open_broker, rabbit):
    broker = await open_broker()
    await broker.publish([to_queue("retry", b"", content_type=None)])
    message = await rabbit.get("retry")
    assert (message.body, message.content_type, message.message_id) == (b"", None, None)
    assert published(message) == {}


async def test_a_large_body_is_split_into_frames(open_broker, rabbit):
    broker = await open_broker()
    body = bytes(range(256)) * 12_288
    await asyncio.gather(*(broker.publish([to_queue("results", body + bytes((n,)))]) for n in range(3)))
    assert [message.body for message in await rabbit.get_many("results", 3)] == [body + bytes((n,)) for n in range(3)]


@pytest.mark.parametrize("size", [131_063, 131_064, 131_065, 262_128, 262_129])
async def test_bodies_around_the_frame_size(open_broker, rabbit, size):
    broker = await open_broker()
    await broker.publish([to_queue("results", b"x" * size)])
    assert len((await rabbit.get("results")).body) == size


async def test_two_thousand_in_flight_are_all_confirmed(open_broker, rabbit):
    broker = await open_broker()
    await asyncio.gather(*(broker.publish([to_queue("results"), to_queue("retry")]) for _ in range(1_000)))
    await rabbit.wait_for_count("results", 1_000)
    await rabbit.wait_for_count("retry", 1_000)


async def test_publish_returns_only_when_confirmed(open_broker, rabbit):
    """What is confirmed is in the queue, however many others are under way."""
    broker = await open_broker()
    for n in range(20):
        await broker.publish([to_queue("results", b"%d" % n)])
        assert await rabbit.count("results") == n + 1


async def test_unroutable_is_told_to_its_publisher_and_to_nobody_else(open_broker, rabbit):
    broker = await open_broker()
    await rabbit.declare("here")

    async def publish(n):
        name = "here" if n % 3 else f"gone.{n}"
        await broker._publisher.publish([to_queue(name, b"%d" % n)])

    outcomes = await asyncio.gather(*(publish(n) for n in range(300)), return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n % 3:
            assert outcome is None
        else:
            assert isinstance(outcome, UnroutableError)
            assert f"'gone.{n}'" in str(outcome)
    await rabbit.wait_for_count("here", 200)


async def test_unroutable_among_several_fails_the_whole(open_broker, rabbit):
    broker = await open_broker()
    with pytest.raises(UnroutableError, match=r"no queue takes queue 'nowhere': NO_ROUTE"):
        await broker._publisher.publish([to_queue("results"), to_queue("nowhere", b"x" * 300_000), to_queue("retry")])
    await broker.publish([to_queue("results")])
    await rabbit.wait_for_count("results", 2)


async def test_routing_key_without_a_binding_is_unroutable_unless_optional(open_broker):
    broker = await open_broker()
    with pytest.raises(UnroutableError, match=r"routing key 'odd.one' of exchange 'mailq'"):
        await broker._publisher.publish([Publication("mailq", "odd.one", b"{}")])
    await broker.publish([Publication("mailq", "odd.one", b"{}", mandatory=False)])


async def test_a_refused_publication_is_an_error_of_the_publisher_that_names_what_is_refused(open_broker, rabbit):
    broker = await open_broker()
    await rabbit.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await broker.publish([to_queue("full")])
    with pytest.raises(NackedError, match="RabbitMQ refused a publication to queue 'full'") as refusal:
        await broker._publisher.publish([to_queue("full"), to_queue("results")])
    assert [each.routing_key for each in refusal.value.refused] == ["full"]
    assert broker.recording


async def test_only_what_is_refused_is_offered_again_by_one_caller_at_a_time(
    open_broker, rabbit, observer, monkeypatch
):
    monkeypatch.setattr(republisher, "FIRST_PAUSE", 0.05)
    broker = await open_broker()
    await rabbit.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await broker.publish([to_queue("full", b"first")])
    offers = []
    send = broker._publisher._send
    monkeypatch.setattr(broker._publisher, "_send", lambda what, frames: [offers.append(what), send(what, frames)][1])
    callers = [
        asyncio.create_task(broker.publish([to_queue("full", b"%d" % number), to_queue("results")]))
        for number in range(5)
    ]
    await until(lambda: len(offers) == len(callers) + 2)  # each once, and one of them twice more
    assert not broker.recording
    assert [event for event, _ in observer.events] == ["nacked"]
    assert "queue 'full'" in observer.events[0][1]
    for _ in range(len(callers) + 1):
        await rabbit.get("full")
    await asyncio.gather(*callers)
    assert broker.recording
    assert [event for event, _ in observer.events] == ["nacked", "taken"]
    assert await rabbit.count("results") == len(callers)


async def test_who_insists_hears_that_the_connection_is_lost(open_broker, rabbit, observer):
    broker = await open_broker()
    await rabbit.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await broker.publish([to_queue("full")])
    callers = [asyncio.create_task(broker.publish([to_queue("full")])) for _ in range(3)]
    await until(lambda: not broker.recording)
    broker.fail(BrokerError("enough"))
    assert {str(each) for each in await asyncio.gather(*callers, return_exceptions=True)} == {"enough"}
    assert [event for event, _ in observer.events] == ["nacked"]


async def test_a_missing_exchange_ends_the_connection(open_broker):
    broker = await open_broker()
    with pytest.raises(BrokerError, match=r"NOT_FOUND - no exchange 'absent'"):
        await broker.publish([Publication("absent", "x", b"{}")])
    assert "no exchange 'absent'" in str(await broker.closed())


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing_key": "ü" * 128},
        {"routing_key": "half \ud800 a pair"},
        {"priority": 256},
    ],
)
async def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(open_broker, rabbit, wrong):
    broker = await open_broker()
    with pytest.raises(UnencodableError, match="cannot be sent"):
        await broker.publish([to_queue("results"), to_queue("retry")._replace(**wrong)])
    assert await rabbit.count("results") == 0
    await broker.publish([to_queue("results")])


LARGE = "x" * 140_000


@pytest.mark.parametrize(
    ("headers", "kept", "named"),
    [
        ({"a": LARGE[:90_000], "b": LARGE, "c": 1, "d": LARGE[:40_000]}, {"c", "d"}, "a, b"),
        ({"b": LARGE}, set(), "b"),
        ({"b": LARGE, "x-mailq-reason": "y" * 500, DROPPED: "before"}, {"x-mailq-reason"}, "before, b"),
        ({"b": "half \ud800 a pair", "c": 1}, {"c"}, "b"),
        ({"b": object(), "half \ud800 a pair": 1, "c": [1, {"d": 1 << 70}], "e": 1}, {"e"}, "b, half ? a pair, c"),
        ({"b": Decimal("Infinity"), "c": Decimal(1 << 31), "n" * 256: 1}, set(), f"b, c, {'n' * 40}"),
        ({f"n{number}": LARGE[:9_000] for number in range(25)}, {f"n{number}" for number in range(14)}, None),
    ],
)
async def test_headers_that_amqp_cannot_carry_are_left_out_and_named(
    open_broker, rabbit, observer, headers, kept, named
):
    """A content header is one frame, and RabbitMQ ends the connection for a longer one."""
    broker = await open_broker()
    await broker.publish([to_queue("results", headers=headers)])
    message = await rabbit.get("results")
    named = named or ", ".join(f"n{number}" for number in range(14, 24)) + " and 1 more"
    assert published(message) == {name: headers[name] for name in kept} | {DROPPED: named}
    assert [event for event, _ in observer.events] == ["dropped"]
    assert "'results' goes without these headers: " in observer.events[0][1]
    assert broker.alive


@pytest.mark.parametrize(
    "wrong", [{"message_id": "half \ud800 a pair"}, {"application": Application(type="x" * 256), "message_id": "1"}]
)
async def test_properties_that_amqp_cannot_carry_are_left_out(open_broker, rabbit, wrong):
    broker = await open_broker()
    await broker.publish([to_queue("results", headers={"a": 1}, **wrong)])
    message = await rabbit.get("results")
    assert (message.message_id, message.type, message.headers["a"]) == (None, None, 1)


async def test_properties_for_applications_arrive(open_broker, rabbit):
    broker = await open_broker()
    await broker.publish([to_queue("results", application=Application("c", "r", "t", "a"), message_id="m")])
    await broker.publish([to_queue("results", application=Application(app_id="ä"))])
    first, second = await rabbit.get_many("results", 2)
    assert (first.correlation_id, first.reply_to, first.message_id, first.type, first.app_id) == (
        "c",
        "r",
        "m",
        "t",
        "a",
    )
    assert (second.correlation_id, second.reply_to, second.type, second.app_id) == (None, None, None, "ä")


async def test_what_no_queue_of_a_job_takes_goes_to_its_fallback_once(open_broker, rabbit, observer):
    broker = await open_broker()
    exchange = Fallback("mailq", "success", mandatory=True)
    await broker.publish(
        [to_queue("gone", fallback=exchange), to_queue("gone too", fallback=exchange), to_queue("retry")]
    )
    assert [await rabbit.count(name) for name in ("results", "success", "retry")] == [1, 1, 1]
    assert [event for event, _ in observer.events] == ["rerouted"]
    assert "no queue takes queue 'gone': NO_ROUTE" in observer.events[0][1]
    await broker.publish([to_queue("gone", fallback=Fallback("mailq", "nobody", mandatory=False))])


async def test_a_queue_of_mailqs_own_that_is_gone_is_declared_again(open_broker, rabbit, observer, monkeypatch):
    monkeypatch.setattr(republisher, "FIRST_PAUSE", 0.05)
    broker = await open_broker()
    await rabbit.delete("outbox.delay.5s")
    delayed = [broker.publish([to_queue("outbox.delay.5s", b"%d" % number), to_queue("retry")]) for number in range(5)]
    await asyncio.gather(*delayed)
    assert await rabbit.count("outbox.delay.5s") == 5
    assert await rabbit.count("retry") == 5
    assert [event for event, _ in observer.events] == ["returned", "taken"]
    assert broker.alive


async def test_a_size_that_was_refused_once_is_not_sent_again_for_a_while(open_broker, rabbit, monkeypatch):
    ceiling = MaxMessageSize()
    async with max_message_size(rabbit, 10_000):
        broker = await Broker.open(rabbit.config(), 1, Remembering(), ceiling)
        await broker.publish([to_queue("results", b"x" * 10_000)])
        with pytest.raises(BrokerError, match="10001 is larger"):
            await broker.publish([to_queue("results", b"x" * 10_001)])
        await broker.close()
        broker = await Broker.open(rabbit.config(), 1, Remembering(), ceiling)
        with pytest.raises(OversizedError, match="no message of 10001 octets: its max_message_size is 10000"):
            await broker.publish([to_queue("results"), to_queue("results", b"x" * 10_001)])
        assert broker.alive
        await broker.publish([to_queue("results", b"x" * 10_000)])
    monkeypatch.setattr("mailq.edges.amqp.max_message_size.monotonic", lambda: time.monotonic() + KNOWN_SECONDS)
    await broker.close()
    broker = await Broker.open(rabbit.config(), 1, Remembering(), ceiling)
    await broker.publish([to_queue("results", b"x" * 10_001)])
    await broker.close()
    assert [len(each.body) for each in await rabbit.get_many("results", 3)] == [10_000, 10_000, 10_001]


async def test_a_message_id_that_does_not_fit_is_left_out(open_broker, rabbit):
    broker = await open_broker()
    await broker.publish([to_queue("results", message_id="é" * 128)])
    assert (await rabbit.get("results")).message_id is None


async def test_a_publisher_that_goes_away_disturbs_no_other(open_broker, rabbit):
    broker = await open_broker()
    tasks = [asyncio.create_task(broker.publish([to_queue("results")])) for _ in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False] * 50
    await broker.publish([to_queue("results")])


async def test_an_alarm_holds_publications_back(open_broker, observer, rabbit):
    broker = await open_broker(confirm_timeout=2)
    server = rabbit.server
    await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
    try:
        # RabbitMQ tells a connection that it is blocked when it publishes, once the connection has heard of the alarm.
        early, first = -1, None
        while not broker.blocked:
            early += 1
            first = asyncio.create_task(broker.publish([to_queue("results")]))
            await until(lambda first=first: broker.blocked or first.done())
        waiting = [first, *(asyncio.create_task(broker.publish([to_queue("results")])) for _ in range(10))]
        done, _ = await asyncio.wait(waiting, timeout=3)  # longer than confirm_timeout, which must not run
        assert not done
        event, detail = observer.events[-1]
        assert event == "blocked"
        assert "memory" in detail
    finally:
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.4")
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*waiting)
    assert not broker.blocked
    assert [event for event, _ in observer.events] == ["blocked", "unblocked"]
    await rabbit.wait_for_count("results", early + 11)
