"""`python -m bench --soak SECONDS`: a steady mixed load with receivers that misbehave, and the books afterwards.

Two worker processes deliver what `soak_mix` asks for to the receivers of `soak_sinks`, every job to its end.
Every second `soak_watch` looks at memory, descriptors and metrics. Then publishing stops, all queues run dry,
idle connections close, and `soak_books` compares: each job has exactly one final result, and the right one; what
receivers took, what queues hold and what metrics counted agree; memory stays and no descriptor is left.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import orjson

from bench import BenchError, soak_mix, soak_watch
from bench.options import Options
from bench.queues import Queues
from bench.servers import Server
from bench.soak_books import Books
from bench.soak_mix import Mix
from bench.soak_sinks import TAKEN
from bench.soak_watch import Page, Sample
from mailq.config.example import toml
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.topology import delay_queue
from mailq.testbed.free_port import free_port

PROCESSES = 2
IDLE_TIMEOUT = 2.0
"""Seconds that the worker keeps an unused connection."""

TIMEOUT = 2.0
"""Seconds that the worker waits in each state on the wire: a stalling receiver holds it up twice, not for minutes."""

LOOK = 0.1
"""Seconds between looks while something is waited for."""

SAMPLE = 1.0
"""Seconds between two samples."""

PATIENCE = 60.0
"""Seconds in which something must happen while queues run dry; a job for which nothing does is missing."""


class Soak:
    """One soak against a broker that runs already."""

    def __init__(self, options: Options, home: Path, url: str, say: Callable[[str], None]) -> None:
        assert options.soak is not None
        self._seconds = options.soak
        self._rate = options.soak_rate
        self._home = home
        self._say = say
        self._config = RabbitConfig.model_validate({"url": url})
        self._ports = {name: free_port() for name in soak_mix.SITES}
        self._http = free_port()
        self._mix = Mix()
        self._finals: dict[str, Counter[bool]] = {}
        self._ended = 0
        self._samples: list[Sample] = []
        self._fallen: set[str] = set()
        self._page: Page = {}
        self._queues: Queues
        self._worker: Server

    async def run(self) -> Books:
        """Load, run dry, end everything, and return the books.

        Raises:
            BenchError: a process ended or did not begin, or the metrics page is gone.
            BrokerError: the broker was lost.
        """
        async with Queues.open(self._config) as queues, self._consuming():
            self._queues = queues
            with ExitStack() as stack:
                sinks = stack.enter_context(self._sinks())
                for name, site in soak_mix.SITES.items():
                    if site.listens:
                        sinks.listening(self._ports[name])
                self._worker = stack.enter_context(self._mailq())
                await self._until(self._ready, "waiting for both processes to consume")
                idle = self._sample(0.0)
                await self._load()
                await self._run_dry()
                rest = await self._idle(idle.descriptors)
                statuses = {"worker": self._worker.stop(), "receivers": sinks.stop()}
            return Books(
                seconds=self._seconds,
                made=tuple(self._mix.made),
                finals=self._finals,
                taken=Counter((self._home / TAKEN).read_text("ascii").split()),
                depths=await self._depths(),
                page=self._page,
                fallen=tuple(sorted(self._fallen)),
                samples=tuple(self._samples),
                idle=(idle, rest),
                statuses=statuses,
            )

    async def _load(self) -> None:
        """Publish at a steady rate, and look on."""
        self._say(f"{self._rate:,} jobs/s of a mixed load for {self._seconds:g} s")
        looking = asyncio.create_task(self._look_on())
        # It takes whatever has `take`.
        publishing = asyncio.create_task(self._queues.paced(self._mix, self._rate, self._seconds))
        try:
            await asyncio.wait({looking, publishing}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
            await publishing
        finally:
            looking.cancel()
            publishing.cancel()
            await asyncio.gather(looking, publishing, return_exceptions=True)

    async def _look_on(self) -> None:
        began, told = time.monotonic(), 0.0
        while True:
            await self._look()
            now = time.monotonic() - began
            self._samples.append(self._sample(now))
            if now - told >= PATIENCE:
                told = now
                self._say(f"{self._ended:,} of {len(self._mix.made):,} done, {self._samples[-1].rss_mb:.1f} MB")
            await asyncio.sleep(SAMPLE)

    async def _look(self) -> None:
        self._worker.check()
        page = await soak_watch.page(self._http)
        self._fallen.update(soak_watch.fallen(self._page, page))
        self._page = page

    def _sample(self, moment: float) -> Sample:
        return soak_watch.sample(self._worker.pid, moment)

    async def _run_dry(self) -> None:
        """Wait until every job has come to its end, or for as long as anything happens."""
        self._say(f"running dry: {self._ended:,} of {len(self._mix.made):,} done")
        ended, deadline = self._ended, time.monotonic() + PATIENCE
        while not (self._ended >= len(self._mix.made) and await self._dry()):
            if ended != self._ended:
                ended, deadline = self._ended, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                self._say("jobs are missing, nothing happens any more")
                return
            await self._look()
            await asyncio.sleep(LOOK)

    async def _dry(self) -> bool:
        """Tell whether nothing waits anywhere and nothing is under way."""
        names = [self._config.outbox, self._config.results, *(delay_queue(self._config.outbox, step) for step in STEPS)]
        return not any([await self._queues.depth(name) for name in names]) and not self._page["mailq_in_flight"]

    async def _idle(self, wanted: int) -> Sample:
        """Return a sample once all connections are closed and no descriptor is left open, or when it takes too long."""
        deadline = time.monotonic() + IDLE_TIMEOUT + TIMEOUT + 10
        while True:
            await self._look()
            sample = self._sample(0.0)
            closed = sample.descriptors <= wanted and not self._page["mailq_sessions"]
            if closed or time.monotonic() > deadline:
                return sample
            await asyncio.sleep(LOOK)

    async def _ready(self) -> bool:
        return await self._queues.consumers() == PROCESSES

    async def _until(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not await true():
            self._worker.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what} took more than {PATIENCE:g} s:\n{self._worker.words()}")
            await asyncio.sleep(LOOK)

    async def _depths(self) -> dict[str, int]:
        config = self._config
        return {name: await self._queues.depth(name) for name in (config.success, config.failures, config.retry)} | {
            "poison": await self._queues.depth(config.poison)
        }

    @asynccontextmanager
    async def _consuming(self) -> AsyncIterator[None]:
        """Consume `results` meanwhile, and note of each job how often it ended how."""
        config = self._config
        connection = await Connection.open(
            Address.of(config),
            "mailq soak",
            heartbeat=config.heartbeat,
            connect_timeout=config.connect_timeout,
            answer_timeout=config.confirm_timeout,
        )

        def take(consumed: Consumed) -> None:
            document = orjson.loads(consumed.body)
            result = document["results"][-1]
            delivered = (result["state"], result["result"]) == ("message", "accepted")
            self._finals.setdefault(document["id"], Counter())[delivered] += 1
            self._ended += 1
            consumer.ack(consumed.tag)

        consumer = Consumer(connection, config.results, 1000, take)
        try:
            await consumer.start()
            yield
        finally:
            consumer.flush()
            await connection.close()

    def _sinks(self) -> Server:
        pairs = [f"{name}={port}" for name, port in self._ports.items()]
        return Server("receivers", [sys.executable, "-m", "bench.soak_sinks", str(self._home), *pairs], self._home)

    def _mailq(self) -> Server:
        """Return `mailq run` with two processes and everything on; only waiting is shorter than in production."""
        states = ("connect", "intro", "ehlo", "helo", "starttls", "mailfrom", "rcptto", "data", "message", "quit")
        overrides = {soak_mix.domain(name): [f"127.0.0.1:{port}"] for name, port in self._ports.items()}
        tables: Mapping[str, Mapping[str, object]] = {
            "delivery": {"ehlo": "worker.soak.test", "retries": [1], "max_attempts": soak_mix.ATTEMPTS},
            "timeouts": dict.fromkeys(states, TIMEOUT),
            "dns": {"overrides": overrides},
            "http": {"port": self._http},
            "worker": {"journal_dir": str(self._home / "journal")},
        }
        limits = [*soak_mix.limits(self._rate), {"idle_timeout": IDLE_TIMEOUT}]
        text = f"limits = {toml(limits)}\n"
        for name, table in tables.items():
            text += f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items())
        file = self._home / "mailq.toml"
        file.write_text(text)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
        # The URL may hold a password: it goes by the environment, and nothing else of ours does.
        environ["MAILQ_RABBITMQ__URL"] = self._config.url.get_secret_value()
        command = [sys.executable, "-m", "mailq", "run", "--config", str(file), "--processes", str(PROCESSES)]
        return Server("worker", command, self._home, environ)
