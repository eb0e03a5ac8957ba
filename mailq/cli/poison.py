"""`mailq poison`: what could not be processed, and what is to become of it.

Lists and shows the messages of the poison queue, puts them back on the outbox, or drops them. What that has in
common with other queues of that kind is in `cli.dead_letters`.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer

from mailq.cli import dead_letters
from mailq.cli.dead_letter_view import age, death, document_of, identity, text_of
from mailq.cli.dead_letters import LOOK, MOST, Store, Task, perform, wanted
from mailq.cli.options import ConfigOption, load
from mailq.core.broker.messages import Consumed
from mailq.core.times import format_time, parse_time
from mailq.edges.amqp.address import outbox_of
from mailq.edges.amqp.poison_browser import revived

_HEADINGS = ("ID", "AGE", "REASON", "STATE", "DELIVERIES", "SIZE", "RECIPIENT")


class Action(StrEnum):
    """What is to be done."""

    LIST = "list"
    SHOW = "show"
    REQUEUE = "requeue"
    DROP = "drop"


_ACTIONS = dict(zip(Action, dead_letters.Action, strict=True))


def poison(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Messages, as list names them.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Requeue or drop every message there is.")] = False,  # noqa: FBT002
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help=f"Look at so many messages from the head. Default: {LOOK}; with --all: all.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="List and show as JSON, one object a line.")] = False,  # noqa: FBT002
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Drop without asking.")] = False,  # noqa: FBT002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be requeued or dropped.")] = False,  # noqa: FBT002
) -> None:
    """See what could not be processed; put it back, or drop it.

    list: id, age, reason, state, deliveries, size and recipient of each.
    show ID: its headers and body, secrets masked.
    requeue ID... or --all: put it on the outbox, as a new job.
    drop ID... or --all: remove it for good.

    An id is the AMQP message id, else a digest of the body; show takes a
    place in the list as well. What is neither requeued nor dropped keeps
    its place. Each look counts as a return to the queue: RabbitMQ 4 drops
    what has had 20 of them, where an earlier version of mailq declared the
    queue and no policy forbids.

    Exit status 1: an id is not there, or a drop was not confirmed; 69: no
    broker, or it lacks a queue; 130: interrupted.

    [dim]mailq poison list -c mailq.toml
    mailq poison requeue 4711 4712
    mailq poison drop --all --yes[/dim]
    """
    names = wanted(_ACTIONS[action], action.value, ids or [], everything=everything)
    settings = load(config).rabbitmq
    store = Store(
        queue=settings.poison,
        target=settings.outbox,
        headings=_HEADINGS,
        row=_row,
        summary=summary,
        moved=partial(revived, outbox=outbox_of(settings)),
        done=f"put back on {settings.outbox}",
    )
    limit = limit or (None if everything else LOOK)
    perform(settings, Task(store, _ACTIONS[action], names, limit, json=json, dry_run=dry_run), yes=yes)


def summary(message: Consumed) -> dict[str, Any]:
    """Return what a list says of a message; absent means not known."""
    headers = message.headers
    newest = death(headers)
    count = headers.get("x-mailq-delivery-count")
    facts = {
        "id": identity(message),
        "time": _time(headers.get("x-mailq-time")) or _time(newest.get("time")),
        "reason": text_of(headers.get("x-mailq-reason") or newest.get("reason")),
        "state": text_of(headers.get("x-mailq-state")),
        "exception": text_of(headers.get("x-mailq-exception")),
        "deliveries": count if isinstance(count, int) else None,
        "size": len(message.body),
        "recipient": _recipient(message),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _time(value: object) -> str | None:
    """Return when a message was put aside, as mailq wrote it or the broker: moments of AMQP are datetimes."""
    if isinstance(value, datetime):
        return format_time(value)
    try:
        return format_time(parse_time(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _recipient(message: Consumed) -> str | None:
    document = document_of(message)
    recipient = document.get("recipient") if document else None
    return text_of(recipient) if isinstance(recipient, str) else None


def _row(_number: int, facts: Mapping[str, Any]) -> tuple[str, ...]:
    since = age(facts["time"]) if "time" in facts else "-"
    named = ("reason", "state", "deliveries", "size", "recipient")
    return (facts["id"], since, *(str(facts.get(name, "-")) for name in named))
