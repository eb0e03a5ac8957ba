"""Messages of the broker as values: one consumed, one to be published.

Named tuples, because one of each is made for every message, and a frozen dataclass takes five times as long to make.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mailq.core.jobs.content_encoding import GZIP, claimed

_NONE: Mapping[str, Any] = MappingProxyType({})


class Application(NamedTuple):
    """Basic properties that no broker reads: they are between a producer and those who read its results."""

    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    app_id: str | None = None


class Consumed(NamedTuple):
    """One message taken from the outbox and not yet acknowledged."""

    body: bytes
    tag: int
    redelivered: bool = False
    message_id: str | None = None
    content_encoding: str | None = None
    priority: int | None = None
    headers: Mapping[str, Any] = _NONE
    application: Application | None = None

    @property
    def octets(self) -> int:
        """Size of the body in memory, gzip undone: as its last octets say (RFC 1952 section 2.3.1)."""
        return max(len(self.body), claimed(self.body)) if self.zipped else len(self.body)

    @property
    def zipped(self) -> bool:
        """Tell whether the body is gzip, whatever `content_encoding` says in whatever spelling."""
        return self.body.startswith(GZIP)

    @property
    def delivery_count(self) -> int:
        """How often a quorum queue has already tried to deliver it (`x-delivery-count`).

        At the first delivery such a header is the producer's: the broker's own replaces it at the next.
        """
        count = self.headers.get("x-delivery-count", 0) if self.redelivered else 0
        return count if isinstance(count, int) else 0


class Fallback(NamedTuple):
    """Where a publication goes that reached no queue."""

    exchange: str
    routing_key: str
    mandatory: bool


class Publication(NamedTuple):
    """One message to publish, persistent; an empty exchange is the default exchange.

    With `mandatory`, a message that reaches no queue is an error, not a loss. `fallback` is for a queue that only a job
    names.
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
    application: Application | None = None
    fallback: Fallback | None = None
