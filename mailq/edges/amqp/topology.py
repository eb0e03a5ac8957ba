"""Exchange, queues and bindings: what has to exist in the broker, and making or checking it.

The tables here are the whole truth about names and arguments. What is missing is declared, with
`rabbitmq.declare`; without, that is an error. What exists is used as it is and never repaired: the
operator's messages are in there. What differs is told with its costs (`edges.amqp.differences`), and
is an error only where jobs or results would be lost by design.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from pamqp import commands

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp import differences as differing
from mailq.edges.amqp.connection import Connection, RefusedError
from mailq.edges.amqp.differences import LIMIT, TTL, TYPE, Difference
from mailq.edges.amqp.methods import ExchangeDeclare, QueueBind, QueueDeclare
from mailq.ports.broker import BrokerError

UNLIMITED = 1_000_000_000
"""Delivery limit of queues from which nothing may go for being looked at too often: RabbitMQ 4 drops it at 20."""

ROUNDS = 20
"""Differing arguments of one queue that are asked for; RabbitMQ tells one at a time."""

NOT_FOUND = 404
LOCKED = 405
PRECONDITION_FAILED = 406


class TopologyError(BrokerError):
    """Something is missing, exists differently, or may not be declared; the text names it, and the remedy."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One durable queue and the arguments it is declared with, where it is missing."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def delay_queue(outbox: str, step: str) -> str:
    """Return the name of the delay queue for one of `core.answers.schedule.STEPS`."""
    return f"{outbox}.delay.{step}"


def lasting(config: RabbitConfig) -> dict[str, object]:
    """Return the arguments of a queue whose messages stay, however often they are looked at, until they are taken."""
    limit = {LIMIT: UNLIMITED} if config.queue_type == "quorum" else {}
    return {TYPE: config.queue_type, **limit}


