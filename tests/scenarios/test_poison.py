"""Jobs that nobody can deliver: they cost their own attempts, are put aside with all that is known, and harm no other.

Jobs that end the whole process are in `tests/service/test_deaths.py`.
"""

import gzip
from collections import Counter
from random import Random

import orjson
import pytest
from support.broker import Remembering
from support.rabbitmq import max_message_size
from support.system import MIME, until

from mailq.core.broker import publications
from mailq.core.broker.application_headers import DROPPED
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.content.mime import extract
from mailq.delivery.stages import process
from mailq.edges.amqp.address import outbox_of
from mailq.edges.amqp.broker import Broker
from mailq.edges.amqp.poison_browser import revived


class InjectedError(Exception):
    """A bug of mailq, for a test."""


@pytest.fixture
def bug(monkeypatch):
    """Make the attempt of every job for a recipient that begins with `bug` raise, until the returned switch is off."""
    sources, switch = process.sources, {"on": True}

    def faulty(job, *rest):
        if switch["on"] and job.recipient.local.startswith("bug"):
            raise InjectedError("as injected\r\n")
        return sources(job, *rest)

    monkeypatch.setattr("mailq.delivery.attempt.process.sources", faulty)
    return switch


async def bodies(rabbit, queue, count):
    return [message.body for message in await rabbit.get_many(queue, count)]


def bugs_of(mail):
    """Return the bugs that were seen, and forget them: they are expected."""
    seen, mail.seen.bugs = mail.seen.bugs, []
    return seen


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_a_job_whose_attempts_meet_a_bug_is_put_aside_after_three(system, sink, rabbit, bug, encoding):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    body = orjson.dumps({"recipient": "bug@a.test", "mime": MIME, "own": [1]})
    if encoding:
        body = gzip.compress(body)
    await rabbit.publish("outbox", body, message_id="one", headers={"mine": "x"}, content_encoding=encoding)
    for number in range(5):
        await mail.send(recipient=f"accept+{number}@a.test")

    poison = await rabbit.get("outbox.poison")

    assert poison.headers["x-mailq-reason"] == "3 attempts met a bug of mailq"
    assert poison.headers["x-mailq-state"] == "process"
    assert poison.headers["x-mailq-exception"].startswith("InjectedError: as injected")
    assert poison.headers["x-mailq-delivery-count"] == 0
    assert (poison.headers["mine"], poison.message_id, poison.content_encoding) == ("x", "one", encoding)
    document = orjson.loads(gzip.decompress(poison.body) if encoding else poison.body)
    assert (document["mime"], document["own"]) == (MIME, [1])
    assert [each["attempt"] for each in document["results"]] == [1, 2, 3]
    for told in (document["results"][:1], document["results"][:2]):
        assert (await mail.get("retry"))["results"] == told
    assert all(each["bug"].startswith("InjectedError: as injected") for each in document["results"])
    assert {(each["state"], each["result"], each["code"]) for each in document["results"]} == {
        ("process", "error", 451)
    }
    await rabbit.wait_for_count("success", 5)
    await mail.stop()
    assert [type(each) for each in bugs_of(mail)] == [InjectedError] * 3
    assert mail.seen.poison == ["3 attempts met a bug of mailq"]
    ends = Counter(mail.seen.ends)
    assert (ends["rescheduled"], ends["poisoned"], ends["success"]) == (2, 1, 5)
    assert await rabbit.count("outbox") == await rabbit.count("failures") == 0


async def test_a_job_that_was_put_aside_is_delivered_when_requeued_after_the_repair(system, sink, rabbit, bug):
    receiver = await sink()
    mail = await system(receiver, worker={"poison_after": 1})
    await mail.send(recipient="bug@a.test", id="one")
    poison = await rabbit.get("outbox.poison")
    assert len(bugs_of(mail)) == 1

    bug["on"] = False
    await rabbit.publish("outbox", poison.body, message_id=poison.message_id)

    assert (await mail.get("success"))["results"][-1]["attempt"] == 2
    assert len(receiver.messages) == 1


async def test_two_equal_jobs_without_an_id_are_two_messages_after_the_poison_queue_too(system, sink, rabbit, bug):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    body = orjson.dumps({"recipient": "bug@a.test", "mime": MIME})
    broker = await Broker.open(rabbit.config(), 1, Remembering())
    await broker.publish([Publication("", "outbox", body)] * 2)
    await rabbit.wait_for_count("outbox.poison", 2)
    assert len(bugs_of(mail)) == 6

    bug["on"] = False
    for poison in await rabbit.get_many("outbox.poison", 2):
        message = Consumed(poison.body, 1, message_id=poison.message_id, headers=poison.headers)
        await broker.publish([revived(message, outbox_of(rabbit.config()))])
    await rabbit.wait_for_count("success", 2)
    await broker.close()

    assert not [end for end in mail.seen.ends if end == "repeated"]
    assert len(receiver.messages) == 2


