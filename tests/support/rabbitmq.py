"""A real RabbitMQ for tests: one server for the whole run, a fresh virtual host for every test.

Fixtures:

- `rabbit_server`: the `PrivateRabbit`; starts on first use (about 9 s), ends with the run.
- `rabbit_tls`: port, CA file and host name of its amqps listener.
- `rabbit`: a `Rabbit`, this test's own virtual host. `rabbit.url` is its address, `rabbit.config(...)`
  a `RabbitConfig` for it. Its helpers speak AMQP with aio-pika, independent of what is tested:

      await rabbit.publish("outbox", b"{...}", message_id="1", headers={"a": 1})
      message = await rabbit.get("results")            # waits until there is one, acknowledges it
      messages = await rabbit.get_many("results", 3)   # waits for three
      await rabbit.count("outbox")                     # ready messages now
      await rabbit.wait_for_count("outbox", 0)
      await rabbit.exists("outbox.delay.1s")

  `get` and `get_many` return aio-pika messages: `.body`, `.headers`, `.message_id`, `.priority`, …
  A queue must exist before it is used; `await rabbit.declare("name")` makes a plain one.

Virtual hosts are made in batches, because each rabbitmqctl call takes about a second. They go with the
server: to delete one full of quorum queues takes longer than most tests.
"""

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import pytest
import trustme
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.publisher import Publisher
from mailq.testbed.free_port import free_port
from mailq.testbed.rabbitmq import PrivateRabbit

DEADLINE = 20.0
"""Seconds that helpers wait for what a test expects."""

PER_NODE = 120
"""Virtual hosts after which the server begins with nothing again."""

_BATCH = 20
_REFILL = """
[begin
  ok = rabbit_vhost:add(list_to_binary(V), <<"guest">>),
  ok = rabbit_auth_backend_internal:set_permissions(
    <<"guest">>, list_to_binary(V), <<".*">>, <<".*">>, <<".*">>, <<"guest">>)
end || V <- [%s]].
"""


@dataclass(frozen=True)
class RabbitTls:
    """The amqps listener of the server."""

    port: int
    ca_file: Path
    directory: Path

    @property
    def settings(self) -> dict[str, str]:
        return {
            "listeners.ssl.default": f"127.0.0.1:{self.port}",
            "ssl_options.cacertfile": str(self.ca_file),
            "ssl_options.certfile": str(self.directory / "server.pem"),
            "ssl_options.keyfile": str(self.directory / "server.key"),
            "ssl_options.verify": "verify_none",
        }


