"""Messages of the broker as values: one consumed, one to be published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Consumed:
    """One message taken from the outbox and not yet acknowledged."""

    body: bytes
    tag: int
    redelivered: bool = False
    message_id: str | None = None
    content_encoding: str | None = None
    priority: int | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def delivery_count(self) -> int:
        """How often a quorum queue has already tried to deliver it (`x-delivery-count`)."""
        count = self.headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish, persistent; an empty exchange is the default exchange.

    With `mandatory`, a message that reaches no queue is an error, not a loss.
    """

    exchange: str
    routing_key: str
    body: bytes
    message_id: str | None = None
    content_type: str | None = "application/json"
    content_encoding: str | None = None
    priority: int | None = None
    headers: Mapping[str, Any] | None = None
    mandatory: bool = True
