"""What a valid job may do to the broker, and what not: steer it, loop, make queues, or cost others their connection."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from decimal import Decimal

import aio_pika
import orjson
import pytest
from support.system import MIME, until

from mailq.core.broker.application_headers import DROPPED, MOST_ROUNDS, ROUNDS

OWN = frozenset({"x-delivery-count", "x-death", ROUNDS})


def job(recipient="accept@a.test", **properties):
    return orjson.dumps({"recipient": recipient, "envelope": "a@a.test", "mime": MIME, **properties})


async def bind(rabbit, queue, exchange, key):
    await (await (await rabbit.channel()).get_queue(queue)).bind(exchange, key)


def addresses(receiver):
    return Counter(message.recipients[0].address for message in receiver.messages)


async def queue_names(rabbit):
    listed = await asyncio.to_thread(rabbit.server.ctl, "list_queues", "-p", rabbit.vhost, "name", "--silent")
    return {line.strip() for line in listed.splitlines() if line.strip() and line.strip() != "name"}


async def test_headers_that_steer_the_broker_end_with_the_producers_own_publication(system, sink, rabbit):
    """RabbitMQ takes the values of CC and BCC for routing keys; the rest of the headers comes back."""
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    for queue in ("audit", "success.forged"):
        await rabbit.declare(queue)
    mine = {"traceparent": "00-1-2-03", "number": Decimal("1.5"), "X-Delay": 100, "cc": ["outbox"]}
    between = {"correlation_id": "c-1", "reply_to": "replies", "type": "order", "app_id": "shop"}

    await rabbit.publish(  # greylisted: it goes a way through a delay queue
        "outbox", job("greylist@a.test"), message_id="cc1", headers=mine | {"CC": ["audit"]}, expiration=600, **between
    )
    await rabbit.publish("audit", job("greylist@b.test"), message_id="cc2", headers=mine | {"CC": ["outbox"]})
    await rabbit.publish("outbox", job("reject@a.test"), message_id="cc3", headers={"CC": ["success.forged"]})
    await rabbit.publish("outbox", job("accept@a.test"), message_id="cc4", headers={"BCC": ["outbox"]})

    told = {message.message_id: message for message in await rabbit.get_many("results", 4)}
    await until(lambda: sorted(mail.seen.ends) == ["failure", *["rescheduled"] * 2, *["success"] * 3])
    assert addresses(receiver) == {"greylist@a.test": 1, "greylist@b.test": 1, "accept@a.test": 1}
    result = told["cc1"]
    assert {name: value for name, value in result.headers.items() if name not in OWN} == {
        "traceparent": "00-1-2-03",
        "number": Decimal("1.5"),
    }
    assert {name: getattr(result, name) for name in between} == between
    assert (result.expiration, result.content_type) == (None, "application/json")
    assert [await rabbit.count(queue) for queue in ("success", "failures", "retry")] == [3, 1, 2]
    # What producers put there, and nothing of mailq's.
    for message in [*await rabbit.get_many("audit", 2), await rabbit.get("success.forged")]:
        assert "results" not in orjson.loads(message.body)
    assert [await rabbit.count(queue) for queue in ("audit", "success.forged")] == [0, 0]


async def test_one_job_that_cannot_be_passed_on_among_hundreds(system, sink, rabbit):
    """Each goes without the headers that AMQP or RabbitMQ would refuse; nobody loses a connection for it."""
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    lowest = Decimal(-(1 << 31))  # no other client can write it, so the octets are made by hand
    strange = {
        "large": {"text": "x" * 100_000},
        "larger": {"a": "y" * 80_000, "b": "z" * 40_000, "small": 1},
        "many": {f"name-{number}": "v" * 20 for number in range(3_000)},
    }
    for number in range(300):
        await rabbit.publish("outbox", job(f"accept+{number}@a.test"), message_id=str(number))
        if number % 100 == 50:
            await rabbit.publish_unnamed("outbox", job(f"greylist+{number}@a.test"), {"n": lowest, "mine": 1})
    for name, headers in strange.items():
        # A little more than fits beside what mailq adds: the producer's own client may go up to the frame.
        await rabbit.publish("outbox", job(f"greylist+{name}@a.test"), message_id=name, headers=headers | {"mine": 1})

    results = await rabbit.get_many("success", 306, deadline=60)

    assert Counter(orjson.loads(each.body)["recipient"] for each in results) == addresses(receiver)
    assert set(addresses(receiver).values()) == {1}
    assert mail.seen.broker_events == ["connected"]
    assert await rabbit.count("outbox.poison") == 0
    assert {each.headers["n"] for each in results if "n" in each.headers} == {lowest}
    for name, headers in strange.items():
        (result,) = [each for each in results if each.message_id == name]
        assert {each: value for each, value in result.headers.items() if each not in OWN} == headers | {"mine": 1}


async def test_headers_that_do_not_fit_are_left_out_and_named(system, sink, rabbit):
    """A frame of the broker's is smaller than what the producer was allowed: the largest headers stay behind."""
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    headers = {"a": "x" * 60_000, "large": "y" * 70_500, "traceparent": "t"}

    await rabbit.publish("outbox", job("greylist@a.test"), message_id="1", headers=headers)

    result = await rabbit.get("success")
    kept = {name: value for name, value in result.headers.items() if name not in OWN}
    assert kept == {"a": headers["a"], "traceparent": "t", DROPPED: "large"}
    assert set(mail.seen.broker_events) == {"connected", "dropped"}
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("keepmime", [True, False])
async def test_results_that_are_bound_back_to_the_outbox_end_in_poison(system, sink, rabbit, keepmime):
    """A result with its message is a valid job again, and without one it is refused: both come round."""
    receiver = await sink()
    mail = await system(receiver)
    for key in ("success.#", "failure.#"):
        await bind(rabbit, "outbox", "mailq", key)

    await rabbit.publish("outbox", job(keepmime=keepmime), message_id="1", headers={"mine": 1})

    put_aside = await rabbit.get("outbox.poison")
    assert put_aside.headers["x-mailq-reason"].startswith("a result came back as a job (rounds: 4): look for a binding")
    assert "from exchange 'mailq' or a result queue to 'outbox'" in put_aside.headers["x-mailq-reason"]
    await until(lambda: len(mail.seen.ends) == MOST_ROUNDS + 2)
    assert len(receiver.messages) == (MOST_ROUNDS + 1 if keepmime else 1)
    assert await rabbit.count("results") == MOST_ROUNDS + 1
    assert (await rabbit.get("results")).headers["mine"] == 1
    assert await rabbit.count("outbox") == 0


