"""Deliveries: every property, any size, the prefetch window, and what becomes of open messages."""

import asyncio

import aio_pika
import pytest
from support.broker import Inbox, until
from support.rabbitmq import short_consumer_timeout

from mailq.core.broker.messages import Application, Consumed, Publication
from mailq.edges.amqp.topology import delay_queue
from mailq.ports.broker import BrokerError


async def test_every_property_is_read(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish(
        "outbox",
        b"{}",
        message_id="id-1",
        content_type="application/json",
        content_encoding="gzip",
        priority=4,
        headers={"traceparent": "00-a-b-01", "n": 7},
        correlation_id="c",
        reply_to="r",
        expiration=600,
        type="t",
        app_id="a",
    )
    await broker.consume(inbox)
    (message,) = await inbox.wait(1)
    headers, application = {"traceparent": "00-a-b-01", "n": 7}, Application("c", "r", "t", "a")
    assert message == Consumed(b"{}", message.tag, False, "id-1", "gzip", 4, headers, application)


async def test_bare_and_empty_messages(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await broker.consume(inbox)
    await rabbit.publish("outbox", b"")
    first = (await inbox.wait(1))[0]
    assert (first.body, first.content_encoding, first.headers, first.redelivered) == (b"", None, {}, False)
    await broker.publish([Publication("", "outbox", b"x", content_type=None)])
    second = (await inbox.wait(2))[1]
    assert second == Consumed(b"x", second.tag)


async def test_a_large_body_is_put_together(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    body = bytes(range(256)) * 12_288
    await rabbit.publish("outbox", body)
    await rabbit.publish("outbox", b"after")
    await broker.consume(inbox)
    assert [message.body for message in await inbox.wait(2)] == [body, b"after"]


async def test_prefetch_bounds_what_is_open_and_acks_move_the_window(open_broker, rabbit):
    broker, inbox = await open_broker(prefetch=10), Inbox()
    for n in range(25):
        await rabbit.publish("outbox", b"%d" % n)
    await broker.consume(inbox)
    await inbox.wait(10)
    await rabbit.wait_for_count("outbox", 15)
    for message in inbox.messages[5:]:  # not the oldest: single acknowledgements
        broker.ack(message.tag)
    await inbox.wait(15)
    for message in list(inbox.messages):  # all: one for many, and some a second time
        broker.ack(message.tag)
    await inbox.wait(25)
    assert [int(message.body) for message in inbox.messages] == list(range(25))
    for message in inbox.messages[15:]:
        broker.ack(message.tag)
    await broker.close()
    assert await rabbit.count("outbox") == 0


async def test_acknowledged_is_gone_and_open_comes_back_redelivered(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    for n in range(6):
        await rabbit.publish("outbox", b"%d" % n)
    await broker.consume(inbox)
    for message in await inbox.wait(6):
        if int(message.body) % 2:
            broker.ack(message.tag)
    await broker.close()
    await rabbit.wait_for_count("outbox", 3)
    broker, again = await open_broker(), Inbox()
    await broker.consume(again)
    messages = await again.wait(3)
    assert sorted(message.body for message in messages) == [b"0", b"2", b"4"]
    assert all(message.redelivered and message.delivery_count == 1 for message in messages)


async def test_that_the_broker_has_an_acknowledgement_can_be_asked(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    assert await broker.acknowledged()  # there were none
    for n in range(3):
        await rabbit.publish("outbox", b"%d" % n)
    await broker.consume(inbox)
    first, second, _ = await inbox.wait(3)
    broker.ack(first.tag)
    one = broker.acknowledged()
    broker.ack(second.tag)
    two = broker.acknowledged()
    assert await asyncio.gather(one, two) == [True, True]
    broker.fail(BrokerError("cut right behind"))
    await rabbit.wait_for_count("outbox", 1)


async def test_of_a_lost_connection_it_is_not_known_what_it_acknowledged(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"1")
    await broker.consume(inbox)
    (message,) = await inbox.wait(1)
    broker.ack(message.tag)
    asked = broker.acknowledged()
    broker.fail(BrokerError("cut"))
    assert await asked is False
    assert await broker.acknowledged() is False


async def test_requeue_gives_a_message_back(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"again")
    await rabbit.publish("outbox", b"once")
    await broker.consume(inbox)
    first, second = await inbox.wait(2)
    broker.requeue(first.tag)
    broker.requeue(first.tag)
    broker.ack(first.tag)  # too late, and harmless
    broker.ack(second.tag)
    third = (await inbox.wait(3))[-1]
    assert (third.body, third.redelivered) == (b"again", True)
    assert third.delivery_count in {0, 1}  # since RabbitMQ 4.3 such a return is no delivery
    broker.ack(third.tag)
    await broker.close()
    assert await rabbit.count("outbox") == 0


async def test_reject_gives_a_message_back_and_counts_with_every_broker(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"again")
    await broker.consume(inbox)
    for count in range(3):
        message = (await inbox.wait(count + 1))[-1]
        assert (message.redelivered, message.delivery_count) == (count > 0, count)
        broker.reject(message.tag)
        broker.reject(message.tag)
        broker.ack(message.tag)  # too late, and harmless
    await inbox.wait(4)


@pytest.mark.parametrize("back", ["requeue", "reject"])
async def test_a_delivery_count_of_a_producer_is_never_read(open_broker, rabbit, back):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"forged", headers={"x-delivery-count": 50})
    await broker.consume(inbox)
    (message,) = await inbox.wait(1)
    assert message.delivery_count == 0
    getattr(broker, back)(message.tag)
    assert (await inbox.wait(2))[-1].delivery_count in {0, 1}


async def test_headers_as_large_as_a_frame_are_read_when_the_broker_has_added_its_own(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"full", headers={"h": "x" * (131_064 - 60)})
    await broker.consume(inbox)
    (first,) = await inbox.wait(1)
    broker.reject(first.tag)
    again = (await inbox.wait(2))[-1]
    assert (len(again.headers["h"]), again.delivery_count) == (131_064 - 60, 1)


async def test_after_the_end_of_consuming_open_messages_can_be_settled(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"1")
    await rabbit.publish("outbox", b"2")
    await broker.consume(inbox)
    one, two = await inbox.wait(2)
    await broker.stop_consuming()
    await rabbit.publish("outbox", b"3")
    broker.ack(one.tag)
    broker.requeue(two.tag)
    await rabbit.wait_for_count("outbox", 2)
    assert len(inbox.messages) == 2
    assert await broker.depth() == 2


async def test_after_close_settling_is_silent(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await rabbit.publish("outbox", b"1")
    await broker.consume(inbox)
    (message,) = await inbox.wait(1)
    await broker.close()
    broker.ack(message.tag)
    broker.requeue(message.tag)
    await broker.stop_consuming()
    assert await broker.depth() is None
    await rabbit.wait_for_count("outbox", 1)


async def test_a_missing_outbox_is_named(open_broker, rabbit):
    broker = await open_broker()
    await rabbit.delete("outbox")
    with pytest.raises(BrokerError, match=r"404 NOT_FOUND - no queue 'outbox'"):
        await broker.consume(Inbox())
    assert "outbox" in str(await broker.closed())


async def test_an_outbox_deleted_while_consuming_ends_the_broker(open_broker, rabbit):
    broker = await open_broker()
    await broker.consume(Inbox())
    await rabbit.delete("outbox")
    assert str(await broker.closed()).endswith("queue 'outbox' was deleted, or its leader was lost")


async def test_an_acknowledgement_that_comes_too_late_is_told_as_that(open_broker, rabbit):
    """RabbitMQ 4.3 ends the consumer for it, without a reason; earlier ones close the channel and say why."""
    async with short_consumer_timeout(rabbit):
        broker, inbox = await open_broker(), Inbox()
        await rabbit.publish("outbox", b"late")
        await broker.consume(inbox)
        await inbox.wait(1)
        told = str(await asyncio.wait_for(broker.closed(), 30))
    assert (
        "consumer_timeout (30 minutes by default)" in told or "delivery acknowledgement on channel 1 timed out" in told
    )


async def test_a_delay_queue_brings_a_message_back(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    await broker.consume(inbox)
    started = asyncio.get_running_loop().time()
    await rabbit.publish(delay_queue("outbox", "1s"), b"later", message_id="m", headers={"a": 1})
    (message,) = await inbox.wait(1)
    assert 0.9 < asyncio.get_running_loop().time() - started < 5
    assert (message.body, message.message_id, message.headers["a"]) == (b"later", "m", 1)
    (death,) = message.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == ("outbox.delay.1s", "expired", 1)


async def test_over_the_delivery_limit_a_job_goes_to_poison(open_broker, rabbit):
    broker, inbox = await open_broker(delivery_limit=2), Inbox()
    await rabbit.publish("outbox", b"bad", message_id="m")
    await broker.consume(inbox)
    for count in range(1, 4):
        broker.reject((await inbox.wait(count))[-1].tag)
    message = await rabbit.get("outbox.poison")
    assert (message.body, message.message_id) == (b"bad", "m")
    assert message.headers["x-death"][0]["reason"] == "delivery_limit"
    await until(lambda: len(inbox.messages) == 3)


async def test_odd_headers_neither_break_nor_stop_the_consumer(open_broker, rabbit):
    broker, inbox = await open_broker(), Inbox()
    deep: dict = {}
    for _ in range(40):
        deep = {"d": deep}
    await broker.consume(inbox)
    channel = await rabbit.channel()
    message = aio_pika.Message(b"odd", headers={"good": 1, "deep": deep, "raw": bytearray(b"\xff\xfe")}, message_id="x")
    await channel.default_exchange.publish(message, routing_key="outbox")
    (got,) = await inbox.wait(1)
    assert (got.message_id, got.headers["good"], got.headers["raw"]) == ("x", 1, b"\xff\xfe")
