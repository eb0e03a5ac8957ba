"""Publish a job for each recipient; `AMQP_URL=amqp://... python producer.py jo@example.test ann@example.test`."""

import asyncio
import json
import os
import sys
import uuid
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, make_msgid

import aio_pika
from aio_pika.exceptions import DeliveryError


def job(recipient: str) -> dict[str, str]:
    mail = EmailMessage(policy=SMTP)  # CRLF line ends; encoded words, since a header is ASCII
    mail["From"], mail["To"], mail["Subject"] = "Café <news@example.com>", recipient, "Grüße"
    mail["Date"], mail["Message-ID"] = localtime(), make_msgid(domain="example.com")
    mail.set_content("Hello, and Grüße!\n", cte="quoted-printable")  # 7 bit, which every receiver takes
    return {"envelope": "bounces@example.com", "recipient": recipient, "mime": mail.as_bytes().decode("ascii")}


async def main(recipients: list[str]) -> None:
    async with await aio_pika.connect(os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1/")) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        for recipient in recipients:
            body, identity = json.dumps(job(recipient)).encode(), str(uuid.uuid4())
            message = aio_pika.Message(body, message_id=identity, content_type="application/json", delivery_mode=2)
            try:  # returns when the broker has it on disk; publish several at once for more speed
                await channel.default_exchange.publish(message, "outbox", mandatory=True, timeout=30)
            except DeliveryError:
                sys.exit(f"no queue has taken the job for {recipient}: has a worker declared the outbox?")
            print("published", identity, recipient)


asyncio.run(main(sys.argv[1:]))
