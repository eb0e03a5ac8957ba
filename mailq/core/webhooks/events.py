"""Results as events: `messageSent`, `messageDeliveryError` and `messageFailed` in EmailEngine's shapes. Pure.

`events_of` makes the events of a document from a result queue, by its last result: accepted is sent, a time
for the next attempt is a delivery error, everything else has failed; where the last attempt met a receiver or the
network, its delivery error comes first. `error_code` names what happened in EmailEngine's ten words. What is not known
is absent; nothing is invented but the Message-ID that EmailEngine's handlers rely on. Documents may be anybody's, so
nothing is believed to have the right type. `core.webhooks.event_schema` has the same shapes as models.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import orjson

from mailq.core.jobs.job import Job, Smarthost
from mailq.core.jobs.tolerance import mend
from mailq.core.results.schema import MessageRecord
from mailq.core.smtp.failure import DEFAULTS, DEFAULTS_BY_KIND
from mailq.core.states import AUTH_STATES, ORDER, Kind, State
from mailq.core.webhooks.event_facts import Context, Json, attempts_of, next_time, routing_of, text_of, whole

SENT = "messageSent"
DELIVERY_ERROR = "messageDeliveryError"
FAILED = "messageFailed"
EVENTS = (SENT, DELIVERY_ERROR, FAILED)

_READ = ("id", "ips", "maxattempts", "maxdelivertime", "retries", "smarthost", "tags", "useful_until")
"""Properties of a job that events are made of, whatever form of theirs was taken."""

_TLS_STATES = frozenset({State.HANDSHAKE, State.STARTTLS})
_ADDRESS_STATES = frozenset({State.MAILFROM, State.RCPTTO})
_OWN_STATES = frozenset(state for state in State if ORDER[state] < ORDER[State.DNS])
_BAD = (Kind.LOST, Kind.INVALID, Kind.ERROR)

_CODES: dict[tuple[State, Kind], str] = {
    **dict.fromkeys(product(State, (Kind.TIMEOUT,)), "ETIMEDOUT"),
    **dict.fromkeys(product(State, (Kind.LOST,)), "ESOCKET"),
    **dict.fromkeys(product(State, (Kind.INVALID,)), "EPROTOCOL"),
    **dict.fromkeys(product(State, (Kind.ERROR, Kind.ACCEPTED)), "EMESSAGE"),
    **dict.fromkeys(product(_OWN_STATES, _BAD), "EMESSAGE"),
    **dict.fromkeys(product((State.DNS,), _BAD), "EDNS"),
    **dict.fromkeys(product((State.BIND, State.CONNECT), _BAD), "ECONNECTION"),
    **dict.fromkeys(product(_TLS_STATES, _BAD), "ETLS"),
    **dict.fromkeys(product(AUTH_STATES, (Kind.ERROR,)), "EAUTH"),
    **dict.fromkeys(product((State.MESSAGE,), (Kind.TIMEOUT, Kind.LOST)), "ESTREAM"),
}
"""What an ending is called; a later line comes before an earlier one. Two finer points are in `error_code`."""

_COMMANDS = {
    State.EHLO: "EHLO",
    State.HELO: "HELO",
    State.STARTTLS: "STARTTLS",
    **dict.fromkeys(AUTH_STATES, "AUTH"),
    State.MAILFROM: "MAIL FROM",
    State.RCPTTO: "RCPT TO",
    State.DATA: "DATA",
    State.MESSAGE: "DATA",
}
_TEXTS = {
    "ETIMEDOUT": "Request timed out. Possibly a firewall issue or a wrong hostname/port ({server}).",
    "EDNS": "mailq failed to resolve DNS record for {domain}",
    "ECONNECTION": "mailq failed to establish TCP connection against {host}",
    "ETLS": "TLS negotiation with {host} failed. {description}",
    "EAUTH": "Authentication failed",
    "EPROTOCOL": "Unexpected response from {host}: {description}",
    "ESTREAM": "Sending the message to {host} was interrupted: {description}",
    "EENVELOPE": "Address rejected by server",
    "EMESSAGE": "Message rejected by server",
}
_KNOWN = frozenset(Job.model_fields) | frozenset(MessageRecord.model_fields)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its JSON object, and what it is filtered, ordered and recognised by."""

    name: str
    id: str
    job: str
    attempt: int
    category: str | None
    tags: tuple[str, ...]
    body: Json


