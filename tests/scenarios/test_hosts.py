"""Limits hold for the host: processes of one or several `mailq run` together do what one would be allowed to."""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest
from support.system import MIME, until

from mailq.testbed.free_port import free_port

RUNS = [(4,), (2, 2), (3, 1)]
"""So many processes has each `mailq run`; a single one has no supervisor."""

DEADLINE = 60.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}


@pytest.fixture
async def host(rabbit, tmp_path):
    """Start `mailq run` with processes that all consume, towards one receiver; all share the directory of journals."""
    running = []

    async def start(port, limit, processes, *, ready=True):
        name = f"mailq-{len(running)}"
        file, log = tmp_path / f"{name}.toml", tmp_path / f"{name}.log"
        file.write_text(
            f"[[limits]]\n{limit}\n"
            f'[dns.overrides]\n"*" = ["127.0.0.1:{port}"]\n'
            f"[http]\nport = {free_port()}\n"
            '[delivery]\nehlo = "worker.test"\n'
        )
        command = (sys.executable, "-m", "mailq", "run", "--config", str(file), "--processes", str(processes))
        before = await consumers(rabbit)
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stderr=output, env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url}, cwd=tmp_path
            )
        running.append(process)
        async with asyncio.timeout(DEADLINE):
            while ready and await consumers(rabbit) < before + processes:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        return process

    yield start
    for process in running:
        if process.returncode is None:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), DEADLINE) == 0


@pytest.fixture
async def door():
    """Start a way to a receiver that opens at once, after 0.3 s, after 0.6 s, and so on in turn."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(receiver):
            turns = itertools.count()

            async def enter(reader, writer):
                await asyncio.sleep(0.3 * (next(turns) % 3))
                onward = await asyncio.open_connection("127.0.0.1", receiver.port)
                await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))

            server = await asyncio.start_server(enter, "127.0.0.1", 0)
            stack.callback(server.close)
            return server.sockets[0].getsockname()[1]

        yield start


async def pump(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def consumers(rabbit):
    """Return how many consume the outbox; 0 before it is declared."""
    if not await rabbit.exists("outbox"):
        return 0
    declared = await (await rabbit.channel()).declare_queue("outbox", passive=True)
    return declared.declaration_result.consumer_count


async def publish(rabbit, count, local):
    recipients = [f"{local}+{number}@a.test" for number in range(count)]
    bodies = [{"recipient": each, "envelope": "a@a.test", "mime": MIME, "id": each} for each in recipients]
    await asyncio.gather(*(rabbit.publish("outbox", orjson.dumps(body)) for body in bodies))
    return recipients


async def delivered(rabbit, recipients):
    """Wait until all are delivered, each once and at the first attempt; nothing else came of any."""
    await rabbit.wait_for_count("success", len(recipients), deadline=DEADLINE)
    documents = [orjson.loads(message.body) for message in await rabbit.get_many("success", len(recipients))]
    assert sorted(document["recipient"] for document in documents) == sorted(recipients)
    assert {result["attempt"] for document in documents for result in document["results"]} == {1}
    assert [await rabbit.count(name) for name in ("outbox", "failures", "retry")] == [0, 0, 0]


def descendants(pid):
    """Return a process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [pid, *(each for child in below for each in descendants(int(child)))]


@pytest.mark.parametrize("runs", RUNS)
async def test_four_processes_share_one_connection(host, sink, rabbit, runs):
    receiver = await sink()
    for processes in runs:
        await host(receiver.port, "connections = 1", processes)

    recipients = await publish(rabbit, 100, "slow-5")

    await delivered(rabbit, recipients)
    assert receiver.most_sessions == 1
    assert receiver.connections >= sum(runs)  # no session serves two processes: each of them had its turn
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)


@pytest.mark.alone
@pytest.mark.parametrize("runs", RUNS)
async def test_four_processes_share_one_rate_though_sessions_open_unevenly(host, sink, door, rabbit, runs):
    receiver = await sink()
    port = await door(receiver)
    for processes in runs:
        await host(port, 'message_rate = "5/s"\nmessages_per_session = 1', processes)

    recipients = await publish(rabbit, 40, "accept")

    await delivered(rabbit, recipients)
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)
    moments = [message.time.timestamp() for message in receiver.messages]
    for first, last in itertools.combinations(range(len(moments)), 2):
        seconds = moments[last] - moments[first] + 0.1  # a message is on the wire a little longer than another
        assert last - first + 1 <= 5 * seconds + 1
    assert moments[-1] - moments[0] < 40 / 5 * 1.5 + 2


async def test_a_run_that_is_killed_whole_frees_its_connections_for_another(host, sink, rabbit):
    receiver = await sink()
    limit = "connections = 1\nidle_timeout = 60"
    victim = await host(receiver.port, limit, 2)
    await delivered(rabbit, await publish(rabbit, 1, "accept"))
    victims = descendants(victim.pid)
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    try:
        await host(receiver.port, limit, 1)
        recipients = await publish(rabbit, 5, "accept+later")
        await asyncio.sleep(2)
        assert len(receiver.messages) == receiver.connections == 1  # who stands still has its connection open
    finally:
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
    await victim.wait()
    await rabbit.wait_for_count("success", len(recipients), deadline=30)
    assert receiver.most_sessions == 1


async def test_a_run_of_another_version_is_waited_for(host, sink, rabbit, tmp_path):
    """It tells nothing that could be read; together both would exceed what is allowed."""
    receiver = await sink()
    old = await host(receiver.port, "connections = 1", 1)
    with (tmp_path / "journal" / "limits").open("r+b") as file:
        file.write(b"mailq-0\0")
    await host(receiver.port, "connections = 1", 2, ready=False)
    log = tmp_path / "mailq-1.log"
    said = "table of limits journal/limits is in use by processes of another version of mailq; end them"
    await until(lambda: log.read_text().count(said) >= 2, DEADLINE)
    assert await consumers(rabbit) == 1

    old.terminate()
    assert await old.wait() == 0
    await delivered(rabbit, await publish(rabbit, 10, "accept"))
    assert receiver.most_sessions == 1
