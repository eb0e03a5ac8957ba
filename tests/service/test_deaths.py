"""Worker processes that die at the worst moment, alone and by a job that kills whoever touches it."""

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.proxy import Proxy
from support.system import MIME, until

from mailq.core.states import State
from mailq.sink.conversation import Conversation


def owner(pids, port):
    """Return which of the processes has the connection from a local port."""
    for pid in pids:
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]]
        inodes = {row[9] for row in rows if int(row[1].partition(":")[2], 16) == port}
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                if str(descriptor.readlink()) in {f"socket:[{inode}]" for inode in inodes}:
                    return pid
    raise AssertionError(f"nobody has a connection from port {port}")


@pytest.fixture
def kill_at(monkeypatch):
    """Kill the worker that sends a message for `deadly…`, when the sink is about to answer in `state`."""
    proceed = Conversation._proceed
    aim = {}
    deaths = []

    async def deadly(self, state, asked=None):
        recipients = [each.address for each in self._recipients]
        if aim and state is aim["state"] and any(each.startswith("deadly") for each in recipients):
            _, port = self._channel._transport.get_extra_info("peername")
            pid = owner(aim["run"].living(), port)
            os.kill(pid, signal.SIGKILL)
            deaths.append(pid)
            if len(deaths) == aim["times"]:
                aim.clear()
        return await proceed(self, state, asked)

    monkeypatch.setattr(Conversation, "_proceed", deadly)

    def begin(run, state, times=0):
        aim.update(run=run, state=state, times=times)
        return deaths

    return begin


async def sums(run):
    page = (await run.page("/metrics", want=200))[1]
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def balanced(page):
    """Tell whether what was consumed by all processes has ended or is in flight."""
    ended = sum(value for (name, *_), value in page.items() if name == "mailq_ended_total")
    return page["mailq_consumed_total",] == ended + page["mailq_in_flight",]


async def final(rabbit, queue):
    (message,) = await rabbit.get_many(queue, 1)
    return orjson.loads(message.body)


async def documents(rabbit, queue):
    """Return all that is in a queue."""
    return [orjson.loads(each.body) for each in await rabbit.get_many(queue, await rabbit.count(queue))]


async def test_a_process_killed_between_dot_and_answer_leaves_a_doubt_and_the_job_is_tried_again(
    start, sink, rabbit, kill_at
):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, delivery={"retries": [1]})
    deaths = kill_at(run, State.MESSAGE, times=1)
    await rabbit.publish("outbox", orjson.dumps({"recipient": "deadly@a.test", "mime": MIME, "id": "1"}))

    document = await final(rabbit, "success")

    doubt, accepted = document["results"]
    assert (doubt["state"], doubt["result"]) == ("message", "lost")
    assert (doubt["in_doubt"], doubt["redelivered"]) == (True, True)
    assert accepted["result"] == "accepted"
    assert not accepted.keys() & {"in_doubt", "redelivered"}
    assert (await final(rabbit, "retry"))["results"] == [doubt]
    assert len(deaths) == 1
    assert len(receiver.messages) == 2  # it had arrived, and that could not be known
    assert await run.end() == 0
    assert await rabbit.count("outbox") == 0


@pytest.mark.parametrize(("job", "configuration"), [("fail", "retry"), (None, "fail")])
async def test_a_doubt_is_a_failure_for_those_who_want_no_second_mail(start, sink, rabbit, kill_at, job, configuration):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, delivery={"on_doubt": configuration})
    kill_at(run, State.MESSAGE, times=1)
    document = {"recipient": "deadly@a.test", "mime": MIME, "id": "1"} | ({"on_doubt": job} if job else {})
    await rabbit.publish("outbox", orjson.dumps(document))

    (doubt,) = (await final(rabbit, "failures"))["results"]

    assert (doubt["in_doubt"], doubt["redelivered"]) == (True, True)
    assert len(receiver.messages) == 1


async def test_an_id_is_known_beyond_a_process_and_the_job_that_it_had_is_no_duplicate(start, sink, rabbit, kill_at):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, delivery={"retries": [1], "unique_for": 3600})
    deaths = kill_at(run, State.DATA, times=1)
    body = orjson.dumps({"recipient": "deadly@a.test", "mime": MIME})
    await rabbit.publish("outbox", body, message_id="1")
    assert (await final(rabbit, "success"))["results"][-1]["result"] == "accepted"
    await rabbit.publish("outbox", body, message_id="1")

    assert (await final(rabbit, "failures"))["results"][-1]["duplicate"] is True
    assert len(deaths) == 1
    assert len(receiver.messages) == 1
    assert await run.end() == 0


