"""What is sent together, and that nothing stays behind for it."""

import asyncio

from support.broker import Inbox

from mailq.edges.amqp.consumer import CROWD
from mailq.edges.amqp.gathering import Gathering

HOUR = 3600.0


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_alone_leaves_at_once_and_only_after_a_crowd_the_next_ones_wait():
    sent = asyncio.Event()
    gathering = Gathering(sent.set, crowd=3, seconds=HOUR)
    for count, waits in ((1, False), (2, False), (3, True), (0, False)):
        sent.clear()
        gathering.ended(count)
        gathering.begin()
        await turns()
        assert sent.is_set() is not waits


async def test_what_is_gathered_leaves_by_itself():
    sent = asyncio.Event()
    gathering = Gathering(sent.set, crowd=1, seconds=0.02)
    gathering.ended(1)
    gathering.begin()
    await turns()
    assert not sent.is_set()
    await asyncio.wait_for(sent.wait(), 20)


async def test_acknowledgements_being_gathered_are_sent_before_the_connection_ends(open_broker, rabbit):
    broker, inbox = await open_broker(prefetch=4 * CROWD), Inbox()
    for number in range(4 * CROWD):
        await rabbit.publish("outbox", b"%d" % number)
    await broker.consume(inbox)
    tags = [message.tag for message in await inbox.wait(4 * CROWD)]
    for tag in tags[: 2 * CROWD]:
        broker.ack(tag)
    await turns()  # a crowd was sent
    for tag in tags[2 * CROWD :]:
        broker.ack(tag)
    await turns()
    await broker.close()
    assert await rabbit.count("outbox") == 0
