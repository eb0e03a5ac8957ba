"""`mailq webhooks dead`: the events and documents that webhooks gave up, and what is to become of them.

Lists and shows the messages of the dead queue, brings them back to the queue they came from, or drops them. What that
has in common with poison is in `cli.dead_letters`; where a message goes is decided in
`core.webhooks.endpoint.replay`.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer

from mailq.cli import dead_letters
from mailq.cli.dead_letter_view import age, death, document_of, identity, text_of
from mailq.cli.dead_letters import LOOK, MOST, Store, Task, perform, wanted
from mailq.cli.options import ConfigOption, load
from mailq.config.webhooks import WebhooksConfig
from mailq.core.broker.messages import Consumed
from mailq.core.times import format_time
from mailq.core.webhooks.endpoint import ENDPOINT, EVENT, POINTER, REASON, TIME, replay

_HEADINGS = ("NO", "ID", "AGE", "ENDPOINT", "EVENT", "REASON", "SIZE", "RECIPIENT")


class Action(StrEnum):
    """The action that was asked for."""

    LIST = "list"
    SHOW = "show"
    REPLAY = "replay"
    DROP = "drop"


_ACTIONS = dict(zip(Action, dead_letters.Action, strict=True))


def dead(
    context: typer.Context,
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Messages, as list names them.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Replay or drop every message there is.")] = False,  # noqa: FBT002
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help='Only messages of this endpoint; "-": documents of none.')
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Only messages whose reason holds TEXT.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help=f"Look at so many messages from the head. Default: {LOOK}; where none is named, all.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="List and show as JSON, one object a line.")] = False,  # noqa: FBT002
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Drop without asking.")] = False,  # noqa: FBT002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be replayed or dropped.")] = False,  # noqa: FBT002
) -> None:
    """See what webhooks gave up; send it once more, or drop it.

    list: place, id, age, endpoint, event, reason, size and recipient.
    show ID, or show PLACE: headers and body, secrets masked.
    replay ID..., --all, --endpoint or --reason: put it back on the queue
    of its endpoint, as if the event were new; a document that made no
    event goes to the intake.
    drop ID..., --all, --endpoint or --reason: remove it for good.

    An id is the AMQP message id, else a digest of the body. An event that
    is replayed keeps its id (x-mailq.id), so that receivers can tell.

    Exit status 1: an id is not there, a message cannot be replayed, or a
    drop was not confirmed; 69: no broker, or it lacks a queue; 130:
    interrupted.

    [dim]mailq webhooks dead list --endpoint crm
    mailq webhooks dead replay --endpoint crm --dry-run
    mailq webhooks dead drop 4711[/dim]
    """
    kind = _ACTIONS[action]
    chosen = _chosen(endpoint, reason)
    settles = kind in (dead_letters.Action.MOVE, dead_letters.Action.DROP)
    selected = everything or (settles and chosen is not None and not ids)
    names = wanted(kind, f"{action.value}", ids or [], everything=selected)
    settings = load(config or context.obj)
    table = settings.webhooks
    limit = limit or (None if selected and chosen is None else MOST if selected else LOOK)
    task = Task(_store(table), kind, names, limit, json=json, dry_run=dry_run, chosen=chosen)
    perform(settings.rabbitmq, task, yes=yes)


def _store(table: WebhooksConfig) -> Store:
    return Store(
        queue=f"{table.prefix}.dead",
        target=table.prefix,
        headings=_HEADINGS,
        row=_row,
        summary=summary,
        moved=partial(replay, prefix=table.prefix, endpoints=tuple(table.endpoints), now=int(time.time())),
        done=f"put back on the queues of {table.prefix}",
        all_move=False,
    )


def _chosen(endpoint: str | None, reason: str | None) -> Callable[[Consumed], bool] | None:
    """Return what tells whether a message passes the filters, None if there are none."""
    if endpoint is None and reason is None:
        return None

    def chosen(message: Consumed) -> bool:
        facts = summary(message)
        return endpoint in (None, facts.get("endpoint", "-")) and (reason or "") in facts.get("reason", "")

    return chosen


def summary(message: Consumed) -> dict[str, Any]:
    """Return what a list says of a message; absent means not known. `time` is when the event was made, or given up."""
    headers = message.headers
    newest = death(headers)
    facts = {
        "id": identity(message),
        "time": _time(headers.get(TIME)) or _time(newest.get("time")),
        "endpoint": text_of(headers.get(ENDPOINT)),
        "event": text_of(headers.get(EVENT)),
        "reason": text_of(headers.get(REASON) or newest.get("reason")),
        "pointer": text_of(headers.get(POINTER)),
        "size": len(message.body),
        "recipient": _recipient(document_of(message) or {}),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _time(value: object) -> str | None:
    """Return a moment of AMQP, or in seconds since 1970, as text."""
    try:
        moment = datetime.fromtimestamp(value, UTC) if isinstance(value, int) else value
    except (OverflowError, OSError, ValueError):
        return None
    return format_time(moment) if isinstance(moment, datetime) else None


def _recipient(document: Mapping[str, Any]) -> str | None:
    """Return the recipient of a document, or of the job that an event tells of."""
    data = document.get("data")
    envelope = data.get("envelope") if isinstance(data, dict) else None
    to = envelope.get("to") if isinstance(envelope, dict) else None
    found = to[0] if isinstance(to, list) and to else document.get("recipient")
    return text_of(found) if isinstance(found, str) else None


def _row(number: int, facts: Mapping[str, Any]) -> tuple[str, ...]:
    since = age(facts["time"]) if "time" in facts else "-"
    told = (f"{facts['pointer']}: " if "pointer" in facts else "") + facts.get("reason", "-")
    named = (str(facts.get(name, "-")) for name in ("endpoint", "event"))
    return (str(number), facts["id"], since, *named, told, str(facts["size"]), facts.get("recipient", "-"))
