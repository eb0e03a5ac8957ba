"""What a job that comes again finds: the result of its attempt instead of a second e-mail, or a marked doubt.

The broker's connection is lost at the worst moments, and worker processes share a journal. Processes that die are in
`tests/service/test_deaths.py`, jobs that nobody can deliver in `test_poison.py`.
"""

import asyncio
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from support.proxy import Proxy
from support.system import MIME, sent_back, until

from mailq.core.smtp.failure import Cause, Delayed
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError
from mailq.worker.attempts import RunningAttempt

FATES = [
    ("accept@a.test", "success", "accepted"),
    ("reject-550-message@a.test", "failures", "error"),
    ("reject-550@a.test", "failures", "error"),
]


@pytest.fixture
def lose_a_confirm(monkeypatch):
    """Let the broker take the next publications whole, and the worker never hear of it."""
    publish, armed = Publisher.publish, []

    async def lossy(self, publications):
        await publish(self, publications)
        if armed:
            armed.pop()
            raise BrokerError("the confirm was lost")

    monkeypatch.setattr(Publisher, "publish", lossy)
    return lambda: armed.append(True)


@pytest.fixture
def lose_an_ack(monkeypatch):
    """Let the connection be lost instead of the next acknowledgement sent."""
    ack, armed = Consumer.ack, []

    def lossy(self, tag):
        if armed:
            armed.pop()
            self._connection.fail(BrokerError("the acknowledgement was lost"))
        ack(self, tag)

    monkeypatch.setattr(Consumer, "ack", lossy)
    return lambda: armed.append(True)


def taken(receiver):
    return Counter(message.recipient for message in receiver.messages)


def last(document):
    return document["results"][-1]


def without_mark(result):
    return {name: value for name, value in result.items() if name != "redelivered"}


@pytest.mark.parametrize(("recipient", "queue", "kind"), FATES)
async def test_a_lost_confirm_costs_a_second_result_that_says_so(
    system, sink, lose_a_confirm, rabbit, recipient, queue, kind
):
    receiver = await sink()
    mail = await system(receiver)
    lose_a_confirm()
    await mail.send(recipient=recipient, id="1")

    first, second = [last(await mail.get(queue)) for _ in range(2)]

    assert "redelivered" not in first
    assert second["redelivered"] is True
    assert without_mark(second) == first
    assert first["result"] == kind
    assert len(mail.seen.attempts) == 2  # judged twice, attempted once:
    assert receiver.connections == 1
    assert len(receiver.messages) == (kind == "accepted")
    await mail.stop()
    assert await rabbit.count(queue) == await rabbit.count("outbox") == 0
    assert mail.seen.ends == ["returned", queue.removesuffix("s") if queue == "failures" else "success"]


@pytest.mark.parametrize(("recipient", "queue", "kind"), FATES)
async def test_a_connection_cut_before_anything_was_published_costs_nothing(
    system, sink, rabbit, recipient, queue, kind
):
    receiver = await sink(faults=["ehlo=slow-300"])
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        await mail.send(recipient=recipient, id="1")
        await until(lambda: receiver.connections == 1)
        proxy.stall()
        await until(lambda: len(mail.seen.attempts) == 1)
        proxy.cut()
        proxy.resume()

        result = last(await mail.get(queue))

        assert result["result"] == kind
        await mail.stop()
        assert len(receiver.messages) == (kind == "accepted")
        assert receiver.connections == 1
        assert await rabbit.count(queue) == await rabbit.count("outbox") == 0


@pytest.mark.parametrize(("recipient", "queue", "kind"), FATES)
async def test_another_process_publishes_the_result_of_one_that_lost_the_broker(
    system, sink, rabbit, recipient, queue, kind
):
    receiver = await sink(faults=["ehlo=slow-300"])
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        one = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        await one.send(recipient=recipient, id="1")
        await until(lambda: receiver.connections == 1)
        proxy.stall()
        await until(lambda: len(one.seen.attempts) == 1)
        other = await system(receiver)
        proxy.refuse()
        proxy.cut()

        result = last(await other.get(queue))

        assert result["result"] == kind
        assert result["redelivered"] is True
        await other.stop()
        proxy.resume()
        await one.stop()
        assert len(receiver.messages) == (kind == "accepted")
        assert receiver.connections == 1
        assert await rabbit.count(queue) == await rabbit.count("outbox") == 0
        assert other.seen.ends == [{"success": "success", "failures": "failure"}[queue]]


