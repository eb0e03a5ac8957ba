"""Losing the broker and being stopped, both under load: nothing is lost."""

import asyncio
import contextlib
import gzip
import os
import signal
import sys
from collections import Counter
from random import Random

import orjson
import pytest
from support import pages
from support.system import MIME, until

from mailq.testbed.free_port import free_port

JOBS = 200


async def load(rabbit, count, local="slow-50"):
    """Publish jobs whose receiver takes its time, and return their recipients."""
    recipients = [f"{local}+{number}@a.test" for number in range(count)]
    for recipient in recipients:
        body = orjson.dumps({"recipient": recipient, "envelope": "a@a.test", "mime": MIME, "id": recipient})
        await rabbit.publish("outbox", body)
    return recipients


async def reported(rabbit, count, queue="success", deadline=60.0):
    """Return the recipients of all results in a queue, once there are `count`."""
    await rabbit.wait_for_count(queue, count, deadline=deadline)
    messages = await rabbit.get_many(queue, count)
    return [orjson.loads(message.body)["recipient"] for message in messages]


async def attempted(rabbit, recipients):
    """Return the recipients of all attempts that are told, once each has one.

    A result whose confirm was lost with the broker is told again: the same attempt, marked as redelivered.
    """
    told = []
    while len({document["recipient"] for document in told}) < len(recipients) or await rabbit.count("success"):
        told.append(orjson.loads((await rabbit.get("success", deadline=60)).body))
    assert [len(document["results"]) for document in told] == [1] * len(told)
    unmarked = Counter(document["recipient"] for document in told if "redelivered" not in document["results"][0])
    assert max(unmarked.values()) == 1
    attempts = {tuple(document["results"][0][name] for name in ("session", "messages", "time")): document
                for document in told}  # fmt: skip
    return [document["recipient"] for document in attempts.values()]


async def test_the_broker_is_restarted_under_load(system, sink, rabbit):
    receiver = await sink()
    mail = await system(
        receiver, worker={"sessions": 10, "drain_timeout": 5}, rabbitmq={"url": rabbit.url, "reconnect_delay": 0.1}
    )
    recipients = await load(rabbit, JOBS)
    await until(lambda: len(receiver.messages) > 20)
    await rabbit.close()

    await asyncio.to_thread(rabbit.server.restart)

    assert sorted(await attempted(rabbit, recipients)) == sorted(recipients)
    assert Counter(m.recipients[0].address for m in receiver.messages) == Counter(recipients)
    assert mail.seen.broker_events.count("connected") == 2
    assert "lost" in mail.seen.broker_events


async def test_a_connection_that_is_cut_loses_and_doubles_nothing(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver, worker={"sessions": 10, "drain_timeout": 5})
    recipients = await load(rabbit, JOBS)
    await until(lambda: len(receiver.messages) > 20)

    rabbit.server.ctl("close_all_connections", "--vhost", rabbit.vhost, "test")
    await rabbit.close()

    assert sorted(await attempted(rabbit, recipients)) == sorted(recipients)
    assert Counter(m.recipients[0].address for m in receiver.messages) == Counter(recipients)
    assert mail.seen.broker_events.count("connected") >= 2


async def test_two_equal_jobs_are_two_messages(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test")
    await mail.send(recipient="accept@a.test")

    await mail.get("success")
    await mail.get("success")
    assert len(receiver.messages) == 2


@pytest.fixture
async def worker_process(rabbit, knot, tmp_path):
    """Start `mailq run` as operators do; ends with the test."""
    running = []

    async def start(port, extra=""):
        http = free_port()
        path = tmp_path / "mailq.toml"
        path.write_text(
            f'rabbitmq.url = "{rabbit.url}"\ndelivery.port = {port}\ndelivery.ehlo = "worker.test"\n'
            f'dns.servers = ["{knot.server}"]\ndns.prohibited = []\nhttp.port = {http}\n{extra}'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mailq",
            "run",
            "--config",
            path,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"COLUMNS": "200"},
            cwd=tmp_path,
        )
        running.append(process)
        await until_ready(http)
        return process, http

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        with contextlib.suppress(ValueError):
            await process.communicate()


