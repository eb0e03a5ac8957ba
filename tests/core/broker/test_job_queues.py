"""Which queues a job may name for its results."""

import pytest

from mailq.core.broker.job_queues import forbidden
from mailq.core.broker.publications import Names
from mailq.core.jobs.job import Queues

NAMES = Names()
EVERY = ("results", "success", "failure", "retry")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("queue", "reason"),
    [
        ("outbox", "is mailq's own"),
        ("outbox.poison", "is mailq's own"),
        ("outbox.delay.1s", "is mailq's own"),
        ("outbox.delay.7m", "is mailq's own"),
        ("other.delay.24h", "is mailq's own"),
        ("webhooks", "is for webhooks"),
        ("webhooks.dead", "is for webhooks"),
        ("webhooks.crm.delay.30s", "is mailq's own"),
        ("amq.rabbitmq.reply-to", "is RabbitMQ's own"),
        ("amq.rabbitmq.reply-to.g1h2", "is RabbitMQ's own"),
        ("amq.rabbitmq.trace", "is RabbitMQ's own"),
    ],
)
def test_what_mailq_or_the_broker_consumes_is_not_for_jobs(name, queue, reason):
    found = forbidden(Queues(**{name: queue}), NAMES)
    assert found is not None
    assert found.name == name
    assert f"queue {queue!r} {reason}; name another one" in found.reason


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "queue",
    [
        "mine",
        "Outbox",
        "outbox2",
        "outbox.delays",
        "outbox.mine",
        "webhook",
        "webhooks2",
        "amq.gen-x1",
        "amqp",
        "x.delay.7m",
    ],
)
def test_any_other_queue_is_for_jobs(name, queue):
    assert forbidden(Queues(**{name: queue}), NAMES) is None


@pytest.mark.parametrize(
    ("queue", "allowed"),
    [
        ("results", {"results", "success", "failure"}),
        ("success", {"success"}),
        ("failures", {"failure"}),
        ("retry", {"retry"}),
    ],
)
def test_a_configured_result_queue_takes_what_mailq_itself_publishes_there(queue, allowed):
    assert {name for name in EVERY if forbidden(Queues(**{name: queue}), NAMES) is None} == allowed


def test_configured_names_and_beginnings_decide():
    names = Names(outbox="mail", poison="aside", webhooks="hooks", job_queues=("reply.", "amq.gen-"))
    for queue in ("mail", "mail.delay.x", "aside", "hooks", "hooks.dead", "outbox", "mine", "Reply.1"):
        assert forbidden(Queues(results=queue), names) is not None
    for queue in ("reply.1", "amq.gen-x", "results"):
        assert forbidden(Queues(results=queue), names) is None
    found = forbidden(Queues(results="mine"), names)
    assert "begins with none of reply., amq.gen- (rabbitmq.job_queues)" in found.reason


def test_no_queue_and_null_are_no_names():
    assert forbidden(Queues(results=None, success=None), NAMES) is None