async def test_a_process_that_stood_still_sends_nothing_that_another_has_sent(start, sink, rabbit, monkeypatch):
    """It wakes with the answer to DATA at hand, and the end of its connections to the broker behind that."""
    receiver = await sink()
    proceed, stopped = Conversation._proceed, []

    async def stop(self, state, asked=None):
        if state is State.DATA and not stopped:
            _, port = self._channel._transport.get_extra_info("peername")
            stopped.append(owner({run.process.pid, *run.living()}, port))
            os.kill(stopped[0], signal.SIGSTOP)
        return await proceed(self, state, asked)

    monkeypatch.setattr(Conversation, "_proceed", stop)
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        far = {"url": rabbit.url_at(proxy.port), "heartbeat": 4, "reconnect_delay": 0.1}
        run = await start(1, receiver=receiver.port, rabbitmq=far)
        await rabbit.publish("outbox", orjson.dumps({"recipient": "b@a.test", "mime": MIME}), message_id="1")
        await until(lambda: stopped)
        began = time.monotonic()
        try:
            other = await start(1, receiver=receiver.port)
            proxy.cut()
            assert (await final(rabbit, "success"))["results"][-1]["attempt"] == 1
            await until(lambda: time.monotonic() - began > 2.5)  # the least standstill that counts, and a little more
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        accepted = proxy.accepted
        await until(lambda: proxy.accepted >= accepted + 3)
        await run.page("/readyz", want=200)
        assert await run.end() == 0
    assert await other.end() == 0
    assert len(receiver.messages) == 1
    assert await rabbit.count("outbox") == await rabbit.count("success") == await rabbit.count("retry") == 0


async def test_a_job_that_kills_processes_is_put_aside_and_innocents_are_not_harmed(
    start, sink, publish, rabbit, kill_at
):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"prefetch": 100, "sessions": 5})
    deaths = kill_at(run, State.DATA)
    recipients = await publish(100, local="slow-20")
    await rabbit.publish("outbox", orjson.dumps({"recipient": "deadly@a.test", "mime": MIME, "id": "deadly"}))
    recipients += await publish(100, local="slow-20", first=100)

    poison = await rabbit.get("outbox.poison", deadline=60)

    assert orjson.loads(poison.body)["recipient"] == "deadly@a.test"
    assert "died while they handled it alone" in poison.headers["x-mailq-reason"]
    assert 3 <= poison.headers["x-mailq-delivery-count"] < 20
    assert len(deaths) == poison.headers["x-mailq-delivery-count"]
    await rabbit.wait_for_count("outbox", 0)
    await run.page("/readyz", want=200)
    assert await run.end() == 0
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)
    doubtful, told = [await documents(rabbit, queue) for queue in ("retry", "success")]
    assert all(document["results"][-1]["in_doubt"] for document in doubtful)
    assert {document["recipient"] for document in doubtful + told} == set(recipients)
    # A worker that dies between publication and acknowledgement leaves its results to be told again, and that is said.
    first = Counter(each["recipient"] for each in doubtful + told if not each["results"][-1].get("redelivered"))
    assert set(first.values()) == {1}
    assert await rabbit.count("outbox.poison") == await rabbit.count("outbox") == 0


async def test_the_equation_holds_for_one_page_of_all_processes_also_after_a_death(
    start, sink, publish, reported, rabbit, kill_at
):
    receiver = await sink()
    run = await start(2, receiver=receiver.port)
    await publish(20)
    await reported(20)
    while not balanced(before := await sums(run)):  # what is in flight is told once a second
        pass
    assert (before["mailq_consumed_total",], before["mailq_ended_total", "success"]) == (20, 20)
    assert (before["mailq_drift",], before["mailq_journal_writable", "0"]) == (0, 1)
    deaths = kill_at(run, State.DATA, times=1)
    recipients = await publish(40, local="slow-500", first=20)
    await rabbit.publish("outbox", orjson.dumps({"recipient": "deadly@a.test", "mime": MIME, "id": "deadly"}))
    await until(lambda: len(deaths) == 1)
    await rabbit.wait_for_count("outbox", 0)
    await run.page("/readyz", want=200)
    while not (balanced(page := await sums(run)) and page["mailq_in_flight",] == 0):
        pass

    assert page["mailq_drift",] == 0
    assert page["mailq_journal_writable", "1"] == 1
    assert page["mailq_poisoned_total",] == page["mailq_bugs_total",] == 0
    assert Counter(message.recipient for message in receiver.messages).keys() >= {*recipients, "deadly@a.test"}
    assert await run.end() == 0
