"""The torture's own way to the broker: it publishes jobs and notes results, through every loss of the connection.

It does not go by the relay, yet broker disasters meet it too. Each publication has a name of its own, which stands in
the header `torture-publication` and comes back with its results: copies of a job are equal else. One that was not
confirmed is `unsure`: perhaps it is there, perhaps not. A result that comes again only because its acknowledgement was
lost (redelivered, and noted already) is not counted twice.
"""

import asyncio
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import orjson

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError
from mailq.torture.hostile import Message

HEADER = "torture-publication"
"""The AMQP header with the name of a publication."""

_ID = re.compile(rb"[th]x\d{5}-\d{2}g?")

PAUSE = 0.1
"""Seconds before the next try to connect."""


class Queues:
    """Publishes jobs, and remembers what was told of each."""

    def __init__(self, config: RabbitConfig) -> None:
        self.finals: dict[str, list[bool]] = defaultdict(list)
        self.doubts: Counter[str] = Counter()
        """How many attempts of each publication are in doubt."""
        self.published: set[str] = set()
        self.unsure: set[str] = set()
        self.poisoned: set[str] = set()
        self._config = config
        self._ready = asyncio.Event()
        self._news = asyncio.Event()
        self._publisher: Publisher
        self._control: Connection
        self._consumers: list[Consumer] = []
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Declare everything and begin to note results; the connection is kept until `close`."""
        self._keeper = asyncio.create_task(self._keep())
        await self._ready.wait()

    async def close(self) -> None:
        """Stop."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def publish(self, name: str, message: Message) -> None:
        """Publish one job under a name for the publication; if the broker does not confirm it, it is unsure."""
        await self._ready.wait()
        publication = Publication(
            "",
            self._config.outbox,
            message.body,
            message_id=message.message_id,
            content_encoding=message.encoding,
            headers={HEADER: name, **message.headers},
        )
        self.published.add(name)
        try:
            await self._publisher.publish([publication])
        except BrokerError:
            self.unsure.add(name)
            self._news.set()

    async def unfinished(self, jobs: set[str], seconds: float) -> set[str]:
        """Return those jobs that have not come to an end after so many seconds, and are not unsure; at once if none."""
        try:
            async with asyncio.timeout(seconds):
                while self._missing(jobs):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return self._missing(jobs)

    def _missing(self, jobs: set[str]) -> set[str]:
        return jobs - self.finals.keys() - self.unsure - self.poisoned

    async def waiting(self) -> dict[str, int]:
        """Return the queues that hold messages, and how many.

        Raises:
            BrokerError: the connection was lost.
        """
        config = self._config
        steps = [topology.delay_queue(config.outbox, step) for step in STEPS]
        depths = {name: await topology.count(self._control, name) for name in (config.outbox, *steps)}
        return {name: depth for name, depth in depths.items() if depth}

    async def consumers(self) -> int:
        """Return how many workers consume jobs.

        Raises:
            BrokerError: the connection was lost.
        """
        return (await topology.look(self._control, self._config.outbox)).consumers

    async def collect(self) -> None:
        """Return when everything that is on the result queues has been noted."""
        for name in (self._config.results, self._config.retry, self._config.poison):
            count = await topology.count(self._control, name)
            while count:
                await asyncio.sleep(PAUSE)
                count = await topology.count(self._control, name)
        for consumer in self._consumers:
            await consumer.stop()

    async def _keep(self) -> None:
        while True:
            try:
                async with AsyncExitStack() as stack:
                    await asyncio.wait(await self._open(stack), return_when=asyncio.FIRST_COMPLETED)
            except BrokerError:
                pass  # it is down, as it has to be now and then
            finally:
                self._ready.clear()
            await asyncio.sleep(PAUSE)

    async def _open(self, stack: AsyncExitStack) -> list[asyncio.Future[BrokerError]]:
        """Open all connections and return what tells of their end."""
        control, publishing, *consuming = [await self._connect(stack) for _ in range(5)]
        await topology.prepare(control, self._config)
        self._control = control
        self._publisher = Publisher(publishing, self._config.confirm_timeout, lambda _reason: None)
        await self._publisher.start()
        self._consumers = []
        noting: dict[str, Callable[[int, Consumed], None]] = {
            self._config.results: partial(self._note, final=True),
            self._config.retry: partial(self._note, final=False),
            self._config.poison: self._note_poisoned,
        }
        for connection, (queue, noter) in zip(consuming, noting.items(), strict=True):
            note = partial(noter, len(self._consumers))
            self._consumers.append(Consumer(connection, queue, 500, note))
            await self._consumers[-1].start()
        self._ready.set()
        return [connection.closed for connection in (control, publishing, *consuming)]

    def _note(self, index: int, consumed: Consumed, *, final: bool) -> None:
        name, results = _name(consumed), orjson.loads(consumed.body)["results"]
        self.doubts[name] = max(self.doubts[name], sum(bool(result.get("in_doubt")) for result in results))
        if final and not (consumed.redelivered and self.finals[name]):
            last = results[-1]
            self.finals[name].append((last["state"], last["result"]) == ("message", "accepted"))
        self._consumers[index].ack(consumed.tag)
        self._news.set()

    def _note_poisoned(self, index: int, consumed: Consumed) -> None:
        self.poisoned.add(_name(consumed))
        self._consumers[index].ack(consumed.tag)
        self._news.set()

    async def _connect(self, stack: AsyncExitStack) -> Connection:
        config = self._config
        connection = await Connection.open(
            Address.of(config),
            f"mailq torture {os.getpid()}",
            heartbeat=config.heartbeat,
            connect_timeout=config.connect_timeout,
            answer_timeout=config.confirm_timeout,
        )
        stack.push_async_callback(connection.close)
        return connection


def _name(consumed: Consumed) -> str:
    """Return the name of the publication; a worker may leave out the headers of a hostile job, published once."""
    name = consumed.headers.get(HEADER)
    if isinstance(name, str):
        return name
    found = _ID.search(consumed.body) or _ID.search((consumed.message_id or "").encode())
    return f"{found[0].decode()}.0" if found else ""
