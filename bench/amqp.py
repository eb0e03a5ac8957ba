"""The AMQP edge alone: consume a job, publish its result, wait for the confirm, acknowledge.

It starts a RabbitMQ of its own, fills the outbox, and empties it through `Broker` on uvloop. It
prints the rate and the CPU seconds per 1,000 jobs of this process and of the broker; the second
figure is the one to compare, because broker and worker share the cores.

    python -m bench.amqp [--jobs 20000] [--prefetch 500] [--queue-type quorum]
"""

import argparse
import asyncio
import gc
import os
import resource
import tempfile
import time
from pathlib import Path

import uvloop

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.edges.amqp.broker import Broker
from mailq.testbed.rabbitmq import PrivateRabbit

JOB = b"x" * 14_000
RESULT = b"y" * 1_000
FILL_AT_ONCE = 500


class Silent:
    """An observer of nothing."""

    def broker(self, event: str, detail: str) -> None:
        """Ignore it."""


async def drain(config: RabbitConfig, jobs: int, prefetch: int) -> None:
    """Fill the outbox, empty it, and print what that cost."""
    broker = await Broker.open(config, prefetch, Silent())
    for _ in range(0, jobs, FILL_AT_ONCE):
        await asyncio.gather(*(broker.publish([Publication("", config.outbox, JOB)]) for _ in range(FILL_AT_ONCE)))
    done = asyncio.Event()
    left = jobs
    tasks: set[asyncio.Task[None]] = set()

    async def handle(consumed: Consumed) -> None:
        nonlocal left
        await broker.publish([Publication(config.exchange, "success", RESULT, message_id="0123456789abcdef")])
        broker.ack(consumed.tag)
        left -= 1
        if not left:
            done.set()

    def deliver(consumed: Consumed) -> None:
        task = asyncio.create_task(handle(consumed))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # As the worker does it: start-up is over, and what it made need not be looked at again.
    gc.collect()
    gc.freeze()
    others, own, started = _beam_seconds(), _own_seconds(), time.perf_counter()
    await broker.consume(deliver)
    await done.wait()
    seconds = time.perf_counter() - started
    own, others = _own_seconds() - own, _beam_seconds() - others
    await broker.close()
    print(  # noqa: T201 - its purpose
        f"{jobs} jobs of {len(JOB)} octets, {config.queue_type}, prefetch {prefetch}: {jobs / seconds:,.0f}/s,"
        f" cpu-s/1000: worker {own / jobs * 1000:.4f}, broker {others / jobs * 1000:.4f}"
    )


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _beam_seconds() -> float:
    """Return the CPU seconds of this process's descendants called beam.smp (Linux)."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        if name.endswith("(beam.smp"):
            ticks[pid] = int(fields[11]) + int(fields[12])
    return sum(ticks[pid] for pid in ticks if _descends(pid, parents)) / os.sysconf("SC_CLK_TCK")


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--prefetch", type=int, default=500)
    parser.add_argument("--queue-type", choices=["quorum", "classic"], default="quorum")
    options = parser.parse_args()
    jobs = max(options.jobs // FILL_AT_ONCE, 1) * FILL_AT_ONCE
    with tempfile.TemporaryDirectory(prefix="mailq-bench-") as directory, PrivateRabbit(Path(directory)) as rabbit:
        config = RabbitConfig(url=rabbit.url, queue_type=options.queue_type, retry="", success="", failures="")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(drain(config, jobs, options.prefetch))


if __name__ == "__main__":
    main()