def page(port, path):
    return pages.text(f"http://127.0.0.1:{port}{path}")


async def until_ready(port):
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                if await asyncio.to_thread(page, port, "/readyz"):
                    return
            await asyncio.sleep(0.05)


async def test_sigterm_under_load_finishes_what_is_on_the_wire_and_returns_the_rest(worker_process, sink, rabbit):
    receiver = await sink()
    process, _ = await worker_process(receiver.port, "worker.sessions = 5\n")
    recipients = await load(rabbit, JOBS, local="slow-100")
    await until(lambda: len(receiver.messages) > 10)

    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 0, log
    taken = Counter(m.recipients[0].address for m in receiver.messages)
    assert max(taken.values()) == 1
    assert 0 < len(taken) < JOBS
    assert sorted(await reported(rabbit, len(taken))) == sorted(taken)
    assert await rabbit.count("outbox") == JOBS - len(taken)
    await worker_process(receiver.port)
    assert sorted([*taken, *await reported(rabbit, JOBS - len(taken))]) == sorted(recipients)
    assert len(receiver.messages) == JOBS


async def test_metrics_health_and_log_of_a_running_worker(worker_process, sink, rabbit):
    receiver = await sink()
    process, http = await worker_process(receiver.port)
    await load(rabbit, 3, local="accept")
    await reported(rabbit, 3)

    metrics = await asyncio.to_thread(page, http, "/metrics")
    assert 'mailq_attempts_total{result="accepted",state="message"} 3.0' in metrics
    assert await asyncio.to_thread(page, http, "/healthz")
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 20)
    lines = [orjson.loads(line) for line in log.splitlines()]
    attempts = [line for line in lines if line["event"] == "attempt"]
    assert len(attempts) == 3
    assert attempts[0]["state"] == "message"


async def test_a_wrong_configuration_ends_with_78_before_anything_is_consumed(tmp_path):
    path = tmp_path / "mailq.toml"
    path.write_text("[delivery]\nprot = 25\n")

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mailq", "run", "--config", path, stderr=asyncio.subprocess.PIPE
    )
    _, error = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 78
    assert b"delivery.prot" in error
    assert str(path).encode() in error


async def test_a_second_sigterm_makes_haste(worker_process, sink, rabbit):
    receiver = await sink()
    process, http = await worker_process(receiver.port, "worker.drain_timeout = 60\n")
    await load(rabbit, 1, local="stall-rcptto")
    await until(lambda: receiver.connections == 1)

    process.send_signal(signal.SIGTERM)
    # Two signals at once may arrive as one.
    readyz = f"http://127.0.0.1:{http}/readyz"
    while await asyncio.to_thread(pages.fetch, readyz) != (503, "draining\n"):  # noqa: ASYNC110 - a process has no event
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 15)

    assert process.returncode == 0
    await rabbit.wait_for_count("outbox", 1)


@pytest.mark.parametrize("content_encoding", [None, "gzip"])
async def test_large_jobs_in_memory_are_bounded(system, sink, rabbit, content_encoding):
    receiver = await sink()
    mail = await system(receiver, worker={"max_bytes": 2_000_000, "drain_timeout": 5}, limits=[{"connections": 1}])
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, mail.worker.bytes_in_memory)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    text = Random(1).randbytes(250_000).hex()  # takes half of its size when zipped
    for number in range(40):
        body = orjson.dumps({"recipient": f"slow-5+{number}@a.test", "mime": f"Subject: x\n\n{text}"})
        zipped = gzip.compress(body) if content_encoding else body
        await rabbit.publish("outbox", zipped, content_encoding=content_encoding)
    await rabbit_count(mail, 40)
    watching.cancel()

    assert 500_000 < most < 4_000_000
    assert len(receiver.messages) == 40


async def rabbit_count(mail, count):
    await mail.rabbit.wait_for_count("success", count, deadline=60)