def queues(config: RabbitConfig) -> Iterator[Queue]:
    """Yield every queue that the configuration names, those that others dead-letter to first."""
    quorum = config.queue_type == "quorum"
    plain = {TYPE: config.queue_type}
    # Dead letters are moved only when their target has confirmed them; that asks for reject-publish.
    safe = plain | {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"} if quorum else plain
    yield Queue(config.poison, lasting(config))
    limit = {LIMIT: config.delivery_limit} if quorum else {}
    bare = not config.arguments
    yield Queue(config.outbox, {} if bare else safe | limit | _dead_letter_to(config.poison))
    for step, seconds in STEPS.items():
        name = delay_queue(config.outbox, step)
        yield Queue(name, safe | {TTL: seconds * 1000} | _dead_letter_to(config.outbox))
    for name in dict.fromkeys((config.results, config.success, config.failures, config.retry)):
        if name:
            yield Queue(name, {} if bare else lasting(config))


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


async def prepare(connection: Connection, config: RabbitConfig) -> list[str]:
    """Declare what is missing, use what is there, and return what differs and costs something, a sentence each.

    Raises:
        TopologyError: something is missing, cannot be worked with, or may not be declared.
        BrokerError: the connection is lost.
    """
    return await establish(connection, config, queues(config), bindings(config))


async def establish(
    connection: Connection, config: RabbitConfig, wanted: Iterable[Queue], bound: Iterable[tuple[str, str]]
) -> list[str]:
    """Do as `prepare` does, with these queues and these bindings to the exchange."""
    notes: list[str] = []
    try:
        different = await exchange(connection, config)
    except RefusedError as refused:
        raise _explained(refused, "exchange", config.exchange) from refused
    if different:
        notes.append(f"exchange {config.exchange!r}: {_listed(different)}")
    for queue in wanted:
        try:
            different = await declare(connection, queue) if config.declare else await _only_there(connection, queue)
        except RefusedError as refused:
            raise _explained(refused, "queue", queue.name) from refused
        if trouble := obstacle(config, queue, different):
            raise TopologyError(trouble)
        if told := cost(config, queue, different):
            notes.append(f"queue {queue.name!r}: {_listed(different)}; {told}")
    for name, pattern in bound if config.declare else ():
        try:
            await connection.call(QueueBind(0, name, config.exchange, pattern), commands.Queue.BindOk)
        except RefusedError as refused:
            raise _explained(refused, "queue", name) from refused
    return notes


async def exchange(connection: Connection, config: RabbitConfig) -> tuple[Difference, ...]:
    """Declare the exchange if it is missing and `declare` is on; return what differs where it is there.

    Raises:
        TopologyError: results would not reach their queues.
        RefusedError: it is missing, or may not be declared.
        BrokerError: the connection is lost.
    """
    if await _exists(connection, ExchangeDeclare(0, config.exchange, "", passive=True), config.declare):
        found = await compare_exchange(connection, config) if config.declare else ()
    else:
        found = await compare_exchange(connection, config, missing=True)
    if wrong := differing.lost_exchange(found):
        raise TopologyError(
            f"exchange {config.exchange!r} exists with another {wrong.argument}: wanted {wrong.wanted!r},"
            f" it has {wrong.found!r}, so results would not reach their queues; name another rabbitmq.exchange,"
            " or delete it, or set rabbitmq.declare = false to use it with bindings of your own"
        )
    return found


async def compare_exchange(
    connection: Connection, config: RabbitConfig, *, missing: bool = False
) -> tuple[Difference, ...]:
    """Return what differs at the exchange; `missing`: it is to be made, and what forbids that is raised."""
    kind, flags = "topic", {"durable": True, "auto_delete": False, "internal": False}
    found: list[Difference] = []
    for _ in range(ROUNDS):
        try:
            method = ExchangeDeclare(0, config.exchange, kind)
            method.durable, method.auto_delete, method.internal = (
                flags["durable"],
                flags["auto_delete"],
                flags["internal"],
            )
            await connection.call(method, commands.Exchange.DeclareOk)
        except RefusedError as refused:
            different = differing.read(refused.text) if refused.code == PRECONDITION_FAILED else None
            if different is None and missing and not found:
                raise
            if different is None or different in found:
                break
            found.append(different)
            if different.argument == "type":
                kind = different.found
            elif different.argument in flags:
                flags[different.argument] = bool(different.value)
            else:  # arguments of an exchange do no harm
                break
        else:
            break
    return tuple(found)


class QueueState(NamedTuple):
    """The ready messages and the consumers of a queue."""

    messages: int
    consumers: int


async def look(connection: Connection, name: str) -> QueueState:
    """Return the state of a queue, without changing anything.

    Raises:
        RefusedError: there is no such queue (code 404), or it may not be looked at.
        BrokerError: the connection is lost.
    """
    answer = await connection.call(QueueDeclare(0, name, passive=True), commands.Queue.DeclareOk)
    found = cast("commands.Queue.DeclareOk", answer)
    return QueueState(found.message_count or 0, found.consumer_count or 0)


async def look_at_exchange(connection: Connection, name: str) -> None:
    """Return if an exchange exists.

    Raises:
        RefusedError: there is no such exchange (code 404).
        BrokerError: the connection is lost.
    """
    await connection.call(ExchangeDeclare(0, name, "", passive=True), commands.Exchange.DeclareOk)


async def delete(connection: Connection, config: RabbitConfig) -> None:
    """Delete the queues and the exchange that are configured, with what they hold.

    Raises:
        BrokerError: the connection is lost, or the broker refuses.
    """
    for queue in queues(config):
        await connection.call(commands.Queue.Delete(0, queue.name), commands.Queue.DeleteOk)
    await connection.call(commands.Exchange.Delete(0, config.exchange), commands.Exchange.DeleteOk)


async def count(connection: Connection, name: str) -> int:
    """Return how many ready messages a queue holds, without changing anything.

    Raises:
        RefusedError: there is no such queue (code 404), or it may not be looked at.
        BrokerError: the connection is lost.
    """
    return (await look(connection, name)).messages


async def declare(connection: Connection, queue: Queue) -> tuple[Difference, ...]:
    """Declare a durable queue where it is missing, and return what differs where it is there.

    Another client may declare the queue between the look and the declaration; then it is there.

    Raises:
        RefusedError: it is missing and may not be declared, or is exclusive to another connection.
        BrokerError: the connection is lost.
    """
    there = await _exists(connection, QueueDeclare(0, queue.name, passive=True), True)
    return await compare(connection, queue, missing=not there)


async def compare(connection: Connection, queue: Queue, *, missing: bool = False) -> tuple[Difference, ...]:
    """Return what differs at a queue; `missing`: it is to be made, and what forbids that is raised.

    RabbitMQ tells one differing argument for each refused declaration. So the declaration takes on what it
    is told, until it fits.
    """
    arguments, flags = dict(queue.arguments), {"durable": True, "auto_delete": False}
    found: list[Difference] = []
    for _ in range(ROUNDS):
        try:
            await connection.call(QueueDeclare(0, queue.name, arguments=arguments, **flags), commands.Queue.DeclareOk)
        except RefusedError as refused:
            different = differing.read(refused.text) if refused.code == PRECONDITION_FAILED else None
            if different is None and missing and not found:
                raise
            if different is None or different in found:
                break
            found.append(different)
            _take_on(different, arguments, flags)
        else:
            break
    return tuple(found)


def obstacle(config: RabbitConfig, queue: Queue, different: Sequence[Difference]) -> str | None:
    """Return why mailq cannot work with a queue that differs so, with the remedy; None: it can."""
    wrong = differing.refused(different, takes_jobs=queue.name == config.outbox, delay=TTL in queue.arguments)
    if wrong is None:
        return None
    return (
        f"queue {queue.name!r} exists with another {wrong.argument}: wanted {wrong.wanted!r}, it has {wrong.found!r},"
        " and jobs would be lost there; delete it once it is empty, for mailq to declare it anew,"
        " or name another rabbitmq.outbox, or set rabbitmq.declare = false if a policy makes up for it"
    )


def cost(config: RabbitConfig, queue: Queue, different: Sequence[Difference]) -> str:
    """Return what it costs that a queue differs so; empty: nothing."""
    clauses = differing.costs(
        different,
        takes_jobs=queue.name == config.outbox,
        delays=TTL in queue.arguments,
        quorum=queue.arguments.get(TYPE) == "quorum",
    )
    return "; ".join(clauses)


def _take_on(different: Difference, arguments: dict[str, Any], flags: dict[str, bool]) -> None:
    """Let a declaration have what the queue has."""
    if different.argument in flags:
        flags[different.argument] = bool(different.value)
    elif different.value is None:
        arguments.pop(different.argument, None)
    else:
        arguments[different.argument] = different.value
    if different.argument == TYPE and different.value != "quorum":  # others refuse arguments of quorum queues
        for name in (LIMIT, "x-dead-letter-strategy", "x-overflow"):
            arguments.pop(name, None)


async def _exists(connection: Connection, passive: QueueDeclare | ExchangeDeclare, declare: bool) -> bool:  # noqa: FBT001
    """Tell whether it is there; where nothing is declared, that it is missing is raised."""
    answer = commands.Queue.DeclareOk if isinstance(passive, QueueDeclare) else commands.Exchange.DeclareOk
    try:
        await connection.call(passive, answer)
    except RefusedError as refused:
        if refused.code != NOT_FOUND or not declare:
            raise
        return False
    return True


async def _only_there(connection: Connection, queue: Queue) -> tuple[Difference, ...]:
    await count(connection, queue.name)
    return ()


def _listed(different: Iterable[Difference]) -> str:
    return ", ".join(map(str, different))


def _dead_letter_to(queue: str) -> dict[str, str]:
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def _explained(refused: RefusedError, what: str, name: str) -> TopologyError:
    """Return what to tell the operator: what is wrong with which queue or exchange, and the remedy."""
    if refused.code == NOT_FOUND:
        return TopologyError(
            f"{what} {name!r} does not exist, and rabbitmq.declare is false: create it, or set rabbitmq.declare = true"
        )
    return TopologyError(f"{what} {name!r}: {refused}")
