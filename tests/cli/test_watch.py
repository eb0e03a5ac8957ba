"""`mailq watch` against a real broker: what it shows, what it leaves, its exit status."""

import asyncio
import gzip
import json
import os
import signal
import sys

import pytest

from mailq.cli.watch import line

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
ACCEPTED = {
    "recipient": "b@b.test",
    "results": [
        {"state": "rcptto", "result": "error", "time": "2030-01-01 11:00:00", "attempt": 1, "code": 451},
        {
            "state": "message",
            "result": "accepted",
            "time": "2030-01-01 12:00:00",
            "attempt": 2,
            "code": 250,
            "status": "2.0.0",
            "description": "taken",
        },
    ],
}


@pytest.fixture
def start(rabbit):
    """Start the command; returns the process."""

    async def run(*arguments, **environ):
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "watch", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url} | environ,
        )  # fmt: skip

    return run


@pytest.fixture
def watch(start):
    """Run the command to its end; returns status, output and complaints."""

    async def run(*arguments, **environ):
        process = await start(*arguments, **environ)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()

    return run


async def _declare(rabbit, *names):
    for name in names or ("results", "success", "failures", "retry"):
        await rabbit.declare(name, arguments={"x-queue-type": "quorum"})


async def test_the_four_result_queues_are_shown_and_left_as_they_were(watch, rabbit):
    await _declare(rabbit)
    for name in ("results", "success", "failures", "retry"):
        await rabbit.publish(name, json.dumps(ACCEPTED).encode())
    status, out, err = await watch("--count", "4")
    assert (status, err) == (0, "")
    assert {words.split()[2] for words in out.splitlines()} == {"results", "success", "failures", "retry"}
    assert out.splitlines()[0].endswith(" success b@b.test message/accepted 250 2.0.0 taken (attempt 2)")
    for name in ("results", "success", "failures", "retry"):
        await rabbit.wait_for_count(name, 1)


async def test_a_peek_keeps_the_order(watch, rabbit):
    await _declare(rabbit, "results")
    for number in range(5):
        await rabbit.publish("results", json.dumps(ACCEPTED | {"n": number}).encode())
    status, out, _ = await watch("results", "--json", "--count", "3")
    assert (status, [json.loads(words)["n"] for words in out.splitlines()]) == (0, [0, 1, 2])
    await rabbit.wait_for_count("results", 5)
    assert [json.loads((await rabbit.get("results")).body)["n"] for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_take_removes_exactly_what_was_shown(watch, rabbit):
    await _declare(rabbit, "results")
    for number in range(5):
        await rabbit.publish("results", b'{"n":%d}' % number)
    status, out, _ = await watch("results", "--json", "--take", "--count", "2")
    assert (status, out) == (0, '{"n":0}\n{"n":1}\n')
    await rabbit.wait_for_count("results", 3)
    assert (await rabbit.get("results")).body == b'{"n":2}'


async def test_json_is_one_line_a_message_whatever_it_is(watch, rabbit):
    await _declare(rabbit, "results")
    await rabbit.publish("results", b'{\r\n"a": 123456789012345678901234567890\n}')
    await rabbit.publish("results", b"no\njson")
    await rabbit.publish("results", gzip.compress(b'{"zipped": 1}'), content_encoding="gzip")
    status, out, err = await watch("results", "--json", "--count", "3")
    assert (status, out, err) == (0, '{"a": 123456789012345678901234567890}\n"no\\njson"\n{"zipped": 1}\n', "")


async def test_a_message_that_comes_later_is_shown_when_it_comes(start, rabbit):
    await _declare(rabbit, "results")
    process = await start("results", "--json")
    for number in range(2):
        await rabbit.publish("results", b"%d" % number)
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"%d\n" % number
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out, err) == (0, b"", b"")
    await rabbit.wait_for_count("results", 2)


async def test_time_is_up_before_there_were_enough(watch, rabbit):
    await _declare(rabbit, "results")
    await rabbit.publish("results", b"{}")
    status, out, err = await watch("results", "--count", "2", "--timeout", "0.5")
    assert (status, out) == (1, "- results no result: 2 octets\n")
    assert err == "mailq: 1 of 2 messages came within 0.5 s\n"
    assert (await watch("results", "--timeout", "0.2"))[0] == 0


async def test_a_reader_that_has_seen_enough_is_no_error(start, rabbit):
    await _declare(rabbit, "results")
    process = await start("results", "--json")
    await rabbit.publish("results", b"1")
    await asyncio.wait_for(process.stdout.readline(), 30)
    process._transport.get_pipe_transport(1).close()
    await rabbit.publish("results", b"2")
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert await process.stderr.read() == b""


async def test_a_queue_that_is_not_there_or_goes_away_is_one_clear_line(watch, start, rabbit):
    status, _, err = await watch("results")
    assert (status, err[:39]) == (69, "mailq: there is no queue 'results' at R")
    await _declare(rabbit, "results")
    process = await start("results", "--json")
    await rabbit.publish("results", b"1")
    await asyncio.wait_for(process.stdout.readline(), 30)
    await rabbit.delete("results")
    assert await asyncio.wait_for(process.wait(), 30) == 69
    assert b"queue 'results'" in await process.stderr.read()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (ACCEPTED, "2030-01-01 12:00:00 q success b@b.test message/accepted 250 2.0.0 taken (attempt 2)"),
        (
            {
                "recipient": "b@b.test",
                "nextattempt": {"time": "2030-01-01 12:00:00"},
                "results": [ACCEPTED["results"][0] | {"status": "4.7.1", "description": "wait\r\n\x1b[31mor not"}],
            },
            (
                "2030-01-01 11:00:00 q retry b@b.test rcptto/error 451 4.7.1 wait???[31mor not (attempt 1)"
                " next 2030-01-01 12:00:00"
            ),
        ),
        (
            {"results": [{"state": "process", "result": "invalid", "time": "2030-01-01 11:00:00"}]},
            "2030-01-01 11:00:00 q failure - process/invalid",
        ),
        ({"results": []}, "- q no result: 15 octets"),
        ([], "- q no result: 2 octets"),
        ({"results": [3]}, "- q no result: 16 octets"),
        ({"results": [{"state": 1, "result": None, "time": 5}]}, "5 q failure - 1/None"),
        ({"results": 3}, "- q no result: 14 octets"),
    ],
)
def test_what_a_line_says(document, words):
    assert line("q", json.dumps(document).encode()) == words
