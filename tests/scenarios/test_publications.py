"""A job that is published twice is two jobs, whatever its id; and nobody but mailq says that it was here before."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from support.rabbitmq import Rabbit
from support.system import MIME, sent_back, until

from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import HEADER
from mailq.edges.amqp.address import outbox_of

SOON = {"retries": [1], "greylist_retry": 0}
LARGE = MIME + "x" * 20_000 + "\n"
EARLIER = {"state": "rcptto", "result": "error", "time": "2026-01-01 00:00:00", "attempt": 1, "code": 450}
RETRIED = {"results": [EARLIER | {"status": "4.7.1", "description": "-"}]}


def job(recipient, **document):
    return orjson.dumps({"recipient": recipient, "envelope": "a@a.test", "mime": MIME, **document})


def last(document):
    return document["results"][-1]


@pytest.fixture
async def other(rabbit, rabbit_virtual_hosts):
    """Give another virtual host of the same broker."""
    second = Rabbit(rabbit.server, rabbit_virtual_hosts.take())
    yield second
    await second.close()


async def test_every_publication_of_an_id_has_attempts_of_its_own_and_one_final_result(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, delivery=SOON)
    published = [
        *(("1", job("accept+equal@a.test")),) * 2,
        *(("2", job("greylist-2+equal@a.test")),) * 2,
        *(("3", job("greylist@a.test", envelope=f"{sender}@a.test")) for sender in "xy"),
        *(("4", job("greylist-2+large@a.test", mime=LARGE[:9000] + middle + LARGE[9000:])) for middle in "xy"),
        *(("5", job("reject-550@a.test")),) * 2,
    ]
    for name, body in published:
        await rabbit.publish("outbox", body, message_id=name)
    await rabbit.wait_for_count("success", 8, deadline=30)
    await rabbit.wait_for_count("failures", 2)
    later = [("1", job("accept+equal@a.test")), ("3", job("greylist@a.test", envelope="z@a.test"))]
    for name, body in later:
        await rabbit.publish("outbox", body, message_id=name)
    await rabbit.wait_for_count("success", 10, deadline=30)

    await mail.stop()
    assert Counter(mail.seen.ends) == {"success": 10, "failure": 2, "rescheduled": 7}
    finals = [(await rabbit.get("results")).message_id for _ in range(12)]
    assert Counter(finals) == Counter(name for name, _ in published + later)
    assert len(receiver.messages) == 10
    assert sum(len(message.content) > 20_000 for message in receiver.messages) == 2


async def test_virtual_hosts_share_a_journal_and_no_job(system, sink, rabbit, other):
    receiver = await sink()
    workers = [await system(receiver, delivery=SOON, rabbitmq={"url": each.url}) for each in (rabbit, other)]
    again = job("accept+again@a.test", **RETRIED)
    for each in (rabbit, other):
        await each.publish("outbox", job("greylist-2@a.test"), message_id="1")
        await each.publish("outbox", again, message_id="2", headers=sent_back(each, again, "2", mark="m"))

    for each in (rabbit, other):
        await each.wait_for_count("success", 2, deadline=30)

    for each in workers:
        await each.stop()
        assert Counter(each.seen.ends) == {"success": 2, "rescheduled": 1}
    assert len(receiver.messages) == 4


async def test_a_header_that_mailq_did_not_write_for_this_job_is_none(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [600], "greylist_retry": 0})
    first, *copies = [job("accept@a.test", **RETRIED, tags=[str(number)]) for number in range(3)]
    valid = sent_back(rabbit, first, "1", mark="m", returned=True)
    for body in (first, *copies):
        await rabbit.publish("outbox", body, message_id="1", headers=valid)
    forged = {HEADER: "m;returned;00", "x-mailq-returned": 1, "x-mailq-requeued": 1, "mine": 1}
    await rabbit.publish("outbox", job("greylist@a.test"), message_id="1", headers=forged)

    await rabbit.wait_for_count("success", 3)
    back = await rabbit.get("outbox.delay.10m")

    assert back.headers.keys() - {"x-delivery-count"} == {"mine", HEADER}
    found = outbox_of(rabbit.config()).read(Consumed(back.body, 1, message_id="1", headers=back.headers))
    assert found.mark not in ("", "m")
    assert not found.returned
    for queue in ("success", "success", "success", "retry"):
        told = (await rabbit.get(queue)).headers
        assert not {HEADER, "x-mailq-returned", "x-mailq-requeued"} & told.keys()
    await mail.stop()
    assert len(receiver.messages) == 3
    assert Counter(mail.seen.ends) == {"success": 3, "rescheduled": 1}


async def test_where_ids_are_unique_the_second_publication_is_told_and_not_sent(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, delivery=SOON | {"unique_for": 3600})
    soon = f"{datetime.now(UTC) + timedelta(seconds=3):%Y-%m-%d %H:%M:%S}"
    for body in (job("greylist@a.test"), job("greylist@a.test"), job("accept@a.test", id="other")):
        await rabbit.publish("outbox", body, message_id="1")
    for _ in range(2):
        await rabbit.publish("outbox", job("accept+delayed@a.test", delayed=soon), message_id="2")
        await rabbit.publish_unnamed("outbox", job("accept+unnamed@a.test"))
        await rabbit.publish_unnamed("outbox", job("accept+id@a.test", id="3"))

    told = [await mail.get("failures") for _ in range(4)]
    await rabbit.wait_for_count("success", 5, deadline=30)
    await mail.stop()

    assert Counter(last(each)["duplicate_of"] for each in told) == {"1": 2, "2": 1, "3": 1}
    result = last(told[0])
    assert (result["state"], result["result"], result["code"], result["status"]) == ("process", "error", 554, "5.3.0")
    assert result["duplicate"] is True
    assert result["first_consumed"] <= result["time"]
    assert Counter(mail.seen.ends)["failure"] == 4
    sent = Counter(message.recipient for message in receiver.messages)
    assert sent == {
        "greylist@a.test": 1,
        "accept+delayed@a.test": 1,
        "accept+unnamed@a.test": 2,
        "accept+id@a.test": 1,
    }

    anew = await system(receiver, delivery=SOON | {"unique_for": 3600})  # over restarts
    await rabbit.publish("outbox", job("accept@a.test"), message_id="1")
    assert last(await anew.get("failures"))["duplicate"] is True


async def test_the_first_publication_is_not_its_own_duplicate_when_it_comes_again(system, sink, rabbit):
    receiver = await sink(faults=["ehlo=slow-1000"])
    mail = await system(receiver, delivery=SOON | {"unique_for": 3600})
    await rabbit.publish("outbox", job("accept@a.test"), message_id="1")
    await until(lambda: receiver.connections == 1)
    rabbit.server.ctl("close_all_connections", "--vhost", rabbit.vhost, "test")
    await rabbit.close()

    assert last(await mail.get("success"))["result"] == "accepted"
    await mail.stop()
    assert await rabbit.count("failures") == 0
    assert len(receiver.messages) == 1
