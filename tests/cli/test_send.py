"""`mailq send` against a real broker: what it publishes, what it refuses, its exit status."""

import asyncio
import gzip
import json
import os
import sys
import uuid

import pytest

from mailq.cli.jobfile import Entry, Flaw, read
from mailq.cli.send import _told
from mailq.ports.broker import BrokerError

JOB = '{"recipient": "a@b.test", "mime": "x"}'
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}


@pytest.fixture
def send(rabbit):
    """Run the command with a file's content on standard input; returns status, output and complaints."""

    async def run(content, *arguments, file="-", **environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "send", file, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url} | environ,
        )  # fmt: skip
        content = content if isinstance(content, bytes) else content.encode()
        out, err = await asyncio.wait_for(process.communicate(content), 60)
        return process.returncode, out.decode(), err.decode()

    return run


async def test_the_producers_own_octets_arrive_persistent_with_identity_and_priority(send, rabbit):
    await rabbit.declare("outbox", arguments={"x-max-priority": 9})
    first = '{"recipient":"ä@b.test",  "mime":"x", "id":"one", "priority": 7, "own": 1.50}'
    assert await send(f"[{first},\n {JOB}]") == (0, "2 jobs sent to outbox\n", "")
    urgent, plain = await rabbit.get_many("outbox", 2)
    assert urgent.body == first.encode()
    assert (urgent.message_id, urgent.priority, urgent.content_type) == ("one", 7, "application/json")
    assert urgent.delivery_mode == 2
    assert plain.body == JOB.encode()
    assert uuid.UUID(plain.message_id).version == 4


async def test_gzip(send, rabbit, tmp_path):
    await rabbit.declare("outbox")
    file = tmp_path / "jobs.jsonl"
    file.write_text(f"{JOB}\n")
    assert (await send("", "--gzip", file=str(file)))[0] == 0
    message = await rabbit.get("outbox")
    assert message.content_encoding == "gzip"
    assert gzip.decompress(message.body) == JOB.encode()


async def test_many_jobs_are_all_confirmed(send, rabbit):
    await rabbit.declare("outbox")
    assert await send("".join(f"{JOB}\n" for _ in range(1700))) == (0, "1700 jobs sent to outbox\n", "")
    await rabbit.wait_for_count("outbox", 1700)


async def test_one_wrong_job_and_nothing_is_sent(send, rabbit):
    await rabbit.declare("outbox")
    status, out, err = await send(f'{JOB}\n{{"recipient": "a@b.test", "priority": 300}}\n{JOB}\n{{"x"\n')
    assert (status, out) == (65, "")
    assert err.splitlines() == [
        "mailq: -:2: /priority: Input should be less than or equal to 255",
        "mailq: -:5: is not JSON: Expecting ':' delimiter",
        "mailq: nothing was sent; --skip-invalid leaves these out",
    ]
    assert await rabbit.count("outbox") == 0


async def test_wrong_jobs_can_be_left_out(send, rabbit):
    await rabbit.declare("outbox")
    status, out, err = await send(f'{JOB}\n{{"recipient": 3}}\nnonsense\n{JOB}', "--skip-invalid")
    assert (status, out) == (0, "2 jobs sent to outbox\n")
    assert [line.split(":")[2] for line in err.splitlines()] == ["2", "3"]
    await rabbit.wait_for_count("outbox", 2)


async def test_a_broker_without_outbox_is_one_clear_line(send, rabbit):
    status, out, err = await send(JOB)
    assert (status, out) == (69, "")
    address = f"127.0.0.1:{rabbit.server.port}"
    assert err == (
        f"mailq: there is no queue 'outbox' at RabbitMQ {address}; `mailq run` declares those it is configured with\n"
    )


async def test_no_broker_is_one_clear_line_without_the_password(send):
    status, _, err = await send(JOB, MAILQ_RABBITMQ__URL="amqp://joe:secret@127.0.0.1:1/")
    assert status == 69
    assert err.startswith("mailq: cannot connect to RabbitMQ at 127.0.0.1:1: connection refused; start RabbitMQ")
    assert err.count("\n") == 1
    assert "secret" not in err


