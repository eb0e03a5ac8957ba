"""Valid jobs of a hostile or careless producer: each is accepted by the broker and could be a job of anybody.

An attack takes the plain document and message of a job, and the id of an innocent job of the same disaster. Whatever
it makes, its publication must end in a result or in poison, and the jobs beside it must not notice. Pure.
"""

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a producer: body and AMQP properties."""

    body: bytes
    message_id: str | None = None
    encoding: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


Attack = Callable[[Document, Message, str], Message]


def _headers(**headers: object) -> Attack:
    """Return an attack by AMQP headers alone."""
    return lambda _document, message, _innocent: replace(message, headers=headers)


def _properties(**properties: object) -> Attack:
    """Return an attack by properties of the document alone."""
    return lambda document, message, _innocent: replace(message, body=orjson.dumps(document | properties))


def _nested(levels: int) -> Attack:
    """Return an attack by an unknown property that is nested so deep."""
    text = b"[" * levels + b"]" * levels

    def attack(document: Document, message: Message, _innocent: str) -> Message:
        return replace(message, body=orjson.dumps(document)[:-1] + b',"deep":' + text + b"}")

    return attack


def _queues(name: str) -> Attack:
    """Return an attack that has its results published to the queue `name`."""
    return _properties(keepmime=True, queues=dict.fromkeys(("results", "success", "failure", "retry"), name))


def _half_emoji(document: Document, message: Message, _innocent: str) -> Message:
    """Write half of a surrogate pair, as JavaScript's `slice` leaves it."""
    return replace(message, body=json.dumps(document | {"label": "\ud83d"}).encode())


def _same_id(document: Document, message: Message, innocent: str) -> Message:
    """Take the id of an innocent job."""
    return replace(message, body=orjson.dumps(document | {"id": innocent}), message_id=innocent)


def _members(document: Document, message: Message, _innocent: str) -> Message:
    """Compress in two gzip members (RFC 1952 section 2.2), with the name of the coding in capitals."""
    body = orjson.dumps(document)
    return replace(message, body=gzip.compress(body[:40]) + gzip.compress(body[40:]), encoding="GZIP")


def _bomb(document: Document, message: Message, _innocent: str) -> Message:
    """Compress 150 MB of spaces to 150 kB."""
    return replace(message, body=gzip.compress(orjson.dumps(document) + b" " * 150_000_000, 1), encoding="gzip")


def _empty_objects(document: Document, message: Message, _innocent: str) -> Message:
    """Write a million empty objects, which take 64 octets of memory for 3 of text."""
    body = orjson.dumps(document)[:-1] + b',"objects":[' + b"{}," * 999_999 + b"{}]}"
    return replace(message, body=gzip.compress(body, 1), encoding="gzip")


_FORGED = {
    "x-mailq-returned": 1,
    "x-mailq-requeued": 1,
    "x-mailq-unnamed": "00-1",
    "x-mailq-publication": "00-1",
    "x-delivery-count": 99,
    "x-death": [{"queue": "outbox", "count": 99}],
}

ATTACKS: Mapping[str, Attack] = {
    "decimal-bound": _headers(n=Decimal(-2147483648), m=Decimal(2147483647).scaleb(-255)),
    "times-and-numbers": _headers(t=datetime(9999, 12, 31, tzinfo=UTC), f=-1.7e308, i=-(1 << 63), j=(1 << 63) - 1),
    "copies": _headers(CC=["outbox", "success"], BCC=["outbox"], cc=["outbox"]),
    "many-headers": _headers(**{f"header-{number:04d}": "x" * 200 for number in range(400)}),
    "nested-headers": _headers(a=[[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]),
    "forged-marks": _headers(**_FORGED),
    "to-outbox": _queues("outbox"),
    "to-delay": _queues("outbox.delay.1s"),
    "to-poison": _queues("outbox.poison"),
    "to-nowhere": _queues("no-such-queue"),
    "to-broker": _queues("amq.rabbitmq.reply-to"),
    "nested": _nested(240),
    "nested-deeper": _nested(900),
    "half-emoji": _half_emoji,
    "same-id": _same_id,
    "gzip-members": _members,
    "gzip-bomb": _bomb,
    "empty-objects": _empty_objects,
    "many-addresses": _properties(ips=["127.0.0.1"] * 20_000),
    "many-notifications": _properties(dsn={"notify": ",".join(["SUCCESS"] * 20_000)}),
    "many-tags": _properties(tags=["tag"] * 50_000),
    "long-pointer": _properties(queues={"x" * 200_000: "outbox"}),
    "inside": _properties(smarthost={"hostname": "127.0.0.1", "port": 1}, maxattempts=1),
}
"""All attacks by name."""
