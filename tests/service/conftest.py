"""`mailq run --processes N` as operators start it, in a process of its own."""

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from support import pages
from support.system import MIME

from mailq.testbed.free_port import free_port

DEADLINE = 60.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "200"}


@dataclass
class Run:
    """A supervisor; `log` is what it and its processes have written."""

    process: asyncio.subprocess.Process
    port: int
    log: Path
    known: set[int] = field(default_factory=set)

    def lines(self, **facts):
        """Return the log lines with these facts."""
        whole = self.log.read_bytes().splitlines(keepends=True)
        lines = [orjson.loads(line) for line in whole if line.endswith(b"\n")]
        return [line for line in lines if line.items() >= facts.items()]

    def pids(self):
        """Return the process numbers of the newest workers, by index."""
        started = self.lines(event="process", change="started")
        self.known |= {line["pid"] for line in started}
        return {line["process"]: line["pid"] for line in started}

    async def page(self, path, *, want=None):
        """Return status and text of a page; with `want`, once it has that status."""
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(OSError):
                    answer = await asyncio.to_thread(pages.fetch, f"http://127.0.0.1:{self.port}{path}")
                    if want is None or answer[0] == want:
                        return answer
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)

    def living(self):
        """Return the process numbers of all workers ever started that live."""
        self.pids()
        return {pid for pid in self.known if alive(pid)}

    async def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), DEADLINE)


def alive(pid):
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
async def start(rabbit, tmp_path):
    """Start supervisors that end, with all their processes, with the test."""
    runs = []

    async def run(processes, *, receiver=1, ready=True, environ=None, **tables):
        port = free_port()
        tables["rabbitmq"] = {"url": rabbit.url, "reconnect_delay": 0.1} | tables.get("rabbitmq", {})
        tables["delivery"] = {"ehlo": "worker.test"} | tables.get("delivery", {})
        tables["worker"] = {"drain_timeout": 5} | tables.get("worker", {})
        tables |= {"http": {"port": port}, "dns": {"overrides": {"*": [f"127.0.0.1:{receiver}"]}}}
        variables = {
            f"MAILQ_{table}__{key}".upper(): value if isinstance(value, str) else orjson.dumps(value).decode()
            for table, keys in tables.items()
            for key, value in keys.items()
        }
        log = tmp_path / f"{port}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mailq", "run", "--processes", str(processes),
                stderr=output, env=ENVIRON | variables | (environ or {}), cwd=tmp_path,
            )  # fmt: skip
        runs.append(Run(process, port, log))
        if ready:
            await runs[-1].page("/readyz", want=200)
        return runs[-1]

    yield run
    for each in runs:
        if each.process.returncode is None:
            each.process.kill()
            await each.process.wait()
        for pid in each.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def publish(rabbit):
    async def jobs(count, local="accept", first=0):
        recipients = [f"{local}+{number}@a.test" for number in range(first, first + count)]
        for recipient in recipients:
            body = {"recipient": recipient, "envelope": "a@a.test", "mime": MIME, "id": recipient}
            await rabbit.publish("outbox", orjson.dumps(body))
        return recipients

    return jobs


@pytest.fixture
def reported(rabbit):
    """Return the recipients of all results in a queue, once there are `count`."""

    async def results(count, queue="success"):
        await rabbit.wait_for_count(queue, count, deadline=DEADLINE)
        return [orjson.loads(message.body)["recipient"] for message in await rabbit.get_many(queue, count)]

    return results
