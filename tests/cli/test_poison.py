"""`mailq poison` against a real broker: what it shows, what it moves, what it leaves in its place."""

import asyncio
import hashlib
import json
import os
import signal
import sys
from datetime import UTC, datetime

import pytest
from support.broker import Inbox, Remembering
from typer.testing import CliRunner

from mailq.cli import build
from mailq.cli.dead_letter_view import MASK, page, shown
from mailq.cli.poison import summary
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.broker.provenance import HEADER
from mailq.edges.amqp.broker import Broker

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
POISON = "outbox.poison"
OURS = {"x-mailq-reason": "body is not JSON", "x-mailq-state": "process", "x-mailq-delivery-count": 3}


@pytest.fixture
async def start(rabbit):
    """Start the command; returns the process, which ends with the test."""
    processes = []

    async def run(*arguments, **environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "poison", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url} | environ,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def poison(start):
    """Run the command to its end; returns status, output and complaints."""

    async def run(*arguments, answer=b"", **environ):
        process = await start(*arguments, **environ)
        out, err = await asyncio.wait_for(process.communicate(answer), 60)
        return process.returncode, out.decode(), err.decode()

    return run


@pytest.fixture
async def queue(rabbit):
    """The poison queue and the outbox, and a way to fill the first: `await queue("a", "b")`."""
    for name in (POISON, "outbox"):
        await rabbit.declare(name, arguments={"x-queue-type": "quorum"})

    async def fill(*ids, headers=OURS):
        for each in ids:
            body = json.dumps({"recipient": f"{each}@a.test"}).encode()
            await rabbit.publish(POISON, body, message_id=each, headers=headers)

    return fill


async def rest(rabbit, queue=POISON):
    """Return the ids that a queue holds, in order."""
    return [(await rabbit.get(queue)).message_id for _ in range(await rabbit.count(queue))]


async def settled(rabbit, count, queue=POISON):
    """Return what is left, once the broker has put it back."""
    await rabbit.wait_for_count(queue, count)
    return await rest(rabbit, queue)


async def test_a_list_says_what_is_known_and_leaves_all_as_it_was(poison, queue, rabbit):
    await queue("a", "b")
    await rabbit.publish(POISON, b"\xff no job \x1b[31m", headers={"x-mailq-reason": "x\x1b[31m\nsecond line"})
    status, out, err = await poison("list")
    assert (status, err) == (0, "")
    heading, *lines = out.splitlines()
    assert heading.split() == ["ID", "AGE", "REASON", "STATE", "DELIVERIES", "SIZE", "RECIPIENT"]
    assert lines[0].split() == ["a", "-", "body", "is", "not", "JSON", "process", "3", "25", "a@a.test"]
    digest, *others = lines[2].split()
    assert others == ["-", "x?[31m", "-", "-", "14", "-"]
    assert len(digest) == 32
    assert await settled(rabbit, 3) == ["a", "b", digest]


async def test_a_list_as_json(poison, queue, rabbit):
    await queue("a\u009b31m")
    status, out, _ = await poison("list", "--json")
    assert (status, json.loads(out)) == (
        0,
        {
            "id": "a?31m", "reason": "body is not JSON", "state": "process", "deliveries": 3, "size": 34,
            "recipient": "a?31m@a.test",
        },
    )  # fmt: skip
    assert "\u009b" not in out


async def test_the_limit_is_kept_and_told(poison, queue, rabbit):
    await queue("a", "b", "c")
    status, out, err = await poison("list", "--limit", "2")
    assert (status, [line.split()[0] for line in out.splitlines()]) == (0, ["ID", "a", "b"])
    assert "only the first 2 are shown" in err
    status, _, err = await poison("drop", "c", "--limit", "2", "--yes")
    assert (status, err) == (1, f"mailq: not among the first 2 messages of {POISON}: c\n")
    assert await settled(rabbit, 3) == ["a", "b", "c"]


async def test_requeue_moves_what_was_asked_for_and_nothing_else(poison, queue, rabbit):
    await queue("a", "b", "c", "d", headers=OURS | {"traceparent": "00-1"})
    assert await poison("requeue", "b", "d") == (0, "2 messages put back on outbox\n", "")
    assert await settled(rabbit, 2) == ["a", "c"]
    await rabbit.wait_for_count("outbox", 2)
    messages = await rabbit.get_many("outbox", 2)
    assert [each.message_id for each in messages] == ["b", "d"]
    assert json.loads(messages[0].body) == {"recipient": "b@a.test"}
    assert messages[0].headers.keys() - {"x-delivery-count"} == {"traceparent", HEADER}
    assert messages[0].headers[HEADER].startswith(";requeued;")