async def test_a_delivery_count_of_a_producer_makes_nobody_a_suspect(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    slow = orjson.dumps({"recipient": "slow-2000@a.test", "mime": MIME, "id": "slow"})
    await rabbit.publish("outbox", slow, headers={"x-delivery-count": 50})
    await until(lambda: receiver.connections == 1)
    await mail.send(recipient="accept@a.test", id="fast")

    assert (await mail.get("success"))["id"] == "fast"  # a trial would have been alone for 16 s
    assert (await mail.get("success"))["id"] == "slow"


async def test_headers_as_large_as_a_frame_hold_nobody_up(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    full = {"traceparent": "00-1", "long": "x" * 130_900}
    await rabbit.publish("outbox", b"no json", headers=full)
    await rabbit.publish("outbox", orjson.dumps({"recipient": "greylist@a.test", "mime": MIME}), headers=full)

    poison = await rabbit.get("outbox.poison")
    assert (poison.headers["traceparent"], "long" in poison.headers) == ("00-1", False)
    told = await rabbit.get("success")
    assert (told.headers["traceparent"], told.headers[DROPPED]) == ("00-1", "long")
    await mail.stop()
    assert set(mail.seen.broker_events) == {"connected", "dropped"}


def job_of(octets, **properties):
    """Return a job of that size."""
    job = {"recipient": "tempfail@a.test", "mime": MIME, **properties}
    filled = {**job, "mime": MIME + "x" * (octets - len(orjson.dumps(job)))}
    assert len(orjson.dumps(filled)) == octets
    return orjson.dumps(filled)


async def test_a_job_that_outgrows_the_broker_goes_on_zipped_and_costs_the_others_one_delivery(system, sink, rabbit):
    receiver = await sink()
    async with max_message_size(rabbit, 50_000):
        mail = await system(receiver, delivery={"retries": [1]}, worker={"poison_after": 2, "drain_timeout": 5})
        for number in range(5):
            await mail.send(recipient=f"slow-3000+{number}@a.test", id=str(number))
        await rabbit.publish("outbox", job_of(49_900, id="large", maxattempts=3))
        await rabbit.publish("outbox", job_of(49_900, id="kept", recipient="accept@a.test", keepmime=True))
        failure = await mail.get("failures")
        await rabbit.wait_for_count("success", 6)
        told = {each["id"]: each for each in map(orjson.loads, await bodies(rabbit, "success", 6))}
        await mail.stop()
    assert (failure["id"], [each["attempt"] for each in failure["results"]]) == ("large", [1, 2, 3])
    assert "mime" not in told["kept"]
    assert told["kept"]["keepmime"] is True
    assert await rabbit.count("outbox.poison") == 0
    assert mail.seen.broker_events.count("lost") == 1
    assert len(receiver.messages) == 6


async def test_a_job_that_cannot_be_zipped_is_put_aside_as_it_was(system, sink, rabbit):
    receiver = await sink()
    body = gzip.compress(job_of(60_000, own=Random(1).randbytes(20_000).hex()), 9)
    async with max_message_size(rabbit, len(body)):
        mail = await system(receiver, delivery={"retries": [1]})
        await rabbit.publish("outbox", body, message_id="one", content_encoding="gzip")
        poison = await rabbit.get("outbox.poison")
        assert poison.body == body
        assert f"its max_message_size is {len(body)}" in str(poison.headers)
        await mail.stop()
        bugs_of(mail)
    assert mail.seen.broker_events.count("lost") == 1

    mail = await system(receiver, delivery={"retries": [600]})
    message = Consumed(poison.body, 1, message_id="one", content_encoding="gzip", headers=poison.headers)
    headers = revived(message, outbox_of(rabbit.config())).headers
    await rabbit.publish("outbox", poison.body, message_id="one", content_encoding="gzip", headers=headers)
    retry = await mail.get("retry")  # what its first attempt came to; there was no second one
    assert [(each["attempt"], each["redelivered"]) for each in retry["results"]] == [(1, True)]
    assert receiver.connections == 1


async def test_a_bug_outside_the_attempt_gives_the_job_back_and_in_the_end_puts_it_aside(
    system, sink, rabbit, monkeypatch
):
    settle = publications.settle

    def faulty(job, *rest):
        if job.recipient.local.startswith("bug"):
            raise InjectedError("while settling")
        return settle(job, *rest)

    monkeypatch.setattr(publications, "settle", faulty)
    receiver = await sink()
    mail = await system(receiver)
    await mail.send(recipient="bug@a.test", id="one")
    await mail.send(recipient="accept@a.test", id="two")

    poison = await rabbit.get("outbox.poison")

    assert poison.headers["x-mailq-reason"] == "mailq met a bug while it handled the message"
    assert poison.headers["x-mailq-exception"] == "InjectedError: while settling"
    assert poison.headers["x-mailq-delivery-count"] == 2
    await mail.get("success")
    await mail.stop()
    assert len(bugs_of(mail)) == 3
    assert Counter(mail.seen.ends) == {"returned": 2, "poisoned": 1, "success": 1}
    assert Counter(each.recipient for each in receiver.messages) == {"bug@a.test": 1, "accept@a.test": 1}


async def test_a_job_that_was_handed_out_often_is_tried_alone_and_delivered(system, sink, rabbit, monkeypatch):
    """A connection lost again and again makes every job look suspect; all are innocent."""
    stumbles = Counter()

    def stumbling(text):
        stumbles["all"] += 1
        return extract(text)

    receiver = await sink()
    mail = await system(receiver, worker={"poison_after": 1, "drain_timeout": 5})
    channel = await rabbit.channel()
    monkeypatch.setattr("mailq.delivery.attempt.extract", stumbling)
    await mail.stop()
    for number in range(20):
        await mail.send(recipient=f"accept+{number}@a.test", id=str(number))
    for _ in range(2):
        held = [await (await channel.get_queue("outbox", ensure=False)).get() for _ in range(20)]
        for message in held:
            await message.reject(requeue=True)
    mail = await system(receiver, worker={"poison_after": 1, "drain_timeout": 5})

    await rabbit.wait_for_count("success", 20)

    assert stumbles["all"] == len(receiver.messages) == 20
    assert await rabbit.count("outbox.poison") == 0
    await until(lambda: Counter(mail.seen.ends) == {"success": 20})
