"""The flow alone: jobs from a broker that is none, to a receiver that is none, in one process.

What is left is what mailq's own code costs a message, without kernel, broker and receiver: the figure to
compare when something on the hot path changes, because it moves by a few percent where the whole bench moves by twenty.
Metrics, log lines (to /dev/null) and the journal are on. Names come from `dns.overrides`.

    python -m bench.flow [--jobs 5000] [--size 10000] [--rounds 15] [--profile]
"""

import argparse
import asyncio
import cProfile
import math
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import uvloop

from bench.jobs import Jobs
from mailq.config import Config
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.smtp.reply import Reply
from mailq.core.traffic.routes import Source, Target
from mailq.delivery.smtp import session_pool
from mailq.edges.journal import FileJournal
from mailq.edges.limits import SharedLimits
from mailq.edges.log import configure
from mailq.edges.metrics import Metrics
from mailq.edges.observers import Observers
from mailq.ports.broker import BrokerError
from mailq.service import build
from mailq.service.run import tune_process

EHLO = Reply(250, None, "sink.bench.test\nPIPELINING\nSIZE 10240000\n8BITMIME\nENHANCEDSTATUSCODES")
ANSWERS = (Reply(250, "2.1.0", "Ok"), Reply(250, "2.1.5", "Ok"), Reply(354, None, "End data with <CR><LF>.<CR><LF>"))
TAKEN = Reply(250, "2.0.0", "Ok")
PREFETCH = 500


class Wire:
    """A receiver that takes everything, one turn of the event loop later."""

    local, local_port = "127.0.0.1", 40_000

    def __init__(self) -> None:
        self.alive = True
        self.sent = 0
        self._replies: list[Reply] = []

    async def bind(self, source: Source) -> None:
        """Do nothing."""

    async def connect(self) -> None:
        """Do nothing."""

    async def greeting(self) -> Reply:
        """Return a greeting."""
        return Reply(220, None, "sink.bench.test ESMTP")

    async def command(self, _line: str) -> Reply:
        """Answer EHLO, the only command before the take-over."""
        return EHLO

    def take_over(self) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Have the answers ready: to three commands in one write, or to a message."""
        self.sent += len(data)
        self._replies = list(ANSWERS if data.startswith(b"MAIL") else (TAKEN, TAKEN))[::-1]

    async def drain(self) -> None:
        """Do nothing."""

    async def reply(self, _seconds: float) -> Reply:
        """Return the next answer after a turn of the event loop, as if it had to come first."""
        await asyncio.sleep(0)
        return self._replies.pop()

    def ready(self) -> Reply | None:
        """Return what came with the answer before: all to MAIL, RCPT and DATA come together."""
        return self._replies.pop() if 0 < len(self._replies) < len(ANSWERS) and self._replies[0].code > 300 else None

    def close(self) -> None:
        """Be closed."""
        self.alive = False


class Dialer:
    """Makes such wires."""

    def wire(self, _target: Target) -> Wire:
        """Return one."""
        return Wire()


class Broker:
    """A broker that has so many jobs and confirms everything a turn later; the worker stops when all are settled."""

    def __init__(self, jobs: Iterator[tuple[str, bytes]], count: int, done: Callable[[], None]) -> None:
        self.alive = self.recording = True
        self.silent = False
        self.delivered = 0
        self._jobs = jobs
        self._tag = 0
        self._left = count
        self._done = done
        self._closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()

    async def consume(self, deliver: Callable[[Consumed], None]) -> None:
        """Hand out the first jobs; each that is acknowledged lets another one follow."""
        self._deliver = deliver
        for _ in range(PREFETCH):
            self._next()

    def _next(self) -> None:
        job = next(self._jobs, None)
        if job is not None:
            self._tag += 1
            self._deliver(Consumed(job[1], self._tag, message_id=job[0]))

    def ack(self, _tag: int) -> None:
        """Count, and hand out another one."""
        self._left -= 1
        asyncio.get_running_loop().call_soon(self._next)
        if not self._left:
            self._done()

    def acknowledged(self) -> asyncio.Future[bool]:
        """Have them."""
        arrived = asyncio.get_running_loop().create_future()
        arrived.set_result(True)
        return arrived

    def requeue(self, _tag: int) -> None:
        """Is not asked for."""

    def reject(self, _tag: int) -> None:
        """Is not asked for."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Confirm."""
        self.delivered += sum(each.routing_key == "success" for each in publications)
        await asyncio.sleep(0)

    async def ensure_queue(self, _name: str) -> bool:
        """Know every queue."""
        return True

    def hold(self, *, held: bool) -> None:
        """Do nothing."""

    async def stop_consuming(self) -> None:
        """Do nothing."""

    async def depth(self) -> int | None:
        """Know nothing."""
        return None

    async def closed(self) -> BrokerError:
        """Never end."""
        return await self._closed

    def fail(self, trouble: BrokerError) -> None:
        """Say so: no figure is true then."""
        raise trouble

    async def close(self) -> None:
        """Do nothing."""


async def work(
    config: Config, jobs: Iterator[tuple[str, bytes]], count: int, nowhere: TextIO, stack: ExitStack
) -> float:
    """Return the CPU seconds of this process for so many jobs."""
    log = stack.enter_context(configure(config.log, nowhere))
    limits = stack.enter_context(closing(SharedLimits(config.worker.journal_dir)))
    journal = FileJournal(config.worker.journal_dir, config.journal, 0)
    worker = build.build(config, Observers(Metrics(), log), limits, journal)

    lives: list[Broker] = []

    async def broker(*_: object) -> Broker:
        lives.append(Broker(jobs, count, worker.stop))
        return lives[-1]

    # Under valgrind all takes fifty times as long: nobody is to lose patience then.
    with patch.object(build.Broker, "open", broker), patch.object(session_pool, "PATIENCE", math.inf):
        began = time.process_time()
        await worker.run()
        spent = time.process_time() - began
    if [life.delivered for life in lives] != [count]:
        raise SystemExit(f"not all of {count} jobs were delivered, so there is no figure")
    return spent


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    figures = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="mailq-bench-") as home, ExitStack() as stack:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(patch.object(build, "TcpDialer", lambda *_: Dialer()))
            tables: dict[str, object] = {
                "worker": {"journal_dir": home},
                "dns": {"overrides": {"*": ["127.0.0.1:25"]}},
                "limits": [{"session_age": 3600, "idle_timeout": 600, "messages_per_session": 1_000_000}],
            }
            config = Config.model_validate(tables | {"delivery": {"ehlo": "worker.bench.test"}})
            jobs = Jobs(options.size, 1).take(options.jobs)
            tune_process()  # as every worker does
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                if profile:
                    profile.enable()
                seconds = runner.run(work(config, jobs, options.jobs, nowhere, stack))
                figures.append(seconds / options.jobs * 1e6)
                if profile:
                    profile.disable()
    listed = ", ".join(f"{each:.0f}" for each in figures)
    print(f"{min(figures):.0f} µs of CPU a message (rounds: {listed})")  # noqa: T201 - its purpose
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)


if __name__ == "__main__":
    main()
