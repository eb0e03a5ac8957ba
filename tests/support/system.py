"""A whole mailq in a test: real RabbitMQ, real DNS, a real receiver, and the worker in the test's own loop.

    mail = await system(receiver, delivery={"retries": [1]})
    await mail.send(recipient="accept@a.test")
    document = await mail.get("results")

`system` is a factory: it gives a running `System`, ended with the test. Every document taken from a
result queue is checked against `schemas/message.json` on the way, its last result against `result.json`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from mailq.config import Config
from mailq.core.broker.messages import Publication
from mailq.core.broker.provenance import HEADER, Provenance
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result
from mailq.edges.amqp.address import outbox_of
from mailq.service.build import build, journal_of
from mailq.sink.server import Sink
from mailq.worker.worker import Worker
from support.limits import private_table
from support.private_knot import PrivateKnot
from support.rabbitmq import Rabbit

ROOT = Path(__file__).parents[2]

MIME = "From: Anna <a@a.test>\nTo: b@a.test, c@a.test\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\nhello\n"


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((ROOT / "schemas" / f"{name}.json").read_text()))


def sent_back(rabbit: Rabbit, body: bytes, message_id: str | None = None, **provenance: Any) -> dict[str, Any]:
    """Return the headers of a message that mailq has sent back to the outbox with that mark, or those flags."""
    publication = Publication("", "", body, message_id=message_id, headers={HEADER: Provenance(**provenance)})
    return dict(outbox_of(rabbit.config()).signed(publication).headers or {})


@dataclass
class Seen:
    """An observer that keeps what it sees."""

    attempts: list[tuple[Job, Result]] = field(default_factory=list)
    broker_events: list[str] = field(default_factory=list)
    bugs: list[BaseException] = field(default_factory=list)
    poison: list[str] = field(default_factory=list)
    came: int = 0
    ends: list[str] = field(default_factory=list)
    unwritable: str | None = None
    parks: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    session_limits: list[int] = field(default_factory=list)
    stall: bool = False

    def consumed(self):
        self.came += 1

    def ended(self, end):
        self.ends.append(str(end))

    def journal(self, trouble, notes, stats):
        self.unwritable = trouble

    def attempted(self, job, result, verdict):
        self.attempts.append((job, result))

    def bug(self, where, error):
        self.bugs.append(error)

    def broker(self, event, detail):
        self.broker_events.append(event)

    def poisoned(self, reason):
        self.poison.append(reason)

    def delayed(self, job, until, cause, reason):
        self.parks += 1
        self.causes[cause] += 1

    def stalled(self, *, stalled):
        self.stall = stalled

    def refused(self, result): ...

    def published(self, routing_key, count): ...

    def in_flight(self, jobs, sessions): ...

    def session_limit(self, host, messages):
        self.session_limits.append(messages)


@dataclass
class System:
    """The running worker and the queues around it."""

    rabbit: Rabbit
    config: Config
    worker: Worker
    task: asyncio.Task[None]
    seen: Seen

    async def send(self, *, properties: dict[str, Any] | None = None, **document: Any) -> None:
        """Publish a job; `mime` and `envelope` have defaults. Without an `id` and a message id it has no identity."""
        job = {"envelope": "a@a.test", "mime": MIME, **document}
        if properties is None and "id" not in document:
            await self.rabbit.publish_unnamed("outbox", orjson.dumps(job))
        else:
            await self.rabbit.publish("outbox", orjson.dumps(job), **(properties or {}))

    async def get(self, queue: str, *, deadline: float = 20.0) -> dict[str, Any]:
        """Take one document from a result queue, valid by the schema."""
        document = orjson.loads((await self.rabbit.get(queue, deadline=deadline)).body)
        validator("message").validate(document)
        validator("result").validate(document["results"][-1])
        return document

    async def stop(self, deadline: float = 20.0) -> None:
        """Drain the worker."""
        self.worker.stop()
        await asyncio.wait_for(self.task, deadline)


Factory = Callable[..., Awaitable[System]]


@pytest.fixture
async def system(rabbit: Rabbit, knot: PrivateKnot, tmp_path: Path) -> AsyncIterator[Factory]:
    running: list[System] = []

    async def start(receiver: Sink | int, **tables: Any) -> System:
        port = receiver if isinstance(receiver, int) else receiver.port
        tables["delivery"] = {"port": port, "retry_jitter": 0, "ehlo": "worker.test"} | tables.get("delivery", {})
        tables["dns"] = {"servers": [knot.server], "prohibited": []} | tables.get("dns", {})
        tables["rabbitmq"] = {"url": rabbit.url, "reconnect_delay": 0.1} | tables.get("rabbitmq", {})
        tables["worker"] = {"drain_timeout": 5, "journal_dir": str(tmp_path / "journal")} | tables.get("worker", {})
        config = Config.model_validate(tables)
        seen = Seen()
        worker = build(config, seen, private_table(), journal_of(config))
        task = asyncio.create_task(worker.run())
        running.append(System(rabbit, config, worker, task, seen))
        await until(lambda: worker.not_ready is None or task.done())
        if task.done():
            task.result()
        return running[-1]

    yield start
    for each in running:
        if not each.task.done():
            await each.stop()
        assert each.seen.bugs == []
        assert each.seen.came == len(each.seen.ends)  # the equation: what was consumed has ended


async def until(true: Callable[[], bool], deadline: float = 20.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(deadline):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def stable(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what differs from run to run; each such property must be there."""
    volatile = ("time", "timing", "session", "from_port")
    assert all(name in result for name in volatile)
    return {name: value for name, value in result.items() if name not in volatile}
