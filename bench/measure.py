"""The phases of a bench of mailq, one after the other with the same worker process.

Drain: the outbox is filled before the worker starts; the clock runs from its first consumer to the
last result. Paced: a moderate rate, at most half of what it drained, with results consumed at once: the
latency from publication to result. Live: as fast as the broker takes them while the worker delivers.
Every phase ends by itself or at its limit, and one wrong result voids all figures.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from bench import BenchError, servers
from bench.jobs import Jobs
from bench.options import Options
from bench.queues import Queues
from bench.usage import busy_seconds, cpu_seconds, cpu_snapshot, peak_rss_mb
from mailq.config.rabbitmq import RabbitConfig

LOOK = 0.02
"""Seconds between two looks at the queues; the clock may be so much late."""

QUIET_CPU = 0.1
QUIET_SECONDS = 0.5
QUIET_LIMIT = 10.0
"""The broker has settled when it used less than this share of a core for so long; waited for at most so long."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Jobs delivered in so many seconds, and the CPU seconds that each process tree spent on them.

    `elsewhere` is the number of cores that processes with no part in it kept busy meanwhile.
    """

    jobs: int
    seconds: float
    cpu: Mapping[str, float]
    elsewhere: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.jobs / self.seconds

    def cpu_per_1000(self, name: str) -> float:
        """CPU seconds of a process tree for 1,000 messages."""
        return self.cpu[name] / self.jobs * 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of mailq came to; latencies in milliseconds, memory in 1,000,000 octets."""

    drain: Phase
    complete: bool
    pace: float
    latencies: list[float]
    live: Phase | None
    peak_rss_mb: float
    round_trips_per_message: float | None = None

    def percentile(self, share: float) -> float:
        """Return the latency that so many of all jobs had at most (nearest rank)."""
        ordered = sorted(self.latencies)
        return ordered[max(0, round(share * len(ordered)) - 1)]


class Measurement:
    """One run of mailq against a broker that runs already."""

    def __init__(self, options: Options, home: Path, url: str, broker: int, say: Callable[[str], None]) -> None:
        self._options = options
        self._home = home
        self._url = url
        self._say = say
        self._pids = {"broker": broker}
        self._jobs = Jobs(options.size, options.domains)
        self._sent = 0
        self._queues: Queues
        self._worker: servers.Server

    async def run(self) -> Figures:
        """Go through all phases.

        Raises:
            BenchError: a process ended, a job was not delivered, or a phase did not come to its end.
            BrokerError: the broker was lost.
        """
        options = self._options
        async with Queues.open(RabbitConfig.model_validate({"url": self._url})) as queues:
            self._queues = queues
            self._say(f"filling the outbox with {options.jobs:,} jobs")
            await self._within(queues.fill(self._jobs.take(options.jobs)), "filling the outbox")
            await self._quiet()
            with ExitStack() as stack:
                port, receivers = servers.receiver(stack, self._home, options)
                self._pids |= receivers
                self._worker = servers.worker(self._home, options, self._url, port)
                stack.enter_context(self._worker)
                self._pids["worker"] = self._worker.pid
                figures = await self._phases()
                if status := self._worker.stop():
                    raise BenchError(f"the worker ended with status {status}:\n{self._worker.words()}")
        if options.relayed:
            trips = orjson.loads((self._home / "relay.log").read_bytes().splitlines()[-1])["round_trips"]
            return replace(figures, round_trips_per_message=trips / (self._sent + len(figures.latencies)))
        return figures

    async def _phases(self) -> Figures:
        options, queues = self._options, self._queues
        await self._within(self._consuming(), "waiting for the worker to consume")
        self._say("the worker consumes")
        drain = await self._phase(None)
        complete = drain.jobs == options.jobs
        await queues.empty()
        pace = min(options.pace, drain.rate / 2)
        self._say(f"{drain.rate:,.0f} messages/s; now {pace:,.0f}/s for {options.pace_seconds:g} s")
        latencies = await self._paced(pace)
        await queues.empty()
        live = None
        if options.live:
            await self._quiet()
            self._say(f"injecting {options.jobs:,} jobs while they are delivered")
            live = await self._phase(queues.fill(self._jobs.take(options.jobs)))
            await queues.empty()
        return Figures(drain, complete, pace, latencies, live, peak_rss_mb(self._worker.pid))

    async def _phase(self, injecting: Awaitable[None] | None) -> Phase:
        """Time the delivery of all jobs, those that are injected meanwhile or those that are there."""
        names = {**self._pids, "bench": 0}
        before, busy, began = self._cpu(), busy_seconds(), time.perf_counter()
        if injecting is not None:
            await self._within(injecting, "injecting")
        delivered = await self._results(self._options.jobs, began + self._options.limit)
        seconds, busy = time.perf_counter() - began, busy_seconds() - busy
        after = self._cpu()
        cpu = {name: after[name] - before[name] for name in names}
        if delivered < self._options.jobs:
            rest = self._options.jobs - await self._queues.give_up()
            await self._results(rest, time.perf_counter() + self._options.limit, must=True)
            self._sent += rest
        else:
            self._sent += delivered
        return Phase(delivered, seconds, cpu, max(0.0, (busy - sum(cpu.values())) / seconds))

    def _cpu(self) -> dict[str, float]:
        own = time.process_time()  # without its children: those are named
        return {**cpu_snapshot(self._pids), "bench": own}

    async def _results(self, wanted: int, deadline: float, *, must: bool = False) -> int:
        """Wait until there are so many results, or for so long; returns how many there are."""
        while (count := await self._queues.results()) < wanted:
            self._worker.check()
            if time.perf_counter() > deadline:
                if must:
                    await self._queues.empty()  # knows better why, if they failed
                    raise BenchError(f"{wanted - count} of {wanted} results do not arrive:\n{self._worker.words()}")
                break
            await asyncio.sleep(LOOK)
        return count

    async def _paced(self, pace: float) -> list[float]:
        """Return the latencies of jobs published at a steady pace."""
        total = round(pace * self._options.pace_seconds)
        async with self._queues.latencies() as found:
            await self._queues.paced(self._jobs, pace, self._options.pace_seconds)
            deadline = time.monotonic() + self._options.limit
            while len(found) < total:
                self._worker.check()
                if time.monotonic() > deadline:
                    raise BenchError(f"{total - len(found)} of {total} results of paced jobs do not arrive")
                await asyncio.sleep(LOOK)
        return found

    async def _consuming(self) -> None:
        while not await self._queues.consumers():
            self._worker.check()
            await asyncio.sleep(LOOK / 4)

    async def _quiet(self) -> None:
        """Wait until the broker has done what it puts off, so that nothing of it falls into a figure."""
        os.sync()
        deadline = time.monotonic() + QUIET_LIMIT
        while time.monotonic() < deadline:
            before = cpu_seconds(self._pids["broker"])
            await asyncio.sleep(QUIET_SECONDS)
            if cpu_seconds(self._pids["broker"]) - before < QUIET_CPU * QUIET_SECONDS:
                break

    async def _within(self, work: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(self._options.limit):
                await work
        except TimeoutError:
            raise BenchError(f"{what} took more than {self._options.limit:g} s (--limit)") from None