def event_of(document: object, message_id: str | None, context: Context, now: datetime) -> Event | None:
    """Return the last of the events of a document, which tells what became of the job; None if there is none."""
    return next(reversed(events_of(document, message_id, context, now)), None)


def events_of(document: object, message_id: str | None, context: Context, now: datetime) -> tuple[Event, ...]:
    """Return the events that a document from a result queue stands for, in their order; none if it is no result.

    It is as `orjson.loads` made it, so every value can be written again; `message_id` is its AMQP property.
    The same result makes events of the same ids each time.
    """
    results = document.get("results") if isinstance(document, dict) else None
    record = results[-1] if isinstance(results, list) and results else None
    if not isinstance(document, dict) or not isinstance(results, list) or not isinstance(record, dict):
        return ()
    try:
        state, kind = State(str(record.get("state"))), Kind(str(record.get("result")))
    except ValueError:
        return ()
    document, _ = mend(document, _READ)
    queue_id = identity(document, message_id)
    failed = DELIVERY_ERROR, _delivery_error(document, record, state, kind, queue_id, context)
    if (state, kind) == (State.MESSAGE, Kind.ACCEPTED):
        told = [(SENT, _sent(document, record, queue_id))]
    elif next_time(document) is not None:
        told = [failed]
    else:
        told = [failed] if context.last_error and ORDER[state] >= ORDER[State.DNS] else []
        told.append((FAILED, _failed(document, record, state, kind, queue_id)))
    return tuple(_event(name, data, document, queue_id, context, now) for name, data in told)


def _event(name: str, data: Json, document: Json, queue_id: str, context: Context, now: datetime) -> Event:
    results: list[Any] = document["results"]
    record: Json = results[-1]
    if (routing := routing_of(document, record, context)) is not None:
        data["networkRouting"] = routing
    told = orjson.dumps([name, queue_id, len(results), record])
    number = hashlib.blake2b(told, digest_size=16).hexdigest()
    labels = document.get("tags")
    tags = tuple(tag for tag in labels if isinstance(tag, str)) if isinstance(labels, list) else ()
    body: Json = {"serviceUrl": context.service_url} if context.service_url else {}
    body |= {
        "account": text_of(document.get("account")) or context.account,
        "date": iso(now),
        "event": name,
        "data": data,
        "x-mailq": {
            "id": number,
            "result": record,
            "tags": list(tags),
            "properties": {key: value for key, value in document.items() if key not in _KNOWN},
        },
    }
    return Event(name, number, queue_id, len(results), text_of(record.get("category")), tags, body)


def identity(document: Json, message_id: str | None) -> str:
    """Return what identifies the job over all its attempts: message id, `id`, or a digest of what stays the same."""
    if found := message_id or text_of(document.get("id")):
        return found
    facts = (document.get("envelope"), document.get("recipient"), _message_id(document))
    return hashlib.blake2b("\0".join(map(str, facts)).encode("utf-8", "replace"), digest_size=16).hexdigest()


def is_dry_run(document: object) -> bool:
    """Tell whether a document's last result is of a dry run: nothing was sent, so there is nothing to tell."""
    results = document.get("results") if isinstance(document, dict) else None
    last = results[-1] if isinstance(results, list) and results else None
    return isinstance(last, dict) and last.get("dryrun") is True


def error_code(record: Json) -> str:
    """Return EmailEngine's word for how an attempt ended badly; `record` is its result.

    Raises:
        ValueError: state or result are none that mailq knows.
    """
    state, kind = State(str(record.get("state"))), Kind(str(record.get("result")))
    if state in _TLS_STATES and _certificate_refused(record):
        return "ESOCKET"
    if state in _ADDRESS_STATES and kind is Kind.ERROR and str(record.get("status"))[1:].startswith(".1."):
        return "EENVELOPE"
    return _CODES[state, kind]