async def test_a_message_without_an_id_is_named_by_its_digest(poison, rabbit):
    broker = await Broker.open(RabbitConfig(url=rabbit.url), 1, Remembering())
    await broker.publish([Publication("", POISON, b"no job", content_encoding="gzip", priority=3)])
    await broker.close()
    digest = hashlib.blake2b(b"no job", digest_size=16).hexdigest()
    assert (await poison("requeue", digest))[0] == 0
    message = await rabbit.get("outbox")
    assert (message.body, message.content_encoding, message.priority) == (b"no job", "gzip", 3)
    assert message.message_id is None
    assert await rabbit.count(POISON) == 0


async def test_all_of_more_messages_than_the_window(poison, queue, rabbit):
    ids = [str(number) for number in range(120)]
    await queue(*ids)
    assert await poison("requeue", "--all") == (0, "120 messages put back on outbox\n", "")
    assert await settled(rabbit, 120, "outbox") == ids
    assert await rabbit.count(POISON) == 0


async def test_what_comes_back_as_poison_is_not_requeued_again(poison, queue, rabbit):
    """With the outbox itself as the poison queue's successor, every requeued message is there again at once."""
    await queue("a", "b")
    environ = {"MAILQ_RABBITMQ__OUTBOX": "again", "MAILQ_RABBITMQ__POISON": POISON}
    await rabbit.declare("again", arguments={"x-message-ttl": 0, "x-dead-letter-exchange": "",
                                             "x-dead-letter-routing-key": POISON})  # fmt: skip
    assert (await poison("requeue", "--all", **environ))[:2] == (0, "2 messages put back on again\n")
    assert sorted(await settled(rabbit, 2)) == ["a", "b"]


async def test_a_requeue_that_is_not_confirmed_leaves_the_message(poison, queue, rabbit):
    await queue("a", "b")
    await rabbit.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    status, out, err = await poison("requeue", "--all", MAILQ_RABBITMQ__OUTBOX="full")
    assert (status, out) == (69, "1 message put back on full\n")
    assert "refused a publication to queue 'full'" in err
    assert await settled(rabbit, 1) == ["b"]


async def test_who_is_killed_or_interrupted_while_the_broker_takes_nothing_has_lost_nothing(start, queue, rabbit):
    await queue("a", "b")
    await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
    try:
        for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
            await rabbit.wait_for_count(POISON, 2)
            process = await start("requeue", "--all")
            assert b"RabbitMQ takes nothing at the moment" in await asyncio.wait_for(process.stderr.readline(), 30)
            process.send_signal(number)
            await asyncio.wait_for(process.communicate(), 30)
            assert process.returncode == status
    finally:
        await asyncio.to_thread(rabbit.server.ctl, "set_vm_memory_high_watermark", "0.4")
    assert await settled(rabbit, 2) == ["a", "b"]


async def test_ctrl_c_at_the_question_is_status_130_and_drops_nothing(start, queue, rabbit):
    await queue("a")
    process = await start("drop", "--all")
    await asyncio.wait_for(process.stdout.readuntil(b"for good?"), 60)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert await settled(rabbit, 1) == ["a"]


async def test_drop_asks_first(poison, queue, rabbit):
    await queue("a", "b", "c")
    status, out, _ = await poison("drop", "--all", answer=b"n\n")
    assert (status, out[:43]) == (1, f"Drop 3 messages of {POISON} for good? ")
    status, _, err = await poison("drop", "a", answer=b"")
    assert (status, err.split("\n")[-2]) == (
        1, "mailq: nothing was dropped: standard input ended; --yes drops without asking",
    )  # fmt: skip
    await rabbit.wait_for_count(POISON, 3)
    status, out, _ = await poison("drop", "b", answer=b"y\n")
    assert (status, out.splitlines()) == (
        0, [f"Drop 1 message of {POISON} for good? [y/N]: 1 message dropped from {POISON}"],
    )  # fmt: skip
    assert await settled(rabbit, 2) == ["a", "c"]


async def test_drop_all_without_asking(poison, queue, rabbit):
    await queue("a", "b")
    assert await poison("drop", "--all", "--yes") == (0, f"2 messages dropped from {POISON}\n", "")
    assert await rabbit.count(POISON) == 0
    assert await poison("drop", "--all", "--yes") == (0, "", "")


