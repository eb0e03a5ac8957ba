"""Whole examples of what goes in and comes out, for the schemas and the AsyncAPI document.

Data alone; the events are made of the messages. Tests hold each of them against its schema and its
model, so that nobody copies an example that would be refused, and against the shipped rules of classification.
Names and addresses are those set aside for documentation (RFC 2606, RFC 5737).
"""

from datetime import UTC, datetime
from typing import Any

from mailq.core.webhooks.event_facts import Context
from mailq.core.webhooks.events import event_of

Document = dict[str, Any]

_MIME = "From: news@example.com\r\nTo: jo@example.org\r\nSubject: hi\r\n\r\nHello\r\n"

_GIVEN: Document = {
    "envelope": "bounces@example.com",
    "recipient": "jo@example.org",
    "maxdelivertime": "2030-02-01 12:00:00",
    "retries": [600, 1800, 3600],
    "tags": ["newsletter"],
    "order": 42,
}

_EXTRACTED: Document = {
    "from": "news@example.com",
    "to": ["jo@example.org"],
    "subject": "hi",
    "headers": {"from": "news@example.com", "to": "jo@example.org", "subject": "hi"},
    "envelope": {"local": "news", "domain": "example.com"},
    "recipient": {"local": "jo", "domain": "example.org"},
}

_RULESET = "2026.11.2"


def _refused(*, code: int, status: str, description: str, **meaning: Any) -> Document:  # noqa: ANN401 - JSON values
    """Return the result of an attempt that ended at RCPT TO with this answer, whatever it is taken for."""
    return {
        "state": "rcptto",
        "result": "error",
        "time": "2030-01-31 12:00:02",
        "attempt": 1,
        "mta": "mx1.example.org",
        "from": "192.0.2.1",
        "from_port": 54321,
        "to": "198.51.100.25",
        "session": "5f0c62d1b7a94e38",
        "messages": 1,
        "sent": {"connection": 88, "data": 0},
        "command": "RCPT TO:<jo@example.org>",
        "code": code,
        "status": status,
        "description": description,
        "timing": {"dns": 12.1, "bind": 0.1, "connect": 8.4, "intro": 9.0, "ehlo": 8.8, "mailfrom": 9.1, "rcptto": 0.1},
        "transcript": [
            "* connecting to 198.51.100.25 port 25",
            "* connected from 192.0.2.1",
            "S: 220 mx1.example.org ESMTP",
            "C: EHLO mta1.example.com",
            "S: 250-mx1.example.org",
            "S: 250-ENHANCEDSTATUSCODES",
            "S: 250 PIPELINING",
            "C: MAIL FROM:<bounces@example.com>",
            "C: RCPT TO:<jo@example.org>",
            "C: DATA",
            "S: 250 2.1.0 Ok",
            f"S: {code} {status} {description}",
            "S: 554 5.5.1 No valid recipients",
        ],
        **meaning,
        "ruleset": _RULESET,
    }


_GREYLISTED: Document = _refused(
    code=451,
    status="4.7.1",
    description="Greylisted, try again later",
    **{"class": 70, "class_name": "Transient Failure", "category": "soft", "about": "policy", "rule": "greylist"},
)

_ACCEPTED: Document = {
    "state": "message",
    "result": "accepted",
    "time": "2030-01-31 12:05:04",
    "attempt": 2,
    "mta": "mx1.example.org",
    "from": "192.0.2.1",
    "from_port": 40962,
    "to": "198.51.100.25",
    "session": "c81e728d9d4c2f63",
    "messages": 4,
    "sent": {"connection": 15234, "data": 14120},
    "cipher": {
        "name": "TLS_AES_256_GCM_SHA384",
        "bits": 256,
        "algbits": 256,
        "version": "TLSv1.3",
        "id": 4866,
        "protocol": "TLSv1.3",
    },
    "code": 250,
    "status": "2.0.0",
    "description": "Ok: queued as 4F2A1",
    "dsn": True,
    "timing": {"dns": 0.1, "mailfrom": 9.1, "rcptto": 0.1, "data": 0.1, "message": 31.5},
}

_UNKNOWN_USER: Document = _refused(
    code=550,
    status="5.1.1",
    description="No such user",
    **{
        "class": 10,
        "class_name": "Invalid Recipient",
        "category": "hard",
        "about": "recipient",
        "rule": "no-such-user",
    },
)

_EXPIRED: Document = _GREYLISTED | {"attempt": 3, "expired": True}

_NOT_VALID: Document = {
    "state": "process",
    "result": "invalid",
    "time": "2030-01-31 12:00:01",
    "attempt": 1,
    "code": 550,
    "status": "5.6.0",
    "description": "Input should be a valid list",
    "pointer": "/retries",
    "class": 25,
    "class_name": "Admin Failure",
    "category": "admin",
    "about": "us",
    "rule": "process/invalid",
    "ruleset": _RULESET,
}

_SEEN: Document = {"seen": "2030-01-31 12:00:01"}

_SAME_SOURCE: Document = {"time": "2030-01-31 12:05:02", "ip": "192.0.2.1"}
"""When a message that is greylisted is tried again, and from where."""

_MESSAGES: list[Document] = [
    _GIVEN | _SEEN | {"results": [_GREYLISTED, _ACCEPTED], "extracted": _EXTRACTED},
    _GIVEN | _SEEN | {"results": [_UNKNOWN_USER], "extracted": _EXTRACTED},
    _GIVEN | {"results": [_GREYLISTED], "extracted": _EXTRACTED, "nextattempt": _SAME_SOURCE},
]


def _event(message: Document) -> Document:
    event = event_of(message, "order-42", Context(), datetime(2030, 1, 31, 12, 5, 5, tzinfo=UTC))
    assert event is not None
    return event.body


EXAMPLES: dict[str, list[Document]] = {
    "job": [
        {"recipient": "jo@example.org", "mime": _MIME},
        _GIVEN | {"mime": _MIME, "queues": {"success": None, "failure": "newsletter.failures"}},
    ],
    "result": [_ACCEPTED, _GREYLISTED, _UNKNOWN_USER, _EXPIRED, _NOT_VALID],
    "message": _MESSAGES,
    "events": [_event(message) for message in _MESSAGES],
}
"""Examples by the name of their schema; those of `message`: delivered, given up, to be tried again."""