async def test_a_lost_confirm_of_a_retry_begins_no_second_chain_of_attempts(system, sink, lose_a_confirm, rabbit):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1], "greylist_retry": 0})
    lose_a_confirm()
    await mail.send(recipient="greylist@a.test", id="1")

    first, second = [last(await mail.get("retry")) for _ in range(2)]
    final = await mail.get("success")

    assert without_mark(second) == first
    assert [each["attempt"] for each in final["results"]] == [1, 2]
    await until(lambda: len(mail.seen.ends) == 4)  # the second copy has come back too
    assert sorted(mail.seen.ends) == ["repeated", "rescheduled", "returned", "success"]
    await mail.stop()
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == await rabbit.count("outbox") == 0


async def test_a_retried_job_of_which_there_are_two_copies_is_mailed_once(system, sink, rabbit):
    receiver = await sink()
    earlier = {"state": "rcptto", "result": "error", "time": "2026-01-01 00:00:00", "attempt": 1, "code": 450}
    document = {
        "recipient": "slow-300@a.test",
        "mime": MIME,
        "results": [earlier | {"status": "4", "description": "-"}],
    }
    mail = await system(receiver)
    other = await system(receiver)
    body = orjson.dumps(document)
    for _ in range(4):
        await rabbit.publish("outbox", body, message_id="one", headers=sent_back(rabbit, body, "one", mark="m"))

    assert last(await mail.get("success"))["attempt"] == 2
    await until(lambda: Counter(mail.seen.ends + other.seen.ends)["repeated"] == 3)

    await asyncio.gather(mail.stop(), other.stop())
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == await rabbit.count("outbox") == 0


async def test_of_two_copies_one_refused_and_one_taken_only_one_goes_on(system, sink, rabbit):
    receiver = await sink()
    earlier = {"state": "rcptto", "result": "error", "time": "2026-01-01 00:00:00", "attempt": 1, "code": 450}
    document = {
        "recipient": "greylist-1@a.test",
        "mime": MIME,
        "results": [earlier | {"status": "4", "description": "-"}],
    }
    delivery = {"retries": [1], "greylist_retry": 0}
    mail, other = await system(receiver, delivery=delivery), await system(receiver, delivery=delivery)
    body = orjson.dumps(document)
    for _ in range(2):
        await rabbit.publish("outbox", body, message_id="one", headers=sent_back(rabbit, body, "one", mark="m"))

    await rabbit.wait_for_count("success", 1, deadline=30)
    await until(lambda: Counter(mail.seen.ends + other.seen.ends)["repeated"] == 1, 30)

    await asyncio.gather(mail.stop(), other.stop())
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == 1
    assert await rabbit.count("outbox") == 0


async def test_equal_jobs_without_an_id_are_as_many_messages_whatever_they_meet(system, sink, rabbit):
    """They are postponed by a limit, retried after a refusal, and handed out anew by the broker."""
    receiver = await sink()
    mail = await system(
        receiver,
        delivery={"retries": [1], "greylist_retry": 0},
        limits=[{"message_rate": "2/s"}],
        worker={"drain_timeout": 5},
    )
    for _ in range(2):
        await mail.send(recipient="greylist-1@a.test")
        await mail.send(recipient="slow-300@a.test")
    await until(lambda: receiver.connections > 0)
    rabbit.server.ctl("close_all_connections", "--vhost", rabbit.vhost, "test")
    await rabbit.close()

    await rabbit.wait_for_count("success", 4, deadline=30)

    await mail.stop()
    assert taken(receiver) == {"greylist-1@a.test": 2, "slow-300@a.test": 2}
    assert await rabbit.count("outbox") == 0


@pytest.mark.parametrize("named", [{"id": "1"}, {}])
async def test_a_lost_acknowledgement_is_not_a_second_mail(system, sink, lose_an_ack, rabbit, named):
    receiver = await sink()
    mail = await system(receiver)
    lose_an_ack()
    await mail.send(recipient="accept@a.test", **named)

    await until(lambda: len(mail.seen.ends) == 2)

    assert mail.seen.ends == ["success", "success"]
    first, second = [last(await mail.get("success")) for _ in range(2)]
    assert (without_mark(second), second["redelivered"]) == (first, True)
    await mail.stop()
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == await rabbit.count("outbox") == 0


