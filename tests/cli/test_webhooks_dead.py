"""`mailq webhooks` among hostile documents and endpoints; `mailq webhooks dead` brings back what it gave up."""

import asyncio
import json
import os
import signal
import sys

import orjson
import pytest
from support.hooks import SECRET, Receiver, document, ready, until
from typer.testing import CliRunner

from mailq.cli import build
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.webhooks.endpoint import replay
from mailq.edges.amqp.broker import Broker
from mailq.testbed.free_port import free_port

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "200"}
DEAD = "webhooks.dead"
OVERFLOW = "Mon, 20 Nov 9999999999 12:00:00 +0000"
EVENT = {"x-mailq-event": "messageSent", "x-mailq-job": "j", "x-mailq-attempt": 1, "x-mailq-time": 1_700_000_000}


class Silent:
    def broker(self, event, detail): ...


@pytest.fixture
async def receivers():
    started = [Receiver(), Receiver(), Receiver()]
    for each in started:
        await each.start()
    yield started
    for each in started:
        await each.stop()


@pytest.fixture
async def start(rabbit):
    """Start `mailq webhooks` with these arguments; processes that are left are killed by their number."""
    running = []

    async def run(*arguments, endpoints, **webhooks):
        defaults = {"secrets": [SECRET], "allow_http": True, "allow_private": True}
        variables = {
            "MAILQ_RABBITMQ__URL": rabbit.url,
            "MAILQ_WEBHOOKS__ENDPOINTS": json.dumps({name: defaults | keys for name, keys in endpoints.items()}),
            **{f"MAILQ_WEBHOOKS__{key.upper()}": str(value) for key, value in webhooks.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "webhooks", *arguments, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENVIRON | variables,
        )  # fmt: skip
        running.append(process)
        return process

    yield run
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def dead(start):
    """Run `mailq webhooks dead` to its end; returns status, output and complaints."""

    async def run(*arguments, endpoints=None):
        process = await start("dead", *arguments, endpoints=endpoints or {"crm": {"url": "http://127.0.0.1:1/"}})
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()

    return run


async def test_no_document_and_no_endpoint_ends_the_process_and_what_was_given_up_comes_back(
    start, dead, receivers, rabbit
):
    good, overflowing, lost = receivers
    overflowing.answers = [(503, {"Retry-After": OVERFLOW})] * 2
    overflowing.answer = (302, {"Location": "http://["})
    endpoints = {
        "good": {"url": good.url},
        "overflowing": {"url": overflowing.url, "follow_redirects": True},
        "lost": {"url": "http://127.0.0.1:1/"},
    }
    settings = {"endpoints": endpoints, "max_age": 4, "pause": 0.1, "pause_max": 0.5, "retries": "[1]"}
    port = free_port()
    process = await start("run", **settings, port=port)
    await ready(port)
    nested = orjson.dumps(document("nested")).removesuffix(b"}") + b',"x":' + b"[" * 252 + b"]" * 252 + b"}"
    hostile = [b"\xff", b"[]", b'{"results": [3]}', nested]
    jobs = [f"job-{number}" for number in range(20)]
    broker = await Broker.open(rabbit.config(), 1, Silent())
    for place, job in enumerate(jobs):
        bodies = [orjson.dumps(document(job)), *hostile[place : place + 1]]
        await broker.publish([Publication("mailq", "success", body) for body in bodies])
    await rabbit.publish("webhooks.good", b"{}", message_id="1", headers=EVENT | {"x-mailq-event": "a\r\nb: c"})
    await broker.close()
    await until(lambda: {job for job, _ in good.jobs()} == set(jobs), 20)
    await rabbit.wait_for_count(DEAD, len(hostile) + 1 + 2 * len(jobs))
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert log.count(b'"webhook_dead"') == len(hostile) + 1 + 2 * len(jobs)
    assert b"Traceback" not in log

    _, out, _ = await dead("list", "--json", "--endpoint", "-", endpoints=endpoints)
    reasons = {each["reason"]: each.get("pointer") for each in map(json.loads, out.splitlines())}
    assert reasons["has no result of a delivery attempt"] == "/results"
    assert reasons["is nested too deeply to be given back; nest fewer levels"] == "/x"
    status, out, err = await dead("replay", "--endpoint", "lost", "--dry-run", endpoints=endpoints)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "20 messages would be put back on the queues of webhooks"
    _, out, _ = await dead("replay", "--endpoint", "lost", endpoints=endpoints)
    assert out == "20 messages put back on the queues of webhooks\n"
    await rabbit.wait_for_count("webhooks.lost", 20)
    endpoints["lost"]["url"] = lost.url
    overflowing.answer = 200
    again = await start(**settings | {"max_age": 60}, port=free_port())
    await until(lambda: {job for job, _ in lost.jobs()} == set(jobs), 20)
    ids = {event["x-mailq"]["id"] for event in good.taken}
    assert {event["x-mailq"]["id"] for event in lost.taken} == ids
    again.send_signal(signal.SIGTERM)
    await asyncio.wait_for(again.communicate(), 20)
    status, out, _ = await dead("replay", "--reason", "nested too deeply", endpoints=endpoints)
    assert (status, out) == (0, "1 message put back on the queues of webhooks\n")
    await rabbit.wait_for_count("webhooks", 1)


async def test_dead_lists_shows_replays_and_drops(dead, rabbit):
    for queue in (DEAD, "webhooks", "webhooks.crm"):
        await rabbit.declare(queue, arguments={"x-queue-type": "quorum"})
    assert await dead("list") == (0, "NO  ID  AGE  ENDPOINT  EVENT  REASON  SIZE  RECIPIENT\n", "")
    old = {"x-mailq-reason": "is older than webhooks.max_age"}
    event = orjson.dumps(
        {"data": {"envelope": {"to": ["b@b.test"]}}, "x-mailq": {"properties": {"password": "geheim"}}}
    )
    for name, endpoint in (("a", "crm"), ("b", "gone"), ("c", "crm")):
        await rabbit.publish(DEAD, event, message_id=name, headers=EVENT | old | {"x-mailq-endpoint": endpoint})
    await rabbit.publish(DEAD, b"\xff", message_id="d", headers={"x-mailq-reason": "body is not JSON"})
    foreign = {"x-mailq-reason": "is no event made by mailq", "x-mailq-endpoint": "crm"}
    await rabbit.publish(DEAD, b"by hand", message_id="e", headers=foreign)
    status, out, err = await dead("list")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [(str(number), name) for number, name in enumerate("abcde", 1)]
    assert rows[0][3:5] == ["crm", "messageSent"]
    assert rows[0][-1] == "b@b.test"
    for asked in ("b", "2"):
        status, out, _ = await dead("show", asked)
        assert (status, out.splitlines()[0]) == (0, "id: b")
        assert "geheim" not in out
    assert (await dead("show", "9"))[0] == 1
    status, out, err = await dead("replay", "--all")
    assert (status, out) == (1, "3 messages put back on the queues of webhooks\n")
    assert err.splitlines() == [
        "mailq: b stays: its endpoint is not configured any more: webhooks.gone",
        "mailq: e stays: it is no event made by mailq",
    ]
    await rabbit.wait_for_count(DEAD, 2)
    replayed = await rabbit.get_many("webhooks.crm", 2)
    assert [each.message_id for each in replayed] == ["a", "c"]
    assert replayed[0].body == event
    assert replayed[0].headers["x-mailq-time"] > EVENT["x-mailq-time"]
    assert "x-mailq-reason" not in replayed[0].headers
    document_again = await rabbit.get("webhooks")
    assert (document_again.message_id, document_again.body) == ("d", b"\xff")
    status, out, _ = await dead("drop", "e")
    assert status == 1
    assert out.startswith(f"Drop 1 message of {DEAD} for good?")
    assert (await dead("drop", "e", "--dry-run"))[1].endswith(f"1 message would be dropped from {DEAD}\n")
    await rabbit.wait_for_count(DEAD, 2)
    assert (await dead("drop", "--reason", "no event", "--yes"))[:2] == (0, f"1 message dropped from {DEAD}\n")
    await rabbit.wait_for_count(DEAD, 1)
    assert (await rabbit.get(DEAD)).message_id == "b"


async def test_a_replay_that_is_not_confirmed_or_killed_leaves_the_message(start, dead, rabbit):
    await rabbit.declare(DEAD, arguments={"x-queue-type": "quorum"})
    await rabbit.declare("webhooks", arguments={"x-queue-type": "quorum"})
    for name in "ab":
        await rabbit.publish(DEAD, b"{}", message_id=name, headers=EVENT | {"x-mailq-endpoint": "crm"})
    status, out, err = await dead("replay", "--all")
    assert (status, out) == (69, "")
    assert "no queue takes queue 'webhooks.crm'" in err
    await rabbit.wait_for_count(DEAD, 2)
    await rabbit.declare("webhooks.crm", arguments={"x-queue-type": "quorum"})
    await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
    try:
        process = await start("dead", "replay", "--all", endpoints={"crm": {"url": "http://127.0.0.1:1/"}})
        assert b"RabbitMQ takes nothing at the moment" in await asyncio.wait_for(process.stderr.readline(), 30)
        process.kill()
        await process.communicate()
    finally:
        await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "0.4")
    await rabbit.wait_for_count(DEAD, 2)
    assert [(await rabbit.get(DEAD)).message_id for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize("words", ["replay", "drop a --all", "show", "show a b", "list a", "list --all", "requeue a"])
def test_what_cannot_be_meant_is_wrong_usage(words):
    assert CliRunner().invoke(build(("webhooks",)), ["webhooks", "dead", *words.split()]).exit_code == 2


@pytest.mark.parametrize(
    ("headers", "queue"),
    [
        (EVENT | {"x-mailq-endpoint": "crm"}, "webhooks.crm"),
        (EVENT | {"x-first-death-queue": "webhooks.crm"}, "webhooks.crm"),
        ({"x-first-death-queue": "webhooks"}, "webhooks"),
        ({}, "webhooks"),
        ({"x-mailq-endpoint": "other"}, None),
        ({"x-mailq-endpoint": "crm"}, None),
        ({"x-first-death-queue": "outbox"}, None),
        ({"x-mailq-endpoint": 3}, None),
        ({"x-mailq-endpoint": ["crm"]}, None),
    ],
)
def test_where_a_dead_message_goes(headers, queue):
    found = replay(Consumed(b"{}", 1, message_id="1", headers=headers, content_encoding="gzip"), "webhooks", ["crm"], 5)
    assert (None if isinstance(found, str) else found.routing_key) == queue
    if queue == "webhooks":
        assert found.content_encoding == "gzip"
        assert found.headers == {}
