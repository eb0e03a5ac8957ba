"""Webhooks, the decisions: who gets an event, what an answer means, when to try again, how to sign. Pure.

An answer says something of the event or of the endpoint. Of the event alone speak the few codes in
`ABOUT_EVENT`: that event waits in a delay queue while others go on. Everything else that is no success,
silence and redirects too, is the endpoint's trouble: nothing is sent to it for a while. 410 switches it off.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import orjson

from mailq.core.events import Event
from mailq.core.publication import Consumed, Publication

ABOUT_EVENT = frozenset({400, 406, 409, 411, 412, 413, 414, 415, 416, 417, 418, 422, 428, 431, 451})
"""Refusals of what was sent, not of who sends it or where: another event may fare better."""

LONGEST_REST = 3600.0
"""Seconds that a Retry-After is believed at most."""


class Meaning(StrEnum):
    """What an answer means."""

    DONE = "done"
    REFUSED = "refused"
    TROUBLE = "trouble"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: an HTTP status, or None and why there was none; `retry_after` in seconds."""

    status: int | None
    reason: str = ""
    retry_after: float | None = None

    @property
    def meaning(self) -> Meaning:
        """What is to be done now."""
        if self.status is None:
            return Meaning.TROUBLE
        if self.status // 100 == 2:
            return Meaning.DONE
        if self.status == 410:
            return Meaning.GONE
        return Meaning.REFUSED if self.status in ABOUT_EVENT else Meaning.TROUBLE

    def __str__(self) -> str:
        """Return status and reason for logs and headers."""
        return " ".join(str(part) for part in (self.status, self.reason) if part)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the flow needs to know of an endpoint; times in seconds, empty filters let everything pass."""

    name: str
    events: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    concurrency: int = 4
    batch: int = 1
    batch_wait: float = 0.5

    def wants(self, event: Event) -> bool:
        """Tell whether an event passes the filters; what was sent has no category and needs none."""
        return (
            (not self.events or event.name in self.events)
            and (not self.categories or event.category in self.categories or event.name == "messageSent")
            and (not self.tags or not set(self.tags).isdisjoint(event.tags))
        )


def rest(failures: int, answer: Answer, shortest: float, longest: float) -> float:
    """Return for how many seconds an endpoint is left alone after so many failures in a row (from 0)."""
    own = min(shortest * 2.0 ** min(failures, 30), longest)
    return own if answer.retry_after is None else max(own, min(answer.retry_after, LONGEST_REST))


def signature(secrets: Sequence[bytes], moment: int, body: bytes) -> str:
    """Return the value of X-Mailq-Signature: time, and HMAC-SHA256 of "time.body" for each secret (RFC 2104)."""
    signed = b"%d." % moment + body
    return ",".join([f"t={moment}", *(f"v1={hmac.new(key, signed, hashlib.sha256).hexdigest()}" for key in secrets)])


@dataclass(frozen=True, slots=True)
class Wait:
    """One event in a delay queue."""

    attempt: int
    step: str
    until: float


@dataclass(slots=True)
class Waits:
    """Which events of which jobs are in delay queues of an endpoint; moments in seconds on any one clock."""

    jobs: dict[str, dict[str, Wait]] = field(default_factory=dict)

    def add(self, job: str, event: str, wait: Wait) -> None:
        """Note that an event went to a delay queue; it is believed to be there until `wait.until`."""
        self.jobs.setdefault(job, {})[event] = wait

    def remove(self, job: str, event: str) -> None:
        """Note that an event has come back."""
        if (events := self.jobs.get(job)) is not None:
            events.pop(event, None)
            if not events:
                del self.jobs[job]

    def before(self, job: str, attempt: int, now: float) -> Wait | None:
        """Return the last of the waiting events of a job that have to go before this attempt's."""
        waits = self.jobs.get(job, {})
        for event in [event for event, wait in waits.items() if wait.until < now]:
            self.remove(job, event)  # somebody emptied the queue
        return max(
            (wait for wait in waits.values() if wait.attempt < attempt), key=lambda each: each.until, default=None
        )


_HEADERS = (f"x-mailq-{name}" for name in ("event", "time", "job", "attempt", "tries", "again", "reason", "endpoint"))
EVENT, TIME, JOB, ATTEMPT, TRIES, AGAIN, REASON, ENDPOINT = _HEADERS
"""AMQP headers of an event on its way; the last two of one that was given up."""


@dataclass(frozen=True, slots=True)
class Item:
    """One event in the queue of an endpoint, as the message that carries it says.

    `id` is the event's; `time` is when it was made, in seconds since 1970; `tries` counts refusals; `again`:
    it may be there twice; `since` is when it came into memory, on a clock of the caller's.
    """

    id: str
    name: str
    job: str
    attempt: int
    time: int
    tries: int
    consumed: Consumed
    again: bool = False
    since: float = 0.0

    @property
    def body(self) -> bytes:
        """The event as JSON."""
        return self.consumed.body

    @property
    def tag(self) -> int:
        """What it is acknowledged by."""
        return self.consumed.tag

    @classmethod
    def of(cls, consumed: Consumed, since: float = 0.0) -> "Item | None":
        """Return the event in a message, None if somebody else made that."""
        name, job, attempt, time = (consumed.headers.get(header) for header in (EVENT, JOB, ATTEMPT, TIME))
        tries = consumed.headers.get(TRIES, 0)
        if not (isinstance(name, str) and isinstance(job, str) and consumed.message_id):
            return None
        if not (isinstance(attempt, int) and isinstance(time, int) and isinstance(tries, int)):
            return None
        again = consumed.redelivered or consumed.headers.get(AGAIN) == 1
        return cls(consumed.message_id, name, job, attempt, time, max(tries, 0), consumed, again, since)

    @classmethod
    def made_of(cls, event: Event, now: int, *, again: bool) -> "Item":
        """Return an event ready to be published."""
        return cls(
            event.id, event.name, event.job[:255], event.attempt, now, 0, Consumed(orjson.dumps(event.body), 0), again
        )

    def publication(self, queue: str, *, tries: int) -> Publication:
        """Return the publication that sends it to a queue."""
        headers = {EVENT: self.name, TIME: self.time, JOB: self.job, ATTEMPT: self.attempt, TRIES: tries}
        return Publication(
            "", queue, self.body, message_id=self.id, headers=headers | ({AGAIN: 1} if self.again else {})
        )


def give_up(consumed: Consumed, queue: str, reason: str, endpoint: str = "") -> Publication:
    """Return the publication that puts a message aside, body untouched, with the reason in its headers."""
    kept = {name: value for name, value in consumed.headers.items() if name.startswith("x-mailq-")}
    headers = kept | {REASON: reason[:500]} | ({ENDPOINT: endpoint} if endpoint else {})
    return Publication("", queue, consumed.body, message_id=consumed.message_id, headers=headers)
