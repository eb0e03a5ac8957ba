"""Limits hold for the host: four processes of one `mailq run` together do what one would be allowed to."""

import asyncio
import contextlib
import itertools
import os
import sys
from collections import Counter

import orjson
import pytest
from support.system import MIME

from mailq.lab.ports import free_port

PROCESSES = 4
DEADLINE = 60.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}


@pytest.fixture
async def host(rabbit, tmp_path):
    """Start `mailq run` with four processes that all consume, towards one receiver and with one table of limits."""
    running = []

    async def start(port, limit):
        file, log = tmp_path / "mailq.toml", tmp_path / "mailq.log"
        file.write_text(
            f"[[limits]]\n{limit}\n"
            f'[dns.overrides]\n"*" = ["127.0.0.1:{port}"]\n'
            f"[http]\nport = {free_port()}\n"
            '[delivery]\nehlo = "worker.test"\n'
        )
        command = (sys.executable, "-m", "mailq", "run", "--config", str(file), "--processes", str(PROCESSES))
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stderr=output, env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url}, cwd=tmp_path
            )
        running.append(process)
        async with asyncio.timeout(DEADLINE):
            while await consumers(rabbit) < PROCESSES:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)

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


async def test_four_processes_share_one_connection(host, sink, rabbit):
    receiver = await sink()
    await host(receiver.port, "connections = 1")

    recipients = await publish(rabbit, 100, "slow-5")

    await delivered(rabbit, recipients)
    assert receiver.most_sessions == 1
    assert receiver.connections >= PROCESSES  # no session serves two processes: each of them had its turn
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)


async def test_four_processes_share_one_rate_though_sessions_open_unevenly(host, sink, door, rabbit):
    receiver = await sink()
    await host(await door(receiver), 'message_rate = "5/s"\nmessages_per_session = 1')

    recipients = await publish(rabbit, 40, "accept")

    await delivered(rabbit, recipients)
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)
    moments = [message.time.timestamp() for message in receiver.messages]
    for first, last in itertools.combinations(range(len(moments)), 2):
        seconds = moments[last] - moments[first] + 0.1  # a message is on the wire a little longer than another
        assert last - first + 1 <= 5 * seconds + 1
    assert moments[-1] - moments[0] < 40 / 5 * 1.5 + 2
