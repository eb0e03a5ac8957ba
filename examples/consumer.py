"""Decide what becomes of each address; `AMQP_URL=amqp://... python consumer.py [QUEUE [STOP_AFTER]]`."""

import asyncio
import json
import os
import sys

import aio_pika


def decision(job: dict, last: dict) -> str:
    if "nextattempt" in job:  # in the queue retry
        return f"tried again at {job['nextattempt']['time']}"
    if last.get("dryrun"):  # nothing was sent
        return "would be taken" if last["result"] == "accepted" else "would be refused"
    if last.get("category") == "hard":  # no such mailbox, no such domain
        return "remove the address"
    # Given up: policy, out of time, a mistake in the job...: the address may be good.
    return "delivered" if last["result"] == "accepted" else "given up"


async def main(name: str = "results", stop_after: str = "inf") -> None:
    async with await aio_pika.connect(os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1/")) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(asyncio.current_task().cancel)  # when the queue is deleted
        done = 0
        async with (await channel.get_queue(name)).iterator() as messages:
            async for message in messages:
                last = (job := json.loads(message.body))["results"][-1]
                print(job["recipient"], last["attempt"], last["code"], last["status"], decision(job, last), flush=True)
                await message.ack()  # after the work: what is not acknowledged comes again
                if (done := done + 1) >= float(stop_after):
                    return
    sys.exit("the connection to the broker was lost")


asyncio.run(main(*sys.argv[1:]))
