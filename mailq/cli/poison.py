"""`mailq poison`: what could not be processed, and what is to become of it.

Lists and shows the messages of the poison queue, puts them back on the outbox, or drops them. That this
loses nothing is seen to in `edges.amqp.poison`; here are the words of the command and what people see. A
message is a stranger's: what is shown of it is bounded, without control characters, its secrets masked.
"""

import asyncio
import hashlib
import re
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer

from mailq.cli.broker import complain, connection, unavailable
from mailq.cli.options import ConfigOption, load
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.document import InvalidJobError, read_document
from mailq.core.publication import Consumed
from mailq.core.reply import printable
from mailq.core.times import format_time
from mailq.edges.amqp import topology
from mailq.edges.amqp.poison import walk
from mailq.edges.amqp.publisher import Publisher
from mailq.ports import BrokerError

LOOK = 100
"""Messages that are looked at unless --limit says otherwise."""

WINDOW = 50
"""Messages on the way at once when every one of them is settled."""

SHOWN = 64 * 1024
"""Octets of a body that are shown, once gzip is undone."""

READ = 16 * 1024 * 1024
"""Largest document, in octets, that is taken apart."""

MASK = "***"

_HEADINGS = ("ID", "AGE", "REASON", "STATE", "DELIVERIES", "SIZE", "RECIPIENT")
_SECRET = re.compile("passw|secret|token|credential|authorization|private", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r'("(?:[^"\\\n]{0,60}(?:passw|secret|token|credential|authorization|private)[^"\\\n]{0,60}|key)"\s*:\s*)'
    r'"(?:[^"\\]|\\.)*(?:"|\\?$)',
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
_C1 = re.compile("[\x7f-\x9f]")
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


class Action(StrEnum):
    """What is to be done."""

    LIST = "list"
    SHOW = "show"
    REQUEUE = "requeue"
    DROP = "drop"


def poison(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Messages, as list names them.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Requeue or drop every message there is.")] = False,  # noqa: FBT002
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help=f"Look at so many messages from the head. Default: {LOOK}; with --all: all.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="List and show as JSON, one object a line.")] = False,  # noqa: FBT002
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Drop without asking.")] = False,  # noqa: FBT002
) -> None:
    """See what could not be processed; put it back, or drop it.

    list: id, age, reason, state, deliveries, size and recipient of each.
    show ID: its headers and body, secrets masked.
    requeue ID... or --all: put it on the outbox, as a new job.
    drop ID... or --all: remove it for good.

    An id is the AMQP message id, else a digest of the body. What is
    neither requeued nor dropped keeps its place. Each look counts as a
    return to the queue: RabbitMQ 4 drops what has had 20 of them, where
    an earlier version of mailq declared the queue and no policy forbids.

    Exit status 1: an id is not there, or a drop was not confirmed; 69: no
    broker, or it lacks a queue; 130: interrupted.

    [dim]mailq poison list -c mailq.toml
    mailq poison requeue 4711 4712
    mailq poison drop --all --yes[/dim]
    """
    wanted = _wanted(action, ids or [], everything=everything)
    settings = load(config).rabbitmq
    task = _Task(action, wanted, limit or (None if everything else LOOK), json=json)
    try:
        if action is Action.DROP and not yes:
            count = asyncio.run(_count(settings, task))
            _confirm(settings.poison, count)
            task.limit = task.limit if wanted else count  # what has come meanwhile was not asked about
        asyncio.run(_work(settings, task))
    except BrokerError as trouble:
        raise unavailable(trouble) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        if task.settled:
            sys.stdout.write(f"{_messages(task.settled)} {_DONE[action].format(settings)}\n")
    if missing := [printable(each.encode(errors="replace")) for each in wanted or () if each not in task.met]:
        complain(f"not among the first {task.limit} messages of {settings.poison}: {', '.join(missing)}")
        raise typer.Exit(1)


_DONE = {Action.REQUEUE: "put back on {0.outbox}", Action.DROP: "dropped from {0.poison}"}


@dataclass(slots=True)
class _Task:
    """What is asked for, and how far it has come; `wanted` and `limit` None: all."""

    action: Action
    wanted: Collection[str] | None
    limit: int | None
    json: bool
    settled: int = 0
    met: set[str] = field(default_factory=set)

    @property
    def window(self) -> int:
        """How many messages are unsettled at most."""
        settles_all = self.wanted is None and self.action in _DONE
        return WINDOW if settles_all or self.limit is None else self.limit

    def means(self, message: Consumed) -> bool:
        """Tell whether a message is meant, and remember that it was met."""
        known = identity(message)
        self.met.add(known)
        return self.wanted is None or known in self.wanted


def _wanted(action: Action, ids: Sequence[str], *, everything: bool) -> Collection[str] | None:
    """Return the ids that are meant, None: all; what makes no sense is wrong usage."""
    if action is Action.LIST and (ids or everything):
        raise typer.BadParameter("list takes neither ids nor --all")
    if action is Action.SHOW and (everything or len(ids) != 1):
        raise typer.BadParameter("show takes one id")
    if action in _DONE and bool(ids) is everything:
        raise typer.BadParameter(f"{action.value} takes ids, or --all")
    return list(dict.fromkeys(ids)) or None


async def _count(config: RabbitConfig, task: _Task) -> int:
    """Return how many messages a task is about, nothing done to them."""
    async with connection(config, "poison", config.poison) as opened:
        if task.wanted is None:
            count = await topology.count(opened, config.poison)
            return count if task.limit is None else min(count, task.limit)
        async with walk(opened, config.poison, task.limit, task.window) as there:
            return sum([task.means(message) async for message in there.messages()])


def _confirm(queue: str, count: int) -> None:
    """Go on only if that many messages may go."""
    if count:
        typer.confirm(f"Drop {_messages(count)} of {queue} for good?", abort=True)


async def _work(config: RabbitConfig, task: _Task) -> None:
    """Do what is asked with each message that is meant."""
    async with AsyncExitStack() as stack:
        publisher = None
        if task.action is Action.REQUEUE:
            outbox = await stack.enter_async_context(connection(config, "requeue", config.outbox))
            publisher = Publisher(outbox, config.confirm_timeout, _blocked)
            await publisher.start()
        opened = await stack.enter_async_context(connection(config, "poison", config.poison))
        there = await stack.enter_async_context(walk(opened, config.poison, task.limit, task.window))
        rows: list[Sequence[str]] = [_HEADINGS]
        async for message in there.messages():
            if not task.means(message):
                continue
            if publisher is not None:
                await there.requeue(message, publisher, config.outbox)
                task.settled += 1
            elif task.action is Action.DROP:
                there.drop(message)
                task.settled += 1
            elif task.json:
                _write_json(summary(message) if task.action is Action.LIST else shown(message))
            elif task.action is Action.LIST:
                rows.append(_row(summary(message)))
            else:
                sys.stdout.write("\n".join(page(message)) + "\n")
        if task.action is Action.LIST and not task.json:
            _write_table(rows)
            if there.more:
                complain(f"only the first {task.limit} are shown; --limit shows more")


def _blocked(reason: str | None) -> None:
    complain(f"RabbitMQ takes nothing at the moment, waiting: {reason}" if reason else "RabbitMQ takes jobs again")


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


# What is said of a message.


def identity(message: Consumed) -> str:
    """Return how a message is named: its message id as it can be printed, else the digest that is a job's identity."""
    if message.message_id:
        return printable(message.message_id.encode(errors="replace"), limit=255)
    return hashlib.blake2b(message.body, digest_size=16).hexdigest()


def summary(message: Consumed) -> dict[str, Any]:
    """Return what a list says of a message; absent means not known."""
    headers = message.headers
    death = _death(headers)
    count = headers.get("x-mailq-delivery-count")
    facts = {
        "id": identity(message),
        "time": format_time(death["time"]) if isinstance(death.get("time"), datetime) else None,
        "reason": _text(headers.get("x-mailq-reason") or death.get("reason")),
        "state": _text(headers.get("x-mailq-state")),
        "exception": _text(headers.get("x-mailq-exception")),
        "deliveries": count if isinstance(count, int) else None,
        "size": len(message.body),
        "recipient": _recipient(message),
    }
    return {name: value for name, value in facts.items() if value is not None}


def shown(message: Consumed) -> dict[str, Any]:
    """Return a message for people who look into it: `id`, `headers`, and `document` or else `body`; no secrets."""
    facts = {"id": identity(message), "size": len(message.body), "headers": masked(dict(message.headers))}
    document = _document(message)
    if document is not None:
        return facts | {"document": masked(document)}
    text = _plain(message).decode("utf-8", "replace")
    return facts | {"body": _PRIVATE_KEY.sub(MASK, _SECRET_TEXT.sub(rf'\1"{MASK}"', text))}


def page(message: Consumed) -> list[str]:
    """Return a message as lines for a terminal."""
    facts = shown(message)
    document = facts.get("document")
    body = facts["body"] if document is None else _json(document, orjson.OPT_INDENT_2).decode()
    lines = [f"id: {facts['id']}", f"size: {facts['size']} octets"]
    lines += [f"{name}: {_json(value).decode()}" for name, value in facts["headers"].items()]
    lines += ["", *body[:SHOWN].split("\n")]
    if len(body) > SHOWN:
        lines.append(f"… and {len(body) - SHOWN} characters more")
    return [printable(line.encode(errors="replace"), limit=SHOWN) for line in lines]


def masked(value: Any, inside: str = "") -> Any:  # noqa: ANN401 - JSON
    """Return a JSON value without its secrets: passwords, tokens, the keys of `dkim`, private keys in texts."""
    if isinstance(value, dict):
        return {name: MASK if _secret(name, inside) else masked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item, inside) for item in value]
    return _PRIVATE_KEY.sub(MASK, value) if isinstance(value, str) else value


