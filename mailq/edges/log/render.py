"""Events as lines, JSON for programs or text for people; neither is longer than `PIPE_BUF` octets.

Text from strangers is untrusted: what cannot be seen is escaped in both (controls, direction marks, odd spaces).
"""

import json
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

import orjson

from mailq.edges.log.writer import PIPE_BUF

Event = MutableMapping[str, Any]
Renderer = Callable[[object, str, Event], bytes]
"""Makes a line of an event; the signature is structlog's for processors."""

CUT = "…"
"""Stands where a text was cut to make its line fit."""


def renderer(form: str, own: Event, *, colours: bool = False) -> Renderer:
    """Return what makes lines of the format `json` or `console`; the facts `own` stand in each of them.

    In JSON, events are members of one object; for people, they are time, level, event, then key=value with a
    traceback indented below.
    """
    return _fitting(_for_programs(own) if form == "json" else _for_people(own, colours=colours))


def _now() -> datetime:
    return datetime.now(UTC)


def _fitting(render: Renderer) -> Renderer:
    """Return the renderer whose lines fit into one call: of one that does not, the longest texts are cut."""

    def fit(_: object, level: str, event: Event) -> bytes:
        line = render(None, level, event)
        while len(line) > PIPE_BUF:
            name, text = max(((name, str(value)) for name, value in event.items()), key=lambda each: len(each[1]))
            # A character takes one octet or several, so the overhang in characters may be too much.
            kept = max(len(text) - (len(line) - PIPE_BUF), len(text) // 2) - len(CUT)
            # The end of a traceback says most.
            event = {**event, name: CUT + text[-kept:] if name == "traceback" else text[:kept] + CUT}
            line = render(None, level, event)
        return line

    return fit


def _for_programs(own: Event) -> Renderer:
    """Return the renderer for JSON; `own` stands in every line."""

    def render(_: object, level: str, event: Event) -> bytes:
        return _json({"time": _now(), "level": level, "event": event["event"], **own, **event})

    return render


def _json(event: dict[str, Any]) -> bytes:
    try:
        line = orjson.dumps(event, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # lone surrogates, huge integers, foreign types: slower, but never lost
        line = json.dumps(event, default=str).encode() + b"\n"
    if line.isascii() and line.find(b"\x7f") < 0:
        return line
    text = line.decode().removesuffix("\n")
    if not text.isprintable():
        text = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
    return text.encode() + b"\n"


def _for_people(own: Event, *, colours: bool) -> Renderer:
    """Return the renderer for people: time, level, event, then key=value; tracebacks indented below."""
    shades = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"} if colours else {}

    def render(_: object, level: str, event: Event) -> bytes:
        stamp = _now().isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        shade = shades.get(level, "")
        normal = "\x1b[0m" if shade else ""
        head = f"{stamp} {shade}{level:<8}{normal} {_plain(event['event'])}"
        shown = {name: value for name, value in {**own, **event}.items() if name not in ("event", "traceback")}
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in shown.items())])
        trace = str(event.get("traceback", ""))
        below = [f"    | {_plain(part, spaces=True)}" for part in trace.split("\n") if part]
        return ("\n".join([line, *below]) + "\n").encode("utf-8", "backslashreplace")

    return render


def _plain(value: object, *, spaces: bool = False) -> str:
    """Return a value that cannot pretend to be several: quoted and escaped where needed."""
    text = str(value)
    if text and text.isprintable() and (spaces or not (" " in text or '"' in text or "=" in text)):
        return text
    return repr(text)