async def test_copies_of_retries_that_are_bound_back_to_the_outbox_are_no_jobs(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    await bind(rabbit, "outbox", "mailq", "retry.#")

    await mail.send(recipient="greylist@a.test", retries=[1], keepmime=True, id="1")

    assert (await rabbit.get("outbox.poison")).headers[ROUNDS] == MOST_ROUNDS + 1
    assert len((await mail.get("success"))["results"]) == 2
    await until(lambda: sorted(mail.seen.ends) == ["poisoned", "rescheduled", "success"])
    assert len(receiver.messages) == 1


async def test_a_job_names_no_queue_of_mailqs_own_and_makes_none(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    before = await queue_names(rabbit)
    own = ["outbox", "outbox.delay.1s", "outbox.poison", "webhooks", "webhooks.dead", "amq.rabbitmq.trace", "success"]
    later = "2030-01-01 00:00:00"

    for queue in own:
        everywhere = dict.fromkeys(("results", "success", "failure", "retry"), queue)
        await rabbit.publish("outbox", job(queues=everywhere, keepmime=True, delayed=later))
        await rabbit.publish("outbox", job(queues={"failure": queue}, keepmime=True, maxattempts=1))
    for number in range(20):
        await rabbit.publish("outbox", job(queues={"results": f"new-{number}", "retry": f"new-{number}-retry"}))

    for message in await rabbit.get_many("failures", 2 * len(own) + 20):
        result = orjson.loads(message.body)["results"][-1]
        assert (result["state"], result["result"]) == ("process", "invalid")
        assert result["pointer"] in ("/queues/results", "/queues/failure")
        assert "name another one" in result["description"] or "does not exist" in result["description"]
    assert receiver.messages == []
    assert await queue_names(rabbit) == before
    assert mail.seen.broker_events == ["connected"]


@asynccontextmanager
async def patient(taken):
    """A receiver that keeps messages for recipients that begin with `wait` until the event given is set."""
    gate = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"220 mx.test\r\n")
        recipient = b""
        while line := await reader.readline():
            recipient = line if line.startswith(b"RCPT") else recipient
            if line.startswith(b"DATA"):
                writer.write(b"354 go\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                taken[recipient] += 1
                if b"<wait" in recipient:
                    await gate.wait()
            writer.write(b"250 ok\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    yield server.sockets[0].getsockname()[1], gate
    server.close()


async def test_a_reply_queue_that_is_gone_when_the_answer_comes(system, rabbit):
    """Forty programs asked and went away: each result is on the exchange, and others notice nothing."""
    taken = Counter()
    async with patient(taken) as (port, gate):
        at_once = {"sessions": 100, "prefetch": 200, "drain_timeout": 5}
        mail = await system(port, worker=at_once, limits=[{"connections": 100}])
        connection = await aio_pika.connect(rabbit.url)
        channel = await connection.channel()
        for number in range(40):
            kind = {"exclusive": True} if number % 2 else {"auto_delete": True}
            await channel.declare_queue(f"reply-{number}", **kind)
            asked = {"results": f"reply-{number}", "success": None}
            await rabbit.publish("outbox", job(f"wait+{number}@a.test", queues=asked), message_id=str(number))
        await until(lambda: len(taken) == 40)
        for number in range(0, 40, 2):
            await channel.queue_delete(f"reply-{number}")
        await connection.close()  # the exclusive ones go with it
        for number in range(40, 60):
            await rabbit.publish("outbox", job(f"b+{number}@a.test"), message_id=str(number))
        others = await rabbit.get_many("results", 20)
        gate.set()
        told = await rabbit.get_many("results", 40)

        assert sorted(int(each.message_id) for each in told) == list(range(40))
        assert len(others) == 20
        assert set(taken.values()) == {1}
        assert set(mail.seen.broker_events) == {"connected", "rerouted"}
        assert not any(name.startswith("reply-") for name in await queue_names(rabbit))
        await until(lambda: mail.seen.ends == ["success"] * 60)
        await mail.stop()


async def test_an_exclusive_queue_gets_the_answer(system, sink, rabbit):
    await system(await sink())
    connection = await aio_pika.connect(rabbit.url)
    queue = await (await connection.channel()).declare_queue(exclusive=True)
    assert queue.name.startswith("amq.gen-")

    await rabbit.publish("outbox", job(queues={"results": queue.name, "success": None}))

    async with asyncio.timeout(20):
        async with queue.iterator() as answers:
            answer = await anext(answers)
    assert orjson.loads(answer.body)["results"][0]["result"] == "accepted"
    await connection.close()
