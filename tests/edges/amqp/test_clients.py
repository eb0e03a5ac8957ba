"""Clients that declare `outbox` and `results` plain and durable, each in its own usual way, before mailq and after it.

The documented mode is in docs/migrating.md, "Queues that exist".
"""

import asyncio
import json
import subprocess

import aio_pika
import pika
import pytest
from support.broker import Inbox
from support.node import node, workshop

from mailq.core.broker.messages import Publication
from mailq.core.jobs.job import Job

JOB = {"envelope": "me@example.org", "recipient": "you@example.com", "mime": "Subject: hi\r\n\r\nHello.\r\n"}

AMQPLIB = """
import amqp from "amqplib";
const [url, body] = process.argv.slice(2);
const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
channel.on("error", () => {});
connection.on("error", () => {});
for (const name of ["outbox", "results"]) await channel.assertQueue(name);
channel.sendToQueue("outbox", Buffer.from(body), { persistent: true });
await channel.waitForConfirms();
await connection.close();
"""


JAVA = """
import com.rabbitmq.client.*;

public class Producer {
    public static void main(String[] words) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(words[0]);
        factory.setAutomaticRecoveryEnabled(false);
        try (Connection connection = factory.newConnection()) {
            Channel channel = connection.createChannel();
            for (String name : new String[] {"outbox", "results"}) channel.queueDeclare(name, true, false, false, null);
            channel.confirmSelect();
            channel.basicPublish("", "outbox", MessageProperties.PERSISTENT_TEXT_PLAIN, words[1].getBytes("UTF-8"));
            channel.waitForConfirmsOrDie();
        }
    }
}
"""
JARS = "/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar"


def with_java(directory, url, body):
    """Publish as the tutorial of RabbitMQ's Java client does."""
    source = directory / "Producer.java"
    source.write_text(JAVA)
    command = ["java", "-cp", JARS, str(source), url, body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def with_pika(url, body):
    """Publish as pika's tutorial does."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        for name in ("outbox", "results"):
            channel.queue_declare(queue=name, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "outbox", body, pika.BasicProperties(delivery_mode=2), mandatory=True)
    finally:
        if connection.is_open:
            connection.close()


async def with_aio_pika(url, body):
    """Publish as aio-pika's tutorial does."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in ("outbox", "results"):
            await channel.declare_queue(name, durable=True)
        await channel.default_exchange.publish(aio_pika.Message(body), "outbox")


@pytest.fixture
def publish(request, rabbit, tmp_path):
    """Return what declares both queues and publishes a job with one of the clients."""

    async def published():
        body = json.dumps(JOB).encode()
        match request.param:
            case "pika":
                await asyncio.to_thread(with_pika, rabbit.url, body)
            case "aio-pika":
                await with_aio_pika(rabbit.url, body)
            case "amqplib":
                await asyncio.to_thread(node, workshop(tmp_path), AMQPLIB, rabbit.url, body.decode())
            case "java":
                await asyncio.to_thread(with_java, tmp_path, rabbit.url, body.decode())

    return published


async def taken(broker, rabbit):
    """Consume the client's job, publish a result, and return the job."""
    inbox = Inbox()
    await broker.consume(inbox)
    (message,) = await inbox.wait(1)
    await broker.publish([Publication("mailq", "success", b"{}")])
    broker.ack(message.tag)
    assert (await rabbit.get("results")).body == b"{}"
    return json.loads(message.body)


CLIENTS = pytest.mark.parametrize("publish", ["pika", "aio-pika", "amqplib", "java"], indirect=True)


@CLIENTS
async def test_a_client_that_declares_first_is_served(publish, open_broker, rabbit):
    await publish()
    assert await taken(await open_broker(), rabbit) == JOB


@CLIENTS
async def test_a_client_that_declares_after_mailq_is_served_where_arguments_are_off(publish, open_broker, rabbit):
    broker = await open_broker(arguments=False)
    await publish()
    assert await taken(broker, rabbit) == JOB


@pytest.mark.parametrize(
    ("publish", "error"),
    [
        ("pika", pika.exceptions.ChannelClosedByBroker),
        ("aio-pika", aio_pika.exceptions.ChannelPreconditionFailed),
        ("amqplib", AssertionError),
        ("java", AssertionError),
    ],
    indirect=["publish"],
)
async def test_a_client_that_declares_after_mailq_otherwise_is_refused_by_the_broker(publish, error, open_broker):
    await open_broker()
    with pytest.raises(error, match=r"PRECONDITION[_-]FAILED"):
        await publish()


def test_what_mailerqs_dotnet_sdk_serializes_is_a_job():
    """Null properties are left out there, names are in lower case, and `message-id` is a property of its own."""
    document = JOB | {
        "message-id": "7f3a",
        "keepmime": False,
        "maxattempts": 3,
        "retries": [60, 600],
        "tags": ["a", "b"],
        "priority": 5,
        "queues": {"success": "success", "failure": "failure"},
        "nextattempt": {"time": "2030-01-01 10:00:00"},
        "maxdelivertime": "2030-01-02 10:00:00",
    }
    assert Job.parse(json.dumps(document).encode(), limit=100_000)