@pytest.mark.parametrize("named", [{"id": "1"}, {}])
async def test_a_retry_published_twice_is_one_job(system, sink, lose_an_ack, rabbit, named):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1], "greylist_retry": 0})
    lose_an_ack()
    await mail.send(recipient="greylist@a.test", **named)

    await until(lambda: len(mail.seen.ends) == 4, 30)  # the second copy has come back too

    assert sorted(mail.seen.ends) == ["repeated", "rescheduled", "rescheduled", "success"]
    final = await rabbit.get("success")
    assert final.message_id == (await rabbit.get("retry")).message_id
    await mail.stop()
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == await rabbit.count("outbox") == 0


@pytest.mark.parametrize("named", [{"id": "1"}, {}])
async def test_a_job_delayed_twice_is_one_job_and_not_sent_early(system, sink, lose_an_ack, rabbit, named):
    receiver = await sink()
    mail = await system(receiver)
    lose_an_ack()
    due = datetime.now(UTC) + timedelta(seconds=8)
    await mail.send(recipient="accept@a.test", delayed=f"{due:%Y-%m-%d %H:%M:%S}", **named)

    await rabbit.wait_for_count("success", 1, deadline=30)
    sent = datetime.now(UTC)
    await until(lambda: "repeated" in mail.seen.ends, 30)

    assert Counter(mail.seen.ends).keys() == {"delayed", "success", "repeated"}
    assert sent >= due.replace(microsecond=0)
    await mail.stop()
    assert len(receiver.messages) == 1
    assert await rabbit.count("success") == 1
    assert await rabbit.count("outbox") == 0


async def test_a_job_like_one_whose_acknowledgement_has_arrived_is_another_one(system, sink, rabbit, tmp_path):
    receiver = await sink()
    mail = await system(receiver)
    await mail.send(recipient="accept@a.test")
    await mail.get("success")
    journal = mail.worker._journal
    await until(lambda: not journal._open)

    rabbit.server.ctl("close_all_connections", "--vhost", rabbit.vhost, "test")
    await rabbit.close()
    body = orjson.dumps({"envelope": "a@a.test", "mime": MIME, "recipient": "accept@a.test"})
    await rabbit.publish_unnamed("outbox", body, sent_back(rabbit, body, requeued=True))

    assert "redelivered" not in last(await mail.get("success"))
    assert len(receiver.messages) == 2


async def test_a_connection_lost_after_the_dot_is_in_doubt_and_tried_again(system, sink):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1], "max_attempts": 2})
    await mail.send(recipient="drop-after-dot@a.test", id="1")

    doubt = last(await mail.get("retry"))

    assert (doubt["state"], doubt["result"], doubt["in_doubt"]) == ("message", "lost", True)
    assert "redelivered" not in doubt
    assert [each["in_doubt"] for each in (await mail.get("failures"))["results"]] == [True, True]
    assert len(receiver.messages) == 2


@pytest.mark.parametrize(("job", "configuration"), [("fail", "retry"), (None, "fail")])
async def test_a_connection_lost_after_the_dot_is_a_failure_for_those_who_want_no_second_mail(
    system, sink, job, configuration
):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1], "on_doubt": configuration})
    await mail.send(recipient="drop-after-dot@a.test", id="1", **({"on_doubt": job} if job else {}))

    failure = last(await mail.get("failures"))

    assert (failure["state"], failure["result"], failure["in_doubt"]) == ("message", "lost", True)
    assert len(receiver.messages) == 1


async def test_nothing_is_mailed_while_the_journal_cannot_be_written(system, sink, rabbit, tmp_path):
    receiver = await sink()
    directory = tmp_path / "journal"
    mail = await system(receiver)
    await mail.send(recipient="accept+before@a.test", id="before")
    await mail.get("success")

    shutil.rmtree(directory)
    directory.write_text("in the way")
    await until(lambda: mail.worker.not_ready is not None)
    assert "journal directory" in mail.worker.not_ready
    for number in range(3):
        await mail.send(recipient=f"accept+{number}@a.test", id=str(number))
    await until(lambda: mail.seen.broker_events.count("retrying") > 3)
    assert "journal directory" in mail.seen.unwritable
    assert await rabbit.count("outbox") == 3
    assert len(receiver.messages) == 1

    directory.unlink()
    await rabbit.wait_for_count("success", 3)
    assert mail.worker.not_ready is None
    assert mail.seen.unwritable is None
    assert taken(receiver) == Counter(["accept+before@a.test", *(f"accept+{number}@a.test" for number in range(3))])