async def test_a_full_queue_is_an_error_that_says_what_was_confirmed(send, rabbit):
    await rabbit.declare("outbox", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    status, out, err = await send(f"{JOB}\n{JOB}\n{JOB}")
    assert (status, out) == (69, "")
    assert err == "mailq: RabbitMQ refused a publication to queue 'outbox'; 0 of 3 jobs were confirmed before\n"


def test_a_job_that_is_too_large_for_the_broker_is_told_with_the_remedy():
    refusal = BrokerError("406 PRECONDITION_FAILED - message size 20 is larger than configured max size 16")
    told = _told(refusal, 1, 3, compress=False)
    assert told.startswith(str(refusal))
    assert "--gzip, or raise max_message_size" in told
    assert told.endswith("; 1 of 3 jobs were confirmed before")
    assert "--gzip" not in _told(refusal, 1, 3, compress=True)
    assert "max_message_size" not in _told(BrokerError("lost"), 1, 3, compress=False)


@pytest.mark.parametrize("content", ["", "[]", " \n"])
async def test_a_file_without_a_job_is_an_error(send, content):
    assert await send(content) == (65, "", "mailq: -: there is no valid job in it\n")


async def test_a_file_that_is_not_there(send):
    reason = "cannot be read: No such file or directory; name a file that this user may read, or - for input"
    assert await send("", file="/nonexistent/jobs") == (66, "", f"mailq: /nonexistent/jobs: {reason}\n")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (JOB, [(1, JOB)]),
        (f"\n\n  {JOB}  \n", [(3, JOB)]),
        (f"[\n{JOB}\n,\n{JOB}]\n", [(2, JOB), (4, JOB)]),
        (f"{JOB}\n\n{JOB}\n", [(1, JOB), (3, JOB)]),
        (f"\ufeff{JOB}", [(1, JOB)]),
        (json.dumps(json.loads(JOB), indent=2), [(1, json.dumps(json.loads(JOB), indent=2))]),
        (f"[{JOB} {JOB}]", [(1, JOB), "1: is not JSON: the array goes on without a comma or ends early"]),
        (f"[{JOB},", [(1, JOB), "1: is not JSON: the array ends early"]),
        (f"[{JOB}", [(1, JOB), "1: is not JSON: the array goes on without a comma or ends early"]),
        (f"[{JOB}]\n{JOB}", [(1, JOB), "2: is not JSON: something comes after the array"]),
        ("[", ["1: is not JSON: the array ends early"]),
        ("3", ["1: body is JSON but not an object"]),
        ('{"recipient": "a@b.test"}', ["1: /mime: there is no message to send; the worker would fail the job"]),
        ('{"recipient": "a@b.test", "mime": ""}', ["1: /mime: there is no message to send; the worker would fail"]),
        (f"x\n{JOB}", ["1: is not JSON: Expecting value", (2, JOB)]),
        ('{"recipient": "a@b.test", "priority": NaN}', ["1: body is not JSON"]),
        ("[" * 100_000, ["1: is not JSON: nested too deeply"]),
        (b"\n\xff", ["2: is not UTF-8"]),
        (JOB + " " * 3 + "{" + '"recipient": "a@b.test", "mime": "' + "x" * 300 + '"}', [(1, JOB), "1: is larger"]),
    ],
)
def test_how_files_are_cut_into_jobs(content, found):
    content = content if isinstance(content, bytes) else content.encode()
    entries = list(read(content, limit=200))
    assert len(entries) == len(found)
    for entry, wanted in zip(entries, found, strict=True):
        if isinstance(entry, Entry):
            assert (entry.line, entry.body.decode()) == wanted
        else:
            assert isinstance(entry, Flaw)
            assert str(entry).startswith(wanted)
