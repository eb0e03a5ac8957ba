"""`mailq webhooks` in the test's own loop, and its receivers."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from support.hooks import SECRET, Hooks, Receiver, Watching, until

from mailq.cli.webhooks import build
from mailq.config import Config
from mailq.edges.amqp.broker import Broker
from mailq.edges.webhook_client import Poster


@pytest.fixture
async def receiver():
    async with AsyncExitStack() as stack:

        async def start(**how):
            each = Receiver(**how)
            await each.start()
            stack.push_async_callback(each.stop)
            return each

        yield start


@pytest.fixture
async def publisher(rabbit):
    class Silent:
        def broker(self, event, detail): ...

    broker = await Broker.open(rabbit.config(), 1, Silent())
    yield broker
    await broker.close()


@pytest.fixture
async def hooks(rabbit, publisher):
    """Start webhooks to these endpoints; `table` are further keys of the table `webhooks`."""
    async with AsyncExitStack() as stack:
        running = []

        async def start(table=None, *, url=rabbit.url, delivery=None, **endpoints):
            defaults = {"allow_http": True, "allow_private": True, "secrets": [SECRET], "timeout": 2}
            tables = {
                "rabbitmq": {"url": url, "reconnect_delay": 0.1},
                "worker": {"drain_timeout": 5},
                "delivery": delivery or {},
                "webhooks": {"pause": 0.1, "retries": [1]}
                | (table or {})
                | {"endpoints": {name: defaults | keys for name, keys in endpoints.items()}},
            }
            config = Config.model_validate(tables)
            posts = {
                name: await stack.enter_async_context(Poster(each)) for name, each in config.webhooks.endpoints.items()
            }
            watching = Watching()
            webhooks = build(config, posts, watching)
            running.append(Hooks(rabbit, webhooks, asyncio.create_task(webhooks.run()), watching, publisher))
            await until(lambda: webhooks.not_ready is None or running[-1].task.done())
            if running[-1].task.done():
                running[-1].task.result()
            return running[-1]

        yield start
        for each in running:
            if not each.task.done():
                await each.stop()
            each.task.result()