def iso(moment: datetime) -> str:
    """Return a moment as EmailEngine writes it: ISO 8601 with milliseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _sent(document: Json, record: Json, queue_id: str) -> Json:
    data = {"queueId": queue_id, "envelope": _envelope(document), "response": _response(record)}
    return data | {"messageId": _message_id(document) or _synthetic(queue_id)}


def _delivery_error(document: Json, record: Json, state: State, kind: Kind, queue_id: str, context: Context) -> Json:
    code, again = error_code(record), next_time(document)
    replied = _replied(record, state, kind)
    data: Json = {"queueId": queue_id, "envelope": _envelope(document)}
    data["messageId"] = _message_id(document) or _synthetic(queue_id)
    data |= {"error": _error(code, document, record, state), "errorCode": code}
    if replied:
        data |= {"smtpResponse": _response(record), "smtpResponseCode": record.get("code")}
    if state in _COMMANDS and (replied or state not in _TLS_STATES):
        data["smtpCommand"] = _COMMANDS[state]
    data["job"] = {
        "id": text_of(document.get("id")) or queue_id,
        "attemptsMade": len(document["results"]) - ("delayed" in record),
        "attempts": attempts_of(document, record, again, context),
        "nextAttempt": False if again is None else iso(again),
    }
    return data


def _failed(document: Json, record: Json, state: State, kind: Kind, queue_id: str) -> Json:
    code, replied = error_code(record), _replied(record, state, kind)
    if replied:
        first = _first_line(_response(record))
        first = f"{first[:3]} {first[4:]}" if first[3:4] == "-" else first  # the first of several lines
        text = f"Invalid login: {first}" if code == "EAUTH" else first
    elif (state, kind) == (State.CONNECT, Kind.TIMEOUT):
        text = "Connect timeout"
    else:
        text = _description(record)
    return {
        "queueId": queue_id,
        "error": f"Error: {_first_line(text)}",
        "messageId": _message_id(document) or _synthetic(queue_id),
    }


def _error(code: str, document: Json, record: Json, state: State) -> str:
    """Return what happened; a job's own smarthost, which takes all of it, goes by the name that the job gives it."""
    relay, port = _relay(document)
    domain = relay or str(document.get("recipient")).rpartition("@")[2].rstrip(">")
    host = relay or text_of(record.get("mta")) or text_of(record.get("to")) or domain
    facts = {
        "host": host,
        "server": f"{host}:{port}" if relay else host,
        "domain": domain,
        "description": _first_line(_description(record)),
    }
    if code == "ESOCKET":
        certificate = state in _TLS_STATES
        form = "Certificate check for {server} failed. {description}" if certificate else "{host}: {description}"
        return form.format_map(facts)
    return _TEXTS[code].format_map(facts)


def _relay(document: Json) -> tuple[str | None, int]:
    """Return host name and port of the smarthost that a job names; without one there is no name."""
    smarthost = document.get("smarthost")
    if not isinstance(smarthost, dict):
        return None, 0
    port = whole(smarthost.get("port"))
    return text_of(smarthost.get("hostname")), Smarthost.model_fields["port"].default if port is None else port


def _replied(record: Json, state: State, kind: Kind) -> bool:
    """Tell whether code and description are a server's words and not mailq's own."""
    if kind is not Kind.ERROR or ORDER[state] < ORDER[State.INTRO]:
        return False
    told = (record.get("code"), record.get("status"), _description(record))
    if told == DEFAULTS.get((state, kind), DEFAULTS_BY_KIND[kind]):
        return False
    # What mailq itself demands of TLS has this code; a server refusing STARTTLS has its own words for it.
    return state not in _TLS_STATES or not (
        _certificate_refused(record) or _description(record).startswith("TLS is required")
    )


def _certificate_refused(record: Json) -> bool:
    return record.get("result") == Kind.ERROR and "certificate" in _description(record).lower()


def _response(record: Json) -> str:
    """Return the server's answer as the server wrote it, all its lines."""
    if (reply := text_of(record.get("reply"))) is not None:
        return reply
    return " ".join(str(record[name]) for name in ("code", "status", "description") if record.get(name))


def _description(record: Json) -> str:
    return text_of(record.get("description")) or ""


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _envelope(document: Json) -> Json:
    return {"from": text_of(document.get("envelope")) or "", "to": [str(document.get("recipient", ""))]}


def _synthetic(queue_id: str) -> str:
    """Return a Message-ID for a message that has none, the same in all events of its job."""
    digest = hashlib.blake2b(queue_id.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"<{digest}@mailq.invalid>"


def _message_id(document: Json) -> str | None:
    extracted = document.get("extracted")
    headers = extracted.get("headers") if isinstance(extracted, dict) else None
    return text_of(headers.get("message-id")) if isinstance(headers, dict) else None
