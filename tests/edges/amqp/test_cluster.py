"""Three nodes, of which two go away: quorum queues confirm nothing, and nothing is lost when they are back.

One test, because a cluster takes long to start: first a publication alone, then a whole worker under load.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import aio_pika
import orjson
import pytest
from support.broker import Remembering, until
from support.cluster import Cluster
from support.limits import private_table
from support.system import MIME, Seen

from mailq.config import Config
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.broker import Broker
from mailq.edges.journal import FileJournal
from mailq.ports.broker import BrokerError
from mailq.service.build import build
from mailq.sink.server import Sink

JOBS = 60


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path) as cluster:
        yield cluster


def config(cluster, receiver):
    return Config.model_validate(
        {
            "rabbitmq": {
                "url": cluster.nodes[0].url,
                "confirm_timeout": 2,
                "reconnect_delay": 0.2,
                "reconnect_max": 0.5,
            },
            "delivery": {"ehlo": "worker.test"},
            "dns": {"overrides": {"*": [f"127.0.0.1:{receiver.port}"]}, "servers": ["127.0.0.1"]},
            "worker": {"prefetch": 10, "sessions": 5, "drain_timeout": 5},
        }
    )


async def publish(cluster, jobs):
    async with await aio_pika.connect(cluster.nodes[0].url) as connection:
        channel = await connection.channel()
        for job in jobs:
            await channel.default_exchange.publish(aio_pika.Message(orjson.dumps(job), delivery_mode=2), "outbox")


async def told(cluster, queue, wanted):
    """Take documents from a queue until all recipients were among them; returns those of all documents."""
    found = []
    async with asyncio.timeout(40), await aio_pika.connect(cluster.nodes[0].url) as connection:
        source = await (await connection.channel()).get_queue(queue)
        while not wanted <= set(found):
            message = await source.get(no_ack=True, fail=False)
            if message is None:
                await asyncio.sleep(0.1)  # AMQP has no event for that
            else:
                found.append(orjson.loads(message.body)["recipient"])
    return found


async def test_without_a_majority_nothing_is_confirmed_and_nothing_is_lost(cluster, tmp_path):
    async with Sink() as receiver, AsyncExitStack() as stack:
        settings = config(cluster, receiver)
        observer = Remembering()
        broker = await Broker.open(settings.rabbitmq, 10, observer)
        stack.push_async_callback(broker.close)
        recipients = [f"slow-50+{number}@a.test" for number in range(JOBS)]
        await publish(cluster, [{"recipient": each, "mime": MIME, "id": each} for each in recipients])
        seen = Seen()
        worker = build(settings, seen, private_table(), FileJournal(str(tmp_path), settings.journal, 0))
        working = asyncio.create_task(worker.run())
        await until(lambda: len(receiver.messages) > 10)

        for node in cluster.nodes[1:]:
            node.kill()

        with pytest.raises(BrokerError, match="owes a publisher confirm for 2 s"):
            await broker.publish([Publication("", "retry", b"{}")])
        assert "unconfirmed" in [event for event, _ in observer.events]
        await until(lambda: "unconfirmed" in seen.broker_events and "lost" in seen.broker_events)
        sent = len(receiver.messages)
        assert sent < JOBS  # not more than those it had: what is not settled is not replaced

        await asyncio.to_thread(cluster.start, cluster.nodes[1:])
        # A result that was not confirmed may have been taken all the same, and is then told twice.
        assert set(await told(cluster, "success", set(recipients))) == set(recipients)
        assert Counter(message.recipients[0].address for message in receiver.messages) == Counter(recipients)
        assert seen.broker_events[-1] == "connected"
        worker.stop()
        await asyncio.wait_for(working, 20)
        assert seen.bugs == []
