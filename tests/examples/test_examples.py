"""The programs in `examples/`: against a real RabbitMQ, a whole worker and a receiving server."""

import asyncio
import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from support.node import ROOT, workshop
from support.proxy import Proxy

from mailq.contracts.examples import EXAMPLES

DEADLINE = 30.0
LANGUAGES = ("python", "javascript")
UNKNOWN = {"state": "rcptto", "result": "error", "attempt": 1, "code": 550, "status": "5.1.1", "category": "hard"}


@dataclass
class Program:
    """One of the examples, running."""

    process: asyncio.subprocess.Process

    async def end(self):
        """Wait for its end; returns status, lines printed, and what went to standard error."""
        out, err = await asyncio.wait_for(self.process.communicate(), DEADLINE)
        return self.process.returncode, out.decode().splitlines(), err.decode()

    async def lines(self):
        """Wait for a good end and return the lines that it printed."""
        status, lines, errors = await self.end()
        assert (status, errors) == (0, "")
        return lines


@pytest.fixture
async def start(rabbit, tmp_path: Path):
    """Start an example: `await start("python", "consumer", "results", "2")`."""
    directory = workshop(tmp_path)
    running = []

    async def run(language, name, *arguments, url=None):
        command = [sys.executable, f"{name}.py"] if language == "python" else ["node", f"{name}.js"]
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "AMQP_URL": url or rabbit.url, "PYTHONWARNINGS": "error"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        running.append(process)
        return Program(process)

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def consumers(rabbit, queue, count):
    """Wait until so many consumers have the queue."""
    channel = await rabbit.channel()
    async with asyncio.timeout(DEADLINE):
        while (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count != count:  # noqa: ASYNC110 - the broker tells no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("file", [file.name for file in (ROOT / "examples").iterdir() if file.suffix in {".py", ".js"}])
def test_an_example_is_one_page(file):
    lines = (ROOT / "examples" / file).read_text().splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120


def test_versions_are_exact():
    package = json.loads((ROOT / "examples/package.json").read_text())
    for version in (package["dependencies"] | package["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_from_the_producer_to_the_consumer(system, sink, start, language):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1]})
    recipients = ["accept@a.test", "reject-550@a.test", "greylist@a.test"]
    final = await start(language, "consumer", "results", "3")
    later = await start(language, "consumer", "retry", "1")

    published = await (await start(language, "producer", *recipients)).lines()

    assert [line.split()[0] for line in published] == ["published"] * 3
    assert [line.split()[2] for line in published] == recipients
    assert set(await final.lines()) == {
        "accept@a.test 1 250 2.0.0 delivered",
        "reject-550@a.test 1 550 5.1.1 remove the address",
        "greylist@a.test 2 250 2.0.0 delivered",
    }
    [again] = await later.lines()
    assert re.fullmatch(r"greylist@a\.test 1 451 4\.7\.1 tried again at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", again)
    assert await mail.rabbit.count("results") == await mail.rabbit.count("retry") == 0

    publications = [*await mail.rabbit.get_many("success", 2), await mail.rabbit.get("failures")]
    identities = {line.split()[2]: line.split()[1] for line in published}
    assert {
        json.loads(publication.body)["recipient"]: publication.message_id for publication in publications
    } == identities
    for message in receiver.messages:
        check_mail(message.content, message.recipient)


def check_mail(content, recipient):
    """The message is 7-bit, has CRLF everywhere, and says in UTF-8 what it should."""
    assert content.isascii()
    assert content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")
    assert max(map(len, content.split(b"\r\n"))) <= 78
    mail = message_from_bytes(content, policy=policy.default)
    assert mail.defects == []
    assert mail["Subject"] == "Grüße"
    assert mail["From"].addresses[0].display_name == "Café"
    assert mail["To"] == recipient
    assert mail["Date"].datetime.tzinfo is not None
    assert mail["Message-ID"].endswith("@example.com>")
    assert mail.get_content().splitlines() == ["Hello, and Grüße!"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_producer_knows_of_a_job_that_no_queue_has_taken(start, language):
    status, lines, errors = await (await start(language, "producer", "jo@example.org")).end()

    assert status == 1
    assert lines == []
    assert "no queue has taken the job for jo@example.org" in errors


@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_a_consumer_decides(rabbit, start, language):
    await rabbit.declare("mine")
    last = {
        "delivered": EXAMPLES["message"][0],
        "remove the address": {"results": [UNKNOWN]},
        "tried again at 2030-01-31 12:05:02": EXAMPLES["message"][2],
        "given up": {"results": [UNKNOWN | {"status": "5.7.1", "category": "block"}]},
    }
    more = [
        (UNKNOWN | {"status": "5.1.10", "state": "dns", "code": 556}, "remove the address"),
        (UNKNOWN | {"status": "5.1.2", "state": "dns"}, "remove the address"),
        (UNKNOWN | {"status": "5.1.8", "state": "mailfrom", "category": "admin"}, "given up"),
        (UNKNOWN | {"status": "4.2.2", "code": 452, "expired": True, "category": "soft"}, "given up"),
        (UNKNOWN | {"status": "5.4.7", "state": "process", "result": "timeout", "category": "soft"}, "given up"),
        (UNKNOWN | {"dryrun": True}, "would be refused"),
        (UNKNOWN | {"dryrun": True, "result": "accepted", "code": 250, "status": "2.1.5"}, "would be taken"),
    ]
    table = [*((document, decision) for decision, document in last.items())]
    table += [({"results": [result]}, decision) for result, decision in more]
    for document, _ in table:
        await rabbit.publish("mine", json.dumps({"recipient": "jo@example.org", **document}).encode())

    lines = await (await start(language, "consumer", "mine", str(len(table)))).lines()

    assert [line.split(" ", 4)[4] for line in lines] == [decision for _, decision in table]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_consumer_leaves_what_it_has_not_handled(rabbit, start, language):
    await rabbit.declare("mine")
    for number in range(5):
        await rabbit.publish("mine", json.dumps({"recipient": f"{number}@a.test", "results": [UNKNOWN]}).encode())

    lines = await (await start(language, "consumer", "mine", "2")).lines()

    assert [line.split()[0] for line in lines] == ["0@a.test", "1@a.test"]
    await rabbit.wait_for_count("mine", 3)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("trouble", ["deleted", "cut"])
async def test_a_consumer_ends_when_it_cannot_consume_any_more(rabbit, start, language, trouble):
    await rabbit.declare("mine")
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        program = await start(language, "consumer", "mine", url=rabbit.url_at(proxy.port))
        await consumers(rabbit, "mine", 1)

        if trouble == "cut":
            proxy.cut()
        else:
            await rabbit.delete("mine")

        assert (await program.end())[0] == 1
