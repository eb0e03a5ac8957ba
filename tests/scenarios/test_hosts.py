"""Limits hold for the host: four processes of one `mailq run` together do what one would be allowed to."""

import asyncio
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

    async def start(receiver, limit):
        file, log = tmp_path / "mailq.toml", tmp_path / "mailq.log"
        file.write_text(
            f"[[limits]]\n{limit}\n"
            f'[dns.overrides]\n"*" = ["127.0.0.1:{receiver.port}"]\n'
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
    await host(receiver, "connections = 1")

    recipients = await publish(rabbit, 100, "slow-5")

    await delivered(rabbit, recipients)
    assert receiver.most_sessions == 1
    assert receiver.connections >= PROCESSES  # no session serves two processes: each of them had its turn
    assert Counter(message.recipient for message in receiver.messages) == Counter(recipients)


async def test_four_processes_share_one_rate(host, sink, rabbit):
    receiver = await sink()
    await host(receiver, 'message_rate = "5/s"\nidle_timeout = 60')
    # With its session open a message leaves at its turn; opening one would blur what is measured.
    opening = await publish(rabbit, 2 * PROCESSES, "slow-1")
    await delivered(rabbit, opening)

    recipients = await publish(rabbit, 40, "accept")

    await delivered(rabbit, recipients)
    assert Counter(message.recipient for message in receiver.messages) == Counter([*opening, *recipients])
    moments = [message.time.timestamp() for message in receiver.messages][len(opening) :]
    for first, last in itertools.combinations(range(len(moments)), 2):
        seconds = moments[last] - moments[first] + 0.1  # a message is on the wire a little longer than another
        assert last - first + 1 <= 5 * seconds + 1
    assert moments[-1] - moments[0] < 40 / 5 * 1.5 + 2
