"""Exchange, queues and bindings: what has to exist in the broker, and making or checking it.

The tables here are the whole truth about names and arguments. With `rabbitmq.declare` everything is
declared, which changes nothing where it exists as it should; without, only its existence is
checked. What exists differently is one clear error, never repaired: the operator's messages are
in there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pamqp import commands

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.retry import STEPS
from mailq.edges.amqp.connection import Connection, RefusedError
from mailq.edges.amqp.methods import ExchangeDeclare, QueueBind, QueueDeclare
from mailq.ports import BrokerError

UNLIMITED = 1_000_000_000
"""Delivery limit of queues from which nothing may go for being looked at too often: RabbitMQ 4 drops it at 20."""

LIMIT = "x-delivery-limit"

NOT_FOUND = 404
LOCKED = 405
PRECONDITION_FAILED = 406


class TopologyError(BrokerError):
    """Something is missing, exists differently, or may not be declared; the text names it, and the remedy."""


_DIFFERENT = re.compile(r"inequivalent arg '([^']+)' for (\w+) '(.*)' in vhost '.*': received (.*) but current is (.*)")


@dataclass(frozen=True, slots=True)
class Queue:
    """One durable queue and the arguments it is declared with.

    One that exists without the `UNLIMITED` delivery limit is used as it is: earlier versions declared it so.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def delay_queue(outbox: str, step: str) -> str:
    """Return the name of the delay queue for one of `core.retry.STEPS`."""
    return f"{outbox}.delay.{step}"


def lasting(config: RabbitConfig) -> dict[str, object]:
    """Return the arguments of a queue whose messages stay, however often they are looked at, until they are taken."""
    limit = {LIMIT: UNLIMITED} if config.queue_type == "quorum" else {}
    return {"x-queue-type": config.queue_type, **limit}


def queues(config: RabbitConfig) -> Iterator[Queue]:
    """Yield every queue that the configuration names, those that others dead-letter to first."""
    quorum = config.queue_type == "quorum"
    plain = {"x-queue-type": config.queue_type}
    # Dead letters are moved only when their target has confirmed them; that asks for reject-publish.
    safe = plain | {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"} if quorum else plain
    yield Queue(config.poison, lasting(config))
    limit = {LIMIT: config.delivery_limit} if quorum else {}
    yield Queue(config.outbox, safe | limit | _dead_letter_to(config.poison))
    for step, seconds in STEPS.items():
        name = delay_queue(config.outbox, step)
        yield Queue(name, safe | {"x-message-ttl": seconds * 1000} | _dead_letter_to(config.outbox))
    for name in dict.fromkeys((config.results, config.success, config.failures, config.retry)):
        if name:
            yield Queue(name, lasting(config))


def bindings(config: RabbitConfig) -> Iterator[tuple[str, str]]:
    """Yield which queue is bound to the exchange with which pattern."""
    for name, patterns in (
        (config.results, ("success.#", "failure.#")),
        (config.success, ("success.#",)),
        (config.failures, ("failure.#",)),
        (config.retry, ("retry.#",)),
    ):
        for pattern in patterns if name else ():
            yield name, pattern


async def prepare(connection: Connection, config: RabbitConfig) -> None:
    """Declare what is configured, or check that it exists.

    Raises:
        TopologyError: something is missing, exists differently, or may not be declared.
        BrokerError: the connection is lost.
    """
    await establish(connection, config, queues(config), bindings(config))


async def establish(
    connection: Connection, config: RabbitConfig, wanted: Iterable[Queue], bound: Iterable[tuple[str, str]]
) -> None:
    """Declare the exchange, these queues and these bindings to it, or check that they exist; errors as in `prepare`."""
    await _exchange(connection, config)
    for queue in wanted:
        await _queue(connection, config, queue)
    if config.declare:
        for name, pattern in bound:
            await connection.call(QueueBind(0, name, config.exchange, pattern), commands.Queue.BindOk)


async def count(connection: Connection, name: str) -> int:
    """Return how many ready messages a queue holds, without changing anything.

    Raises:
        RefusedError: there is no such queue (code 404), or it may not be looked at.
        BrokerError: the connection is lost.
    """
    answer = await connection.call(QueueDeclare(0, name, passive=True), commands.Queue.DeclareOk)
    return cast("commands.Queue.DeclareOk", answer).message_count or 0


async def declare(connection: Connection, queue: Queue) -> bool:
    """Declare a durable queue, and tell whether it is as wanted; False: it lacks the unlimited delivery limit.

    Raises:
        RefusedError: it exists differently, or may not be declared.
        BrokerError: the connection is lost.
    """
    arguments = dict(queue.arguments)
    try:
        await connection.call(_declaration(queue.name, arguments), commands.Queue.DeclareOk)
    except RefusedError as refused:
        different = _DIFFERENT.search(refused.text)
        if not (different and different[1] == LIMIT and arguments.pop(LIMIT) == UNLIMITED):
            raise
        try:
            await connection.call(_declaration(queue.name, arguments), commands.Queue.DeclareOk)
        except RefusedError:
            raise refused from None
        return False
    return True


def _declaration(name: str, arguments: Mapping[str, Any]) -> QueueDeclare:
    return QueueDeclare(0, name, durable=True, arguments=dict(arguments))


async def _queue(connection: Connection, config: RabbitConfig, queue: Queue) -> None:
    try:
        if config.declare:
            await declare(connection, queue)
        else:
            await count(connection, queue.name)
    except RefusedError as refused:
        raise _explained(refused, "queue", queue.name) from refused


async def _exchange(connection: Connection, config: RabbitConfig) -> None:
    kind = "topic" if config.declare else ""
    method = ExchangeDeclare(0, config.exchange, kind, passive=not config.declare, durable=True)
    try:
        await connection.call(method, commands.Exchange.DeclareOk)
    except RefusedError as refused:
        raise _explained(refused, "exchange", config.exchange) from refused


def _dead_letter_to(queue: str) -> dict[str, str]:
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def _explained(refused: RefusedError, what: str, name: str) -> TopologyError:
    """Return what to tell the operator: what is wrong with which queue or exchange, and the remedy."""
    if refused.code == NOT_FOUND:
        return TopologyError(
            f"{what} {name!r} does not exist, and rabbitmq.declare is false: create it, or set rabbitmq.declare = true"
        )
    different = _DIFFERENT.search(refused.text)
    if refused.code == PRECONDITION_FAILED and different:
        argument, _, _, wanted, existing = different.groups()
        return TopologyError(
            f"{what} {name!r} exists with another {argument}: wanted {wanted}, it has {existing};"
            f" make the configuration match, or delete the {what} once it is empty,"
            " or set rabbitmq.declare = false to use it as it is"
        )
    return TopologyError(f"{what} {name!r}: {refused}")
