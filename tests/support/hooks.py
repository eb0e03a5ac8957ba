"""A receiver of webhooks that misbehaves as told, documents to tell it of, and an observer that remembers."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from mailq.core.broker.messages import Publication
from mailq.core.webhooks.endpoint import AnswerMeaning
from mailq.edges.amqp.broker import Broker
from mailq.testbed.free_port import free_port
from support import pages

SECRET = "a secret of good length"
DEADLINE = 12.0


async def until(condition, deadline=DEADLINE):
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def ready(port):
    """Wait until `mailq webhooks` is ready."""
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError):
                return await asyncio.to_thread(pages.text, f"http://127.0.0.1:{port}/readyz")
            await asyncio.sleep(0.05)


@dataclass
class Request:
    at: float
    path: str
    headers: dict
    body: bytes

    @property
    def events(self):
        content = orjson.loads(self.body)
        return content if isinstance(content, list) else [content]


@dataclass
class Receiver:
    """A real HTTP server; `answers` are given first, one each, then `answer` always.

    An answer is a status, (status, headers), or a function of the request that may wait.
    """

    port: int = field(default_factory=free_port)
    answer: object = 200
    answers: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    taken: list = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    runner: web.AppRunner | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def stop(self):
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def handle(self, request):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            seen = Request(time.monotonic(), request.path, dict(request.headers), await request.read())
            self.requests.append(seen)
            answer = self.answers.pop(0) if self.answers else self.answer
            if callable(answer):
                answer = answer(seen)
            if asyncio.iscoroutine(answer):
                answer = await answer
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            if status // 100 == 2:
                self.taken += seen.events
            return web.Response(status=status, headers=headers, text="thanks")
        finally:
            self.under_way -= 1

    def jobs(self):
        """Return (job, attempt) of the events taken, in order."""
        return [(each["data"]["queueId"], each["x-mailq"]["result"]["attempt"]) for each in self.taken]


class Watching:
    """Remembers what it sees."""

    def __init__(self):
        self.pauses, self.resumes, self.ended, self.deaths, self.events, self.answers = [], [], [], [], [], []
        self.bugs = []

    def answered(self, endpoint, answer, events, seconds):
        self.answers.append((endpoint, answer))

    def paused(self, endpoint, seconds, answer):
        self.pauses.append((endpoint, seconds, str(answer)))

    def resumed(self, endpoint):
        self.resumes.append(endpoint)

    def gone(self, endpoint):
        self.ended.append(endpoint)

    def dead(self, endpoint, reason):
        self.deaths.append((endpoint, reason))

    def bug(self, endpoint, error):
        self.bugs.append((endpoint, type(error).__name__))

    def hooks_broker(self, queue, event, detail):
        self.events.append((queue, event))

    def count(self, meaning):
        return sum(answer.meaning is AnswerMeaning(meaning) for _, answer in self.answers)


def document(job, attempt=1, *, last="accepted", **more):
    """Return a document as a result queue has it, after so many attempts."""
    results = [
        {"state": "rcptto", "result": "error", "time": f"2030-01-01 12:0{number}:00", "attempt": number + 1,
         "mta": "mx.b.test", "from": "127.0.0.1", "to": "127.0.0.2", "code": 451, "status": "4.7.1",
         "description": "later"}
        for number in range(attempt)
    ]  # fmt: skip
    if last == "accepted":
        results[-1] |= {"state": "message", "result": "accepted", "code": 250, "status": "2.0.0", "description": "ok"}
    if last == "failed":
        results[-1] |= {"code": 550, "status": "5.1.1", "description": "no such user"}
    found = {"id": job, "envelope": "a@a.test", "recipient": f"{job}@b.test", "results": results, **more}
    return found | ({"nextattempt": {"time": "2030-01-01 13:00:00"}} if last == "retry" else {})


KEYS = {"accepted": "success", "retry": "retry.soft.greylisted", "failed": "failure.hard.unknown"}


@dataclass
class Hooks:
    """Running webhooks, and a way to have results published."""

    rabbit: object
    webhooks: object
    task: asyncio.Task
    watching: Watching
    broker: Broker

    async def tell(self, job, attempt=1, *, last="accepted", **more):
        body = orjson.dumps(document(job, attempt, last=last, **more))
        await self.broker.publish([Publication("mailq", KEYS[last], body, message_id=job)])

    async def stop(self):
        self.webhooks.stop()
        await asyncio.wait_for(self.task, DEADLINE)
