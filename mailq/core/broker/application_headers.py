"""The headers and properties of a producer that go on to what mailq publishes. Pure.

A header or property that steers the broker stays behind: RabbitMQ takes each value of the headers `CC` and `BCC` for a
routing key, plug-ins read `x-…`. The rest belongs to applications and comes back. The page
docs/decisions/what-a-producer-may-steer.md has the whole table.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mailq.core.broker.messages import Application, Consumed

ROUNDS = "x-mailq-rounds"
"""AMQP header of results: how many results came one from the other, this one counted.

A result has no business on the outbox, but a binding may lead it there. A producer that forges the header shortens the
way of its own job only.
"""

MOST_ROUNDS = 3
"""A job that comes with a higher count goes to poison."""

FIRST_ROUND: Mapping[str, Any] = MappingProxyType({ROUNDS: 1})
"""Headers of the result of most jobs, which come without any; one object, so that it is encoded once."""

DROPPED = "x-mailq-dropped-headers"
"""AMQP header that names the producer's headers that mailq could not pass on, as text."""

MOST_DROPPED = 500
"""Characters of that text."""

_STEERING = frozenset({"cc", "bcc"})
_DIRECT_REPLY = "amq.rabbitmq.reply-to"


def steers(name: str) -> bool:
    """Tell whether a header is for brokers, in whichever case of letters."""
    lower = name.lower()
    return lower.startswith("x-") or lower in _STEERING


def passed_on(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the producer's headers (traceparent among them) that steer nothing, and mailq's note of lost ones."""
    if not headers:
        return {}
    kept = {name: value for name, value in headers.items() if not steers(name)}
    dropped = headers.get(DROPPED)
    if isinstance(dropped, str):
        kept[DROPPED] = dropped[:MOST_DROPPED]
    return kept


def application(consumed: Consumed) -> Application | None:
    """Return the properties for applications, without a `reply_to` for which RabbitMQ would close the channel.

    A publisher that names the direct reply-to without a consumer of it is refused.
    """
    properties = consumed.application
    if properties is not None and properties.reply_to == _DIRECT_REPLY:
        return properties._replace(reply_to=None)
    return properties


def rounds(headers: Mapping[str, Any]) -> int:
    """Return how many results a message came from, one after the other."""
    count = headers.get(ROUNDS) if headers else None
    return count if type(count) is int and count > 0 else 0


def result_headers(headers: Mapping[str, Any], *, final: bool) -> Mapping[str, Any]:
    """Return the headers of a result of a message that came with these.

    A result that is not final is never a job, since the job itself is on its way: the count is too high at once.
    """
    if final and not headers:
        return FIRST_ROUND
    return passed_on(headers) | {ROUNDS: (rounds(headers) if final else MOST_ROUNDS) + 1}


def same_rounds(headers: Mapping[str, Any]) -> dict[str, int]:
    """Return the header of a publication that is no result: the count stays."""
    return {ROUNDS: count} if (count := rounds(headers)) else {}
