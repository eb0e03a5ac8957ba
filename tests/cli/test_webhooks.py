"""`mailq webhooks` as operators start it: it ends well, it may be killed, and its mistakes are told in one line."""

import asyncio
import os
import signal
import sys

import orjson
import pytest
from support import pages
from support.hooks import SECRET, Receiver, document, ready, until

from mailq.cli import main
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.broker import Broker
from mailq.testbed.free_port import free_port

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "200"}


class Silent:
    def broker(self, event, detail): ...


@pytest.fixture
async def crm():
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def start():
    """Start `mailq webhooks`; processes that are left are killed by their number."""
    running = []

    async def run(*arguments, endpoints, url="amqp://127.0.0.1:1/", **webhooks):
        variables = {
            "MAILQ_RABBITMQ__URL": url,
            "MAILQ_WEBHOOKS__ENDPOINTS": orjson.dumps(endpoints).decode(),
            **{f"MAILQ_WEBHOOKS__{key.upper()}": str(value) for key, value in webhooks.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "webhooks", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENVIRON | variables,
        )  # fmt: skip
        running.append(process)
        return process

    yield run
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def endpoint(crm, **more):
    return {"url": crm.url, "secrets": [SECRET], "allow_http": True, "allow_private": True} | more


async def test_killed_in_the_middle_it_loses_nothing_and_sigterm_ends_it(start, crm, rabbit):
    async def slowly(_):
        await asyncio.sleep(0.02)
        return 200

    crm.answer = slowly
    port = free_port()
    settings = {"endpoints": {"crm": endpoint(crm)}, "url": rabbit.url, "port": port}
    first = await start(**settings)
    await ready(port)
    broker = await Broker.open(rabbit.config(), 1, Silent())
    await broker.publish(
        [Publication("mailq", "success", orjson.dumps(document(f"job-{number}"))) for number in range(200)]
    )
    await broker.close()
    await until(lambda: len(crm.taken) >= 20)
    first.kill()
    await first.communicate()
    assert len(crm.taken) < 200
    second = await start(**settings)
    await until(lambda: {job for job, _ in crm.jobs()} == {f"job-{number}" for number in range(200)}, 20)
    assert len(crm.taken) <= 200 + 4, "only what was under way is sent twice"
    page = await asyncio.to_thread(pages.text, f"http://127.0.0.1:{port}/metrics")
    assert 'mailq_webhook_requests_total{answer="done",endpoint="crm"}' in page
    second.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode == 0
    assert b"webhook_unsafe" in log
    assert SECRET.encode() not in log
    assert crm.url.encode() not in log
    await rabbit.wait_for_count("webhooks.crm", 0)


async def test_sighup_ends_nothing_and_says_that_a_restart_is_needed(start, crm, rabbit):
    port = free_port()
    process = await start(endpoints={"crm": endpoint(crm)}, url=rabbit.url, port=port)
    await ready(port)
    process.send_signal(signal.SIGHUP)
    line = await asyncio.wait_for(process.stderr.readuntil(b'"reload"'), 20)
    assert b"Traceback" not in line
    broker = await Broker.open(rabbit.config(), 1, Silent())
    await broker.publish([Publication("mailq", "success", orjson.dumps(document("job")))])
    await broker.close()
    await until(lambda: crm.taken)
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b"restart it" in log


async def test_a_sample(start, crm):
    process = await start("--test", "crm", endpoints={"crm": endpoint(crm)})
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"crm: 200 OK\n")
    (event,) = crm.taken
    assert (event["event"], event["x-mailq"]["tags"]) == ("messageSent", ["test"])
    crm.answer = 500
    process = await start("--test", "crm", endpoints={"crm": endpoint(crm)})
    out, _ = await process.communicate()
    assert (process.returncode, out) == (1, b"crm: 500 Internal Server Error\n")


def fail(monkeypatch, capsys, *arguments, endpoints):
    """Run the command here, where it does not get as far as a loop; returns its status and complaint."""
    monkeypatch.setenv("MAILQ_WEBHOOKS__ENDPOINTS", orjson.dumps(endpoints).decode())
    with pytest.raises(SystemExit) as ended:
        main(["webhooks", *arguments])
    return ended.value.code, capsys.readouterr().err


def test_mistakes_are_told(monkeypatch, capsys):
    status, complaint = fail(monkeypatch, capsys, endpoints={})
    assert (status, complaint.count("\n")) == (78, 1)
    assert "webhooks.endpoints" in complaint
    status, complaint = fail(monkeypatch, capsys, endpoints={"crm": {"url": "http://a.test/secret-path"}})
    assert status == 78
    assert "webhooks.endpoints" in complaint
    assert "allow_http" in complaint
    assert "secret-path" not in complaint
    status, complaint = fail(monkeypatch, capsys, "--test", "other", endpoints={"crm": {"url": "https://a.test/"}})
    assert status == 2
    assert "crm" in complaint