async def test_show_of_what_the_broker_dead_lettered(poison, rabbit):
    """The real way into the queue: a job given back too often, with the record that the broker keeps of it."""
    config = RabbitConfig(url=rabbit.url, delivery_limit=1)
    broker = await Broker.open(config, 1, Remembering())
    body = {"recipient": "a@a.test", "smarthost": {"hostname": "h", "password": "geheim"}}
    await rabbit.publish("outbox", json.dumps(body).encode(), message_id="4711")
    inbox = Inbox()
    await broker.consume(inbox)
    for number in range(2):
        await inbox.wait(number + 1)
        broker.reject(inbox.messages[-1].tag)
    await rabbit.wait_for_count(POISON, 1)
    await broker.close()
    status, out, err = await poison("show", "4711")
    assert (status, err) == (0, "")
    assert out.startswith("id: 4711\nsize: 79 octets\n")
    assert '"reason":"delivery_limit"' in out
    assert f'"password": "{MASK}"' in out
    assert "geheim" not in out
    _, out, _ = await poison("list")
    assert out.splitlines()[1].split()[2] == "delivery_limit"
    assert out.splitlines()[1].split()[1].endswith("s")
    assert (await poison("requeue", "4711"))[0] == 0
    message = await rabbit.get("outbox")
    assert (message.body, message.headers.keys() - {"x-delivery-count"}) == (json.dumps(body).encode(), {HEADER})


@pytest.mark.parametrize("words", ["requeue", "drop a --all", "show", "show a b", "list a", "list --all", "eat"])
def test_what_cannot_be_meant_is_wrong_usage(words):
    assert CliRunner().invoke(build(("poison",)), ["poison", *words.split()]).exit_code == 2


async def test_an_unknown_id_and_a_missing_queue(poison, queue, rabbit):
    await queue("a")
    assert await poison("show", "b\x1b") == (1, "", f"mailq: not among the first 100 messages of {POISON}: b?\n")
    status, _, err = await poison("list", MAILQ_RABBITMQ__POISON="elsewhere")
    assert (status, err[:42]) == (69, "mailq: there is no queue 'elsewhere' at Ra")


def message(body, **facts):
    return Consumed(body, 1, **facts)


@pytest.mark.parametrize(
    "body",
    [
        b'{"smarthost": {"password": "geheim"}, "dkim": [{"key": "geheim"}], "data": {"apiToken": ["geheim"]}}',
        b'{"smarthost": {"password": "geheim',
        b'not json "Password" : "geheim\\" geheim" and so on',
        b'"dkim": {"key": "geheim',
        b'{"a": "-----BEGIN RSA PRIVATE KEY-----\\ngeheim\\n-----END RSA PRIVATE KEY-----"}',
        b"-----BEGIN PRIVATE KEY-----\ngeheim\n",
    ],
)
def test_secrets_are_masked_whether_it_is_json_or_not(body):
    seen = message(body, headers={"x-password": "geheim", "deep": {"secret": b"geheim"}})
    assert "geheim" not in str(shown(seen)) + "".join(page(seen))
    assert MASK in str(shown(seen))


def test_pages_are_bounded_and_hold_no_control_characters():
    seen = message(b"\x1b]0;x\x07" + b"a" * 1_000_000, headers={"\x1b[2J": "\r\n\x9b"}, message_id="\x1b")
    lines = page(seen)
    assert all(line.isprintable() for line in lines)
    assert sum(map(len, lines)) < 70_000
    assert "size: 1000006 octets" in lines
    assert summary(seen)["id"] == "?"


def test_a_list_tells_since_when_a_message_is_there_whoever_put_it_aside():
    died = datetime(2026, 3, 1, 9, 12, 1, tzinfo=UTC)
    for headers in ({"x-mailq-time": "2026-03-01 09:12:01"}, {"x-death": [{"time": died}]}):
        assert summary(message(b"", headers=headers))["time"] == "2026-03-01 09:12:01"


@pytest.mark.parametrize(
    "headers",
    [{"x-death": 3}, {"x-death": []}, {"x-death": ["a"]}, {"x-mailq-delivery-count": "a"}, {"x-mailq-time": "a"}],
)
def test_headers_that_make_no_sense_are_not_known(headers):
    assert set(summary(message(b"", headers=headers))) == {"id", "size"}
