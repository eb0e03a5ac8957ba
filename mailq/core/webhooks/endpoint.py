"""Webhooks, the decisions: who gets an event, what an answer means, when to try again, how to sign. Pure.

An answer says something of the event or of the endpoint. Of the event alone speak the few codes in
`ABOUT_EVENT`: that event waits in a delay queue while others go on. Everything else that is no success,
silence and redirects too, is the endpoint's trouble: nothing is sent to it for a while. 410 switches it off.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import orjson

from mailq.core.broker.messages import Consumed, Publication
from mailq.core.jobs.document import InvalidJobError
from mailq.core.smtp.reply import printable
from mailq.core.webhooks.event_facts import Json
from mailq.core.webhooks.events import FAILED, Event

ABOUT_EVENT = frozenset({400, 406, 409, 411, 412, 413, 414, 415, 416, 417, 418, 422, 428, 431, 451})
"""Refusals of what was sent, not of who sends it or where: another event may fare better."""

LONGEST_REST = 3600.0
"""Seconds that a Retry-After is believed at most."""


class AnswerMeaning(StrEnum):
    """What an answer means."""

    DONE = "done"
    REFUSED = "refused"
    TROUBLE = "trouble"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: an HTTP status, or None and why there was none; `retry_after` in seconds.

    `is_bug` tells that the client raised an exception which it does not foresee.
    """

    status: int | None
    reason: str = ""
    retry_after: float | None = None
    is_bug: bool = False

    @property
    def meaning(self) -> AnswerMeaning:
        """What is to be done now."""
        if self.status is None:
            return AnswerMeaning.REFUSED if self.is_bug else AnswerMeaning.TROUBLE
        if self.status // 100 == 2:
            return AnswerMeaning.DONE
        if self.status == 410:
            return AnswerMeaning.GONE
        return AnswerMeaning.REFUSED if self.status in ABOUT_EVENT else AnswerMeaning.TROUBLE

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


def emailengine_signature(secret: bytes, body: bytes) -> str:
    """Return the value of EmailEngine's X-EE-Wh-Signature: HMAC-SHA256 of the body in base64url without padding."""
    return urlsafe_b64encode(hmac.new(secret, body, hashlib.sha256).digest()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Wait:
    """One event in a delay queue; `place` orders the events of one job."""

    place: int
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

    def before(self, job: str, place: int, now: float) -> Wait | None:
        """Return the last of the waiting events of a job that have to go before the event of this place."""
        waits = self.jobs.get(job, {})
        for event in [event for event, wait in waits.items() if wait.until < now]:
            self.remove(job, event)  # somebody emptied the queue
        return max((wait for wait in waits.values() if wait.place < place), key=lambda each: each.until, default=None)


_NAMES = ("event", "time", "job", "attempt", "tries", "again", "reason", "endpoint", "pointer")
_HEADERS = tuple(f"x-mailq-{name}" for name in _NAMES)
EVENT, TIME, JOB, ATTEMPT, TRIES, AGAIN, REASON, ENDPOINT, POINTER = _HEADERS
"""AMQP headers of an event on its way; the last three of a message that was given up."""

MOST_TRIES = 1_000_000
"""Refusals that are counted; a stranger's header may hold more than the next count could be written with."""


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
    def place(self) -> int:
        """Place of the event among those of its job: the failure comes after the delivery error of its attempt."""
        return 2 * self.attempt + (self.name == FAILED)

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
        return cls(
            consumed.message_id, name, job, attempt, time, min(max(tries, 0), MOST_TRIES), consumed, again, since
        )

    @classmethod
    def made_of(cls, event: Event, now: int, *, again: bool) -> "Item":
        """Return an event ready to be published.

        Raises:
            InvalidJobError: the document's properties are nested too deeply, as an event holds them two levels deeper.
        """
        try:
            body = orjson.dumps(event.body)
        except TypeError as trouble:
            raise InvalidJobError(f"cannot be written as an event: {trouble}", _unwritable(event.body)) from None
        job = event.job[:255].encode("utf-8", "replace").decode()
        return cls(event.id, event.name, job, event.attempt, now, 0, Consumed(body, 0), again)

    def publication(self, queue: str, *, tries: int) -> Publication:
        """Return the publication that sends it to a queue."""
        headers = {EVENT: self.name, TIME: self.time, JOB: self.job, ATTEMPT: self.attempt, TRIES: tries}
        return Publication(
            "", queue, self.body, message_id=self.id, headers=headers | ({AGAIN: 1} if self.again else {})
        )


def _unwritable(event: Json) -> str:
    """Return the JSON pointer (RFC 6901) of the document's property that no event can hold."""
    properties: Json = event["x-mailq"]["properties"]
    for name, value in properties.items():
        try:
            orjson.dumps([[[value]]])
        except TypeError:
            return "/" + name.replace("~", "~0").replace("/", "~1")
    return ""


def give_up(consumed: Consumed, queue: str, reason: str, endpoint: str = "", pointer: str = "") -> Publication:
    """Return the publication that puts a message aside, body untouched, with the reason in its headers.

    Of the message's own headers those of mailq stay; `endpoint` is empty for a document that makes no event, and
    `pointer` says where in it the reason lies.
    """
    about = {REASON: reason, ENDPOINT: endpoint, POINTER: pointer}
    headers = _kept(consumed) | {
        name: printable(text.encode(errors="replace"), 500) for name, text in about.items() if text
    }
    return Publication(
        "",
        queue,
        consumed.body,
        message_id=consumed.message_id,
        content_encoding=consumed.content_encoding,
        headers=headers,
    )


def replay(consumed: Consumed, prefix: str, endpoints: Collection[str], now: int) -> Publication | str:
    """Return the publication that brings a message of the dead queue back, or why there is none.

    An event returns to its endpoint's queue as if it were made now, since its age would end it again; it may be
    there twice. A document returns to the intake. The broker itself gave up what has no reason of mailq's: then
    its record of the death names the queue.
    """
    name = consumed.headers.get(ENDPOINT)
    queue = f"{prefix}.{name}" if name else str(consumed.headers.get("x-first-death-queue", prefix))
    if queue != prefix and queue not in {f"{prefix}.{endpoint}" for endpoint in endpoints}:
        return f"its endpoint is not configured any more: {queue}"
    item = Item.of(consumed)
    if queue == prefix:
        left = {key: value for key, value in _kept(consumed).items() if key not in (REASON, ENDPOINT, POINTER)}
        return give_up(consumed, prefix, "")._replace(headers=left)
    if item is None:
        return "it is no event made by mailq"
    return replace(item, time=now, again=True).publication(queue, tries=0)


def _kept(consumed: Consumed) -> dict[str, str | int]:
    """Return mailq's own headers of a message, as far as they can be written again."""
    found = {name: consumed.headers.get(name) for name in _HEADERS}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)
    }
