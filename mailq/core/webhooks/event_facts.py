"""What events tell beyond the result itself: where a connection left from, and how many attempts are planned. Pure.

Documents may be anybody's, so nothing is believed to have the right type. `core.webhooks.events` makes the events.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mailq.core.answers.deadline import MAX_ATTEMPTS
from mailq.core.answers.formula import from_formula, planned
from mailq.core.states import State
from mailq.core.times import parse_time

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What the configuration adds to events.

    `routed`: mail leaves from configured source addresses. `last_error`: the last attempt makes a delivery error before
    the failure. `retries` and `max_deliver_time`, in seconds, tell how many attempts are planned.
    """

    service_url: str = ""
    account: str = "default"
    max_attempts: int = 0
    routed: bool = False
    last_error: bool = True
    retries: tuple[int, ...] = ()
    max_deliver_time: int = 0


def routing_of(document: Json, record: Json, context: Context) -> Json | None:
    """Return local address, its port, and proxy, where they were asked for and are known."""
    routing: Json = {}
    local, port = text_of(record.get("from")), whole(record.get("from_port"))
    tried = record.get("tried")
    if port is None and isinstance(tried, dict):
        local, port = text_of(tried.get("from")), whole(tried.get("from_port"))
    if local and (document.get("ips") or context.routed):
        routing["localAddress"] = local
        if port is not None:
            routing["localPort"] = port
    elif local is None and (only := _only_source(document, record)):
        routing["localAddress"] = only
    if proxy := _without_login(text_of(record.get("proxy")) or ""):
        routing["proxy"] = proxy
    return routing or None


def _only_source(document: Json, record: Json) -> str | None:
    """Return where a connection that did not come about was to leave from, if the job leaves no choice."""
    ips = document.get("ips")
    if record.get("state") == State.CONNECT and isinstance(ips, list) and len(ips) == 1:
        return text_of(ips[0])
    return None


def _without_login(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def next_time(document: Json) -> datetime | None:
    """Return when the job is tried again, None if it is not."""
    following = document.get("nextattempt")
    return _moment(following.get("time")) if isinstance(following, dict) else None


def attempts_of(document: Json, record: Json, again: datetime | None, context: Context) -> int:
    """Return after how many attempts the job is given up: the number that is set, else what its time has room for."""
    own = whole(document.get("maxattempts"))
    if limit := context.max_attempts if own is None else own:
        return limit
    made = len(document["results"]) - ("delayed" in record)
    at = again or _moment(record.get("time"))
    seen = _moment(document.get("seen")) or _moment(record.get("time"))
    if at is None or seen is None:
        return made
    end = _moment(document.get("maxdelivertime")) or seen + timedelta(seconds=context.max_deliver_time)
    end = min(end, _moment(document.get("useful_until")) or end)
    schedule = _schedule(document.get("retries")) or context.retries
    return planned(made + (again is not None), at.timestamp(), end.timestamp(), schedule, MAX_ATTEMPTS)


def _schedule(value: object) -> tuple[int, ...]:
    """Return a job's own schedule, empty if there is none that can be read."""
    try:
        found = from_formula(value) if isinstance(value, str) else value
    except ValueError:
        return ()
    waits = tuple(found) if isinstance(found, list | tuple) else ()
    return waits if all(isinstance(wait, int) and wait > 0 for wait in waits) else ()


def _moment(value: object) -> datetime | None:
    try:
        found = parse_time(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and 1970 <= found.year <= 9000 else None


def whole(value: object) -> int | None:
    """Return a value that is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_of(value: object) -> str | None:
    """Return a value that is a text and not empty, else None."""
    return value if isinstance(value, str) and value else None
