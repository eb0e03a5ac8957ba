"""What is sent together, and that nothing stays behind for it."""

import asyncio

from support.broker import Inbox

from mailq.core.broker.messages import Publication
from mailq.edges.amqp.connection import CROWD
from mailq.edges.amqp.write_batching import WriteBatcher

HOUR = 3600.0


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_alone_leaves_at_once_and_only_after_a_crowd_the_next_ones_wait():
    sent = asyncio.Event()
    gathering = WriteBatcher(sent.set, crowd=3, seconds=HOUR)
    for count, waits in ((1, False), (2, False), (3, True), (0, False)):
        sent.clear()
        gathering.ended(count)
        gathering.begin()
        await turns()
        assert sent.is_set() is not waits


async def test_what_is_gathered_leaves_by_itself():
    sent = asyncio.Event()
    gathering = WriteBatcher(sent.set, crowd=1, seconds=0.02)
    gathering.ended(1)
    gathering.begin()
    await turns()
    assert not sent.is_set()
    await asyncio.wait_for(sent.wait(), 20)


async def test_publications_being_gathered_are_sent_before_the_connection_ends(open_broker, rabbit):
    broker = await open_broker()
    await rabbit.declare("some")
    crowd = [Publication("", "some", b"%d" % number) for number in range(CROWD)]
    await broker.publish(crowd)
    gathered = asyncio.create_task(broker.publish(crowd))
    await turns()
    await broker.close()
    await asyncio.gather(gathered, return_exceptions=True)  # whether it was confirmed by then is another matter
    await rabbit.wait_for_count("some", 2 * CROWD)


async def test_acknowledgements_leave_at_once_however_many_there_are(open_broker, rabbit):
    broker, inbox = await open_broker(prefetch=4 * CROWD), Inbox()
    for number in range(4 * CROWD):
        await rabbit.publish("outbox", b"%d" % number)
    await broker.consume(inbox)
    tags = [message.tag for message in await inbox.wait(4 * CROWD)]
    for crowd in (tags[1::4], tags[2::4]):  # with gaps, so that each is a frame of its own
        for tag in crowd:
            broker.ack(tag)
        await turns()
        assert not broker._consuming._out