async def test_a_drain_without_a_broker_waits_for_what_is_on_the_wire(system, sink, rabbit):
    """Its answer is in the journal, so the job is told and not sent again by whoever comes next."""
    receiver = await sink(faults=["message=slow-1000"])
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        mail = await system(receiver, rabbitmq={"url": rabbit.url_at(proxy.port), "reconnect_delay": 0.1})
        await mail.send(recipient="accept@a.test", id="1")
        await until(lambda: handed_over(mail))
        proxy.refuse()
        proxy.cut()
        await until(lambda: "retrying" in mail.seen.broker_events)
        assert receiver.messages == []
        await mail.stop()
        assert len(receiver.messages) == 1

    mail = await system(receiver)
    result = last(await mail.get("success"))
    assert (result["result"], result["redelivered"]) == ("accepted", True)
    assert "in_doubt" not in result
    assert len(receiver.messages) == 1


async def test_a_drain_gives_every_message_an_end(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, worker={"sessions": 3, "drain_timeout": 5})
    for number in range(60):
        await mail.send(recipient=f"slow-200+{number}@a.test", id=str(number))
    await until(lambda: len(receiver.messages) > 5)

    await mail.stop()

    ends = Counter(mail.seen.ends)
    assert mail.seen.came == sum(ends.values())
    assert ends.keys() == {"success", "returned"}
    assert ends["success"] == len(receiver.messages) == await rabbit.count("success")
    await rabbit.wait_for_count("outbox", 60 - ends["success"])


async def test_what_a_drain_cannot_wait_for_is_in_doubt_when_it_comes_again(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, worker={"drain_timeout": 0.5}, delivery={"retries": [600]})
    await mail.send(recipient="stall-message+wire@a.test", id="wire")
    await mail.send(recipient="stall-rcptto+none@a.test", id="none")
    await until(lambda: handed_over(mail) and receiver.connections == 2)
    begun = asyncio.get_running_loop().time()

    await mail.stop()

    assert asyncio.get_running_loop().time() - begun < 2  # one drain time for all
    assert mail.seen.ends == ["returned", "returned"]
    await rabbit.wait_for_count("outbox", 2)
    other = await system(receiver, worker={"drain_timeout": 0.5}, delivery={"retries": [600]})
    document = await other.get("retry")
    assert document["recipient"] == "stall-message+wire@a.test"
    assert (last(document)["in_doubt"], last(document)["redelivered"]) == (True, True)
    await until(lambda: receiver.connections == 3)  # the other one is simply begun again
    await other.stop()
    assert await rabbit.count("retry") == 0


async def test_a_message_refused_by_one_target_and_postponed_at_the_next_is_not_taken_for_under_way(
    system, sink, monkeypatch
):
    """Nobody has it: its hand-over is withdrawn from the journal, or it would be waited for for ever."""
    refusing, accepting = await sink(faults=["message=451"]), await sink()
    begin, asked = RunningAttempt.begin, []

    def postponing(self):
        asked.append(self)
        if len(asked) == 2:
            raise Delayed(1, Cause.BROKER, "as injected")
        begin(self)

    monkeypatch.setattr(RunningAttempt, "begin", postponing)
    targets = [f"127.0.0.1:{refusing.port}", f"127.0.0.1:{accepting.port}"]
    mail = await system(
        refusing, dns={"overrides": {"a.test": targets}}, patterns=[{"id": "next", "codes": [451], "fallback": True}]
    )
    await mail.send(recipient="accept@a.test", id="1")

    assert last(await mail.get("success"))["attempt"] == 1

    await mail.stop()
    assert mail.seen.ends == ["delayed", "success"]
    assert mail.seen.parks == 1
    assert len(accepting.messages) == 1


def handed_over(mail):
    """Tell whether a message was handed over whose answer is not there."""
    attempts = [each.running for each in mail.worker._handler.in_flight.values()]
    return any(attempt is not None and attempt.entry is not None for attempt in attempts)


async def test_what_was_sent_is_told_though_the_queue_that_was_asked_for_is_gone(system, sink, rabbit):
    receiver = await sink()
    await (await system(receiver)).stop()  # the topology
    await rabbit.declare("own")
    mail = await system(receiver, rabbitmq={"url": rabbit.url, "reconnect_delay": 0.1, "declare": False})
    await mail.send(recipient="slow-300@a.test", id="1", queues={"results": "own", "success": "own"})
    await until(lambda: receiver.connections > 0)
    await rabbit.delete("own")

    result = last(await mail.get("success"))

    assert (result["result"], result.get("redelivered")) == ("accepted", None)
    assert mail.seen.broker_events == ["connected", "rerouted"]
    assert taken(receiver) == {"slow-300@a.test": 1}
    assert await rabbit.count("failures") == 0
