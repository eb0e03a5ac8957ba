"""`mailq demo` as anyone runs it: it ends well by itself, badly with a reason, and leaves nothing running."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}


@pytest.fixture
def start(tmp_path):
    async def run(*arguments, **environ):
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "demo", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, env=ENVIRON | environ,
        )  # fmt: skip

    return run


def _processes(directory):
    """Return the command lines of processes that have to do with a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{directory}/.run".encode() in words:
            found.append(words)
    return found


async def _worker_started(process):
    while b"worker started" not in await asyncio.wait_for(process.stderr.readline(), 60):
        assert process.returncode is None


async def test_with_a_broker_of_its_own(start, tmp_path):
    process = await start()
    out, err = await asyncio.wait_for(process.communicate(), 110)
    assert process.returncode == 0, err.decode()
    text = out.decode()
    assert "reject-550@demo.test" in text
    assert "TLSv1.3 TLS_AES_256_GCM_SHA384" in text
    assert '"state": "message"' in text
    assert "All 9 results arrived" in err.decode()
    assert list((tmp_path / ".run/demo").iterdir()) == []
    assert _processes(tmp_path) == []


async def test_with_a_broker_that_is_there_it_removes_its_queues_and_a_folder_may_see_it_often(start, rabbit, tmp_path):
    for _ in range(3):
        process = await start("--json", MAILQ_RABBITMQ__URL=rabbit.url)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, err) == (0, b"")
        assert [each.name for each in tmp_path.iterdir()] == [".run"]
    arrived = {name.partition(".")[2]: documents for name, documents in json.loads(out).items()}
    assert {name: len(documents) for name, documents in arrived.items()} == {
        "results": 4, "success": 2, "failures": 2, "retry": 1,
    }  # fmt: skip
    accepted = next(each for each in arrived["success"] if each["id"] == "demo-accepted")
    assert accepted["results"][0]["certificate"]["verified"] is True
    queues = [name.replace("results", "outbox") for name in json.loads(out) if name.endswith("results")]
    assert not await rabbit.exists(queues[0])


async def test_what_is_kept_in_a_broker_that_is_there_has_names_of_its_own(start, rabbit, tmp_path):
    await rabbit.declare("results")
    await rabbit.publish("results", b"{}")
    process = await start("--json", "--keep", "--url", rabbit.url)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")
    (results,) = [name for name in json.loads(out) if name.endswith(".results")]
    await rabbit.wait_for_count(results, 4)
    assert await rabbit.count("results") == 1
    assert not await rabbit.exists("outbox")
    (home,) = (tmp_path / ".run/demo").iterdir()
    assert (home / "worker.log").stat().st_size > 0


async def test_a_broker_that_is_not_there_is_one_clear_line(start):
    process = await start("--url", "amqp://joe:secret@127.0.0.1:1/")
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert err.startswith(b"mailq: the demo failed: cannot connect to RabbitMQ at 127.0.0.1:1")
    assert b"secret" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_everything_ends_when_it_is_interrupted(start, rabbit, tmp_path, number):
    process = await start("--url", rabbit.url)
    await _worker_started(process)
    async with asyncio.timeout(60):
        while not _processes(tmp_path):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (130, b"mailq: interrupted\n")
    assert list((tmp_path / ".run/demo").iterdir()) == []
    assert _processes(tmp_path) == []


async def test_nothing_is_left_running_when_it_is_killed(start, tmp_path):
    process = await start()
    await _worker_started(process)
    names = (b"mailq.toml", b"beam.smp", b"epmd")
    async with asyncio.timeout(60):
        while not all(name in b"".join(_processes(tmp_path)) for name in names):  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.05)
    process.kill()
    await process.communicate()
    async with asyncio.timeout(60):
        while _processes(tmp_path):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)