@dataclass
class VirtualHosts:
    """Hands out fresh virtual hosts of the one server."""

    server: PrivateRabbit
    _fresh: list[str] = field(default_factory=list)
    _batches: int = -1
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def take(self) -> str:
        if not self._fresh:
            self._start_anew_at_times()
            self._fresh = [f"test-{next(self._numbers)}" for _ in range(_BATCH)]
            self.server.ctl("eval", _REFILL % ", ".join(f'"{name}"' for name in self._fresh))
        return self._fresh.pop()

    def _start_anew_at_times(self) -> None:
        """Each virtual host has its quorum queues and their files: hundreds of them are more than a node can open."""
        self._batches += 1
        if self._batches % (PER_NODE // _BATCH) == 0:
            self.server.kill()
            shutil.rmtree(self.server.directory)
            self.server.start()


@dataclass
class Rabbit:
    """One virtual host of the server, with a connection of its own for the helpers."""

    server: PrivateRabbit
    vhost: str
    _connection: AbstractConnection | None = None
    _channel: AbstractChannel | None = None

    @property
    def url(self) -> str:
        return self.url_at(self.server.port)

    def url_at(self, port: int, *, scheme: str = "amqp", login: str = "guest:guest", host: str = "127.0.0.1") -> str:
        """Return the URL of this virtual host at another port, for example a proxy's."""
        return f"{scheme}://{login}@{host}:{port}/{quote(self.vhost, safe='')}"

    def config(self, **overrides: Any) -> RabbitConfig:
        return RabbitConfig(**({"url": self.url} | overrides))

    async def declare(self, name: str, *, arguments: dict[str, Any] | None = None, durable: bool = True) -> None:
        await (await self.channel()).declare_queue(name, durable=durable, arguments=arguments)

    async def delete(self, name: str) -> None:
        await (await self.channel()).queue_delete(name)

    async def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        """Publish a persistent message to a queue and wait for the confirm; a missing queue is an error."""
        message = aio_pika.Message(body, **({"delivery_mode": 2} | properties))
        channel = await self.channel()
        await channel.default_exchange.publish(message, routing_key=queue, mandatory=True)

    async def publish_unnamed(self, queue: str, body: bytes, headers: dict[str, Any] | None = None) -> None:
        """Publish a message without a message id: aio-pika gives one to every message that has none."""
        address = Address.of(RabbitConfig(url=self.url))
        connection = await Connection.open(address, "test", heartbeat=0, connect_timeout=10, answer_timeout=10)
        publisher = Publisher(connection, 10, lambda _reason: None)
        await publisher.start()
        await publisher.publish([Publication("", queue, body, headers=headers)])
        await connection.close()

    async def get(self, queue: str, *, deadline: float = DEADLINE) -> AbstractIncomingMessage:
        """Take one message and acknowledge it, waiting for it as long as `deadline` seconds."""
        channel = await self.channel()
        source = await channel.get_queue(queue, ensure=False)
        ends = time.monotonic() + deadline
        while time.monotonic() < ends:
            message = await source.get(no_ack=True, fail=False)
            if message is not None:
                return message
            await asyncio.sleep(0.02)
        raise AssertionError(f"no message in queue {queue!r} within {deadline} s")

    async def get_many(self, queue: str, count: int, *, deadline: float = DEADLINE) -> list[AbstractIncomingMessage]:
        return [await self.get(queue, deadline=deadline) for _ in range(count)]

    async def count(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        declared = await (await self.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def wait_for_count(self, queue: str, count: int, *, deadline: float = DEADLINE) -> None:
        """Wait until a queue holds exactly `count` ready messages."""
        ends = time.monotonic() + deadline
        while (now := await self.count(queue)) != count:
            assert time.monotonic() < ends, f"queue {queue!r} holds {now} messages, not {count}, after {deadline} s"
            await asyncio.sleep(0.02)

    async def exists(self, queue: str) -> bool:
        try:
            await self.count(queue)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True

    async def channel(self) -> AbstractChannel:
        """Return an open channel; one that an error has closed is replaced."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await aio_pika.connect(self.url)
            self._channel = None
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(on_return_raises=True)
        return self._channel

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


@asynccontextmanager
async def max_message_size(rabbit: Rabbit, octets: int) -> AsyncIterator[None]:
    """Let the server take no larger messages."""
    eval_term = "persistent_term:put(max_message_size, {0}), application:set_env(rabbit, max_message_size, {0})."
    await asyncio.to_thread(rabbit.server.ctl, "eval", eval_term.format(octets))
    try:
        yield
    finally:
        await asyncio.to_thread(rabbit.server.ctl, "eval", eval_term.format(134_217_728))


@asynccontextmanager
async def short_consumer_timeout(rabbit: Rabbit) -> AsyncIterator[None]:
    """Let the server wait for the acknowledgements of new channels and queues for a second, and look each second."""
    pairs = "{{consumer_timeout, {}}}, {{channel_tick_interval, {}}}"
    term = f"[application:set_env(rabbit, Key, Value) || {{{{Key, Value}}}} <- [{pairs}]]."
    await asyncio.to_thread(rabbit.server.ctl, "eval", term.format(1_000, 1_000))
    try:
        yield
    finally:
        await asyncio.to_thread(rabbit.server.ctl, "eval", term.format(1_800_000, 60_000))


@pytest.fixture(scope="session")
def rabbit_tls(tmp_path_factory: pytest.TempPathFactory) -> RabbitTls:
    directory = tmp_path_factory.mktemp("rabbit-tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "server.pem")
    certificate.private_key_pem.write_to_path(directory / "server.key")
    return RabbitTls(free_port(), directory / "ca.pem", directory)


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory, rabbit_tls: RabbitTls) -> Iterator[PrivateRabbit]:
    with PrivateRabbit(tmp_path_factory.mktemp("rabbitmq"), settings=rabbit_tls.settings) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_virtual_hosts(rabbit_server: PrivateRabbit) -> VirtualHosts:
    return VirtualHosts(rabbit_server)


@pytest.fixture
async def rabbit(rabbit_virtual_hosts: VirtualHosts) -> AsyncIterator[Rabbit]:
    rabbit = Rabbit(rabbit_virtual_hosts.server, rabbit_virtual_hosts.take())
    yield rabbit
    await rabbit.close()
