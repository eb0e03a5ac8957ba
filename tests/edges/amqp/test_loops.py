"""The same on both event loops: uvloop, on which mailq runs, and asyncio's own."""

import asyncio

import pytest
import uvloop
from support.broker import Inbox, Remembering
from support.proxy import Proxy

from mailq.core.broker.messages import Publication
from mailq.edges.amqp.broker import Broker

COUNT = 300


async def consume_publish_and_acknowledge(config, body):
    """Answer each job with a result, as a worker does, and return what was seen."""
    broker, inbox = await Broker.open(config, 100, Remembering()), Inbox()
    tasks: set[asyncio.Task[None]] = set()

    async def handle(consumed):
        await broker.publish([Publication("mailq", "success", consumed.body)])
        broker.ack(consumed.tag)

    def deliver(consumed):
        inbox(consumed)
        tasks.add(asyncio.create_task(handle(consumed)))

    await broker.consume(deliver)
    await asyncio.gather(*(broker.publish([Publication("", "outbox", body)]) for _ in range(COUNT)))
    await inbox.wait(COUNT)
    await asyncio.gather(*tasks)
    await broker.close()
    assert {message.body for message in inbox.messages} == {body}


async def lose_it(config, port):
    async with Proxy("127.0.0.1", port) as proxy:
        url = config.url.get_secret_value().replace(f":{port}/", f":{proxy.port}/")
        broker = await Broker.open(config.model_copy(update={"url": type(config.url)(url)}), 10, Remembering())
        await broker.consume(Inbox())
        proxy.stall()
        return str(await broker.closed())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_a_round_trip(rabbit, rabbit_tls, loop, scheme):
    port = rabbit_tls.port if scheme == "amqps" else rabbit.server.port
    url = rabbit.url_at(port, scheme=scheme, host="localhost")
    config = rabbit.config(url=url, ca_file=str(rabbit_tls.ca_file))

    def run():
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(consume_publish_and_acknowledge(config, b"x" * 14_000))

    await asyncio.to_thread(run)
    assert await rabbit.count("outbox") == 0
    assert await rabbit.count("results") == COUNT


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_silence_is_noticed(rabbit, loop):
    def run():
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(lose_it(rabbit.config(heartbeat=1), rabbit.server.port))

    assert "no sign of life" in await asyncio.to_thread(run)