def _secret(name: str, inside: str) -> bool:
    return _SECRET.search(name) is not None or (name == "key" and inside == "dkim")


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the broker says of the newest time that it dead-lettered the message."""
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    return newest if isinstance(newest, dict) else {}


def _document(message: Consumed) -> dict[str, Any] | None:
    try:
        return read_document(message.body, message.content_encoding, READ)
    except InvalidJobError:
        return None


def _plain(message: Consumed) -> bytes:
    """Return the beginning of a body, out of gzip if it can be."""
    if message.content_encoding == "gzip":
        try:
            return zlib.decompressobj(wbits=31).decompress(message.body, SHOWN)
        except zlib.error:
            pass
    return message.body[:SHOWN]


def _recipient(message: Consumed) -> str | None:
    document = _document(message)
    recipient = document.get("recipient") if document else None
    return _text(recipient) if isinstance(recipient, str) else None


def _text(value: object) -> str | None:
    """Return the first line of a stranger's text, bounded."""
    text = "" if value is None else str(value).strip().partition("\n")[0]
    return printable(text.encode(errors="replace")) or None


def _row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    age = _age(facts["time"]) if "time" in facts else "-"
    named = ("reason", "state", "deliveries", "size", "recipient")
    return (facts["id"], age, *(str(facts.get(name, "-")) for name in named))


def _age(time: str) -> str:
    seconds = max(int((datetime.now(UTC) - datetime.fromisoformat(f"{time}+00:00")).total_seconds()), 0)
    return next((f"{seconds // size}{unit}" for unit, size in _UNITS if seconds >= size), "0s")


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _write_json(value: object) -> None:
    sys.stdout.write(_C1.sub(lambda match: f"\\u{ord(match[0]):04x}", _json(value).decode()) + "\n")


def _json(value: object, option: int = 0) -> bytes:
    """Return JSON of whatever AMQP headers and documents hold; what JSON has no type for becomes text."""
    return orjson.dumps(value, default=_foreign, option=option | orjson.OPT_NON_STR_KEYS)


def _foreign(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
