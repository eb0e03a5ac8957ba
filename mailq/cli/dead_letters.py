"""Look at, move and drop the messages of a queue where messages were put aside: poison, or the dead queue of webhooks.

The commands say which queue, what a list tells, and where a message goes that is moved (`Store`); here is the walk
through the queue, the question before a drop, and the exit status. `edges.amqp.poison_browser` sees to it that no
message is lost: a moved message is acknowledged after the broker has confirmed its copy.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import typer

from mailq.cli.broker import connection, unavailable
from mailq.cli.dead_letter_view import identity, page, shown
from mailq.cli.output import complain, write, write_json, write_page, write_table
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.smtp.reply import printable
from mailq.edges.amqp import topology
from mailq.edges.amqp.poison_browser import Walk, walk
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError

LOOK = 100
"""Messages that are looked at unless --limit says otherwise."""

WINDOW = 50
"""Messages on the way at once when every one of them is settled."""

MOST = 65_535
"""Messages that a consumer may hold (AMQP 0-9-1, basic.qos)."""


class Action(Enum):
    """The action that was asked for."""

    LIST = auto()
    SHOW = auto()
    MOVE = auto()
    DROP = auto()


@dataclass(frozen=True, slots=True)
class Store:
    """A queue where messages were put aside, and what its command says about them.

    `row` makes the cells of a list, below `headings`, of what `summary` says and of a message's number; `moved` returns
    where a message goes, or why it stays.
    """

    queue: str
    target: str
    headings: Sequence[str]
    row: Callable[[int, dict[str, Any]], Sequence[str]]
    summary: Callable[[Consumed], dict[str, Any]]
    moved: Callable[[Consumed], Publication | str]
    done: str
    """The words for a moved message, such as "put back on outbox"."""
    all_move: bool = True
    """Whether `moved` finds a place for each message."""


@dataclass(slots=True)
class Task:
    """A request and how far it has come; `wanted` None: all that are `chosen`; `limit` None: all."""

    store: Store
    action: Action
    wanted: Collection[str] | None
    limit: int | None
    json: bool = False
    dry_run: bool = False
    chosen: Callable[[Consumed], bool] | None = None
    settled: int = 0
    seen: int = 0
    left: int = 0
    met: set[str] = field(default_factory=set)

    @property
    def settles(self) -> bool:
        """Tell whether messages are to leave the queue."""
        return self.action in (Action.MOVE, Action.DROP) and not self.dry_run

    @property
    def window(self) -> int:
        """How many messages are unsettled at most."""
        leaves = self.store.all_move or self.action is Action.DROP
        if self.settles and leaves and self.wanted is None and self.chosen is None:
            return WINDOW
        return MOST if self.limit is None else self.limit

    def means(self, message: Consumed) -> bool:
        """Tell whether a message is meant, and remember that it was met."""
        self.seen += 1
        known = identity(message)
        self.met.add(known)
        return (self.wanted is None or known in self.wanted) and (self.chosen is None or self.chosen(message))


def wanted(action: Action, verb: str, ids: Sequence[str], *, everything: bool) -> Collection[str] | None:
    """Return the ids that are meant, None: all; what makes no sense is wrong usage."""
    if action is Action.LIST and (ids or everything):
        raise typer.BadParameter("list takes neither ids nor --all")
    if action is Action.SHOW and (everything or len(ids) != 1):
        raise typer.BadParameter("show takes one id")
    if action in (Action.MOVE, Action.DROP) and bool(ids) is everything:
        raise typer.BadParameter(f"{verb} takes ids, or --all")
    return list(dict.fromkeys(ids)) or None


def perform(config: RabbitConfig, task: Task, *, yes: bool) -> None:
    """Do what is asked, a drop after a question unless `yes`; ends the program with its status where that is not 0."""
    try:
        if task.action is Action.DROP and not (yes or task.dry_run):
            count = asyncio.run(_count(config, task))
            _confirm(task.store.queue, count)
            if task.wanted is None:
                task.limit = task.seen  # what has come meanwhile was not asked about
            task.seen = 0
        asyncio.run(_work(config, task))
    except BrokerError as trouble:
        raise unavailable(trouble) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        _report(task)
    _end(task)


def _report(task: Task) -> None:
    """Say how many messages left the queue, or would."""
    if task.settled and not (task.json and task.dry_run):
        done = task.store.done if task.action is Action.MOVE else f"dropped from {task.store.queue}"
        write(f"{_messages(task.settled)} {'would be ' if task.dry_run else ''}{done}")


def _end(task: Task) -> None:
    """End with status 1 if an id is not there or a message could not be moved."""
    missing = [printable(each.encode(errors="replace")) for each in task.wanted or () if each not in task.met]
    if missing:
        complain(f"not among the first {task.limit} messages of {task.store.queue}: {', '.join(missing)}")
    if missing or task.left:
        raise typer.Exit(1)


async def _count(config: RabbitConfig, task: Task) -> int:
    """Return how many messages a task is about, nothing done to them."""
    async with connection(config, "dead letters", task.store.queue) as opened:
        if task.wanted is None and task.chosen is None:
            count = await topology.count(opened, task.store.queue)
            task.seen = count if task.limit is None else min(count, task.limit)
            return task.seen
        async with walk(opened, task.store.queue, task.limit, MOST if task.limit is None else task.limit) as there:
            return sum([task.means(message) async for message in there.messages()])


def _confirm(queue: str, count: int) -> None:
    """Go on only if that many messages may go; no is status 1, Ctrl-C is 130."""
    if not count:
        return
    try:
        agreed = typer.confirm(f"Drop {_messages(count)} of {queue} for good?")
    except typer.Abort as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        complain("nothing was dropped: standard input ended; --yes drops without asking")
        raise typer.Exit(1) from None
    if not agreed:
        complain("nothing was dropped")
        raise typer.Exit(1)


async def _work(config: RabbitConfig, task: Task) -> None:
    """Do what is asked with each message that is meant."""
    async with AsyncExitStack() as stack:
        publisher = None
        if task.action is Action.MOVE and not task.dry_run:
            publisher = await stack.enter_async_context(_publishing(config, task.store.target))
        opened = await stack.enter_async_context(connection(config, "dead letters", task.store.queue))
        there = await stack.enter_async_context(walk(opened, task.store.queue, task.limit, task.window))
        if task.action is Action.SHOW:
            await _show(task, there)
        elif task.settles:
            await _settle(task, there, publisher)
        else:
            await _list(task, there)


@asynccontextmanager
async def _publishing(config: RabbitConfig, queue: str) -> AsyncIterator[Publisher]:
    async with connection(config, "requeue", queue) as opened:
        publisher = Publisher(opened, config.confirm_timeout, _blocked)
        await publisher.start()
        yield publisher


async def _settle(task: Task, there: Walk, publisher: Publisher | None) -> None:
    """Move or drop the messages that are meant."""
    async for message in there.messages():
        if not task.means(message):
            continue
        if publisher is None:
            there.drop(message)
        elif isinstance(moved := task.store.moved(message), str):
            _stays(task, message, moved)
            continue
        else:
            await there.move(message, publisher, moved)
        task.settled += 1


async def _list(task: Task, there: Walk) -> None:
    """List the messages that are meant; of a dry run, those that would be settled."""
    rows: list[Sequence[str]] = [task.store.headings]
    async for message in there.messages():
        if not task.means(message):
            continue
        if task.action is Action.MOVE and isinstance(moved := task.store.moved(message), str):
            _stays(task, message, moved)
            continue
        task.settled += task.action is not Action.LIST
        facts = task.store.summary(message)
        if task.json:
            write_json(facts)
        else:
            rows.append(task.store.row(task.seen, facts))
    if not task.json:
        write_table(rows)
        if there.more and task.wanted is None:
            complain(f"only the first {task.limit} are shown; --limit shows more")


async def _show(task: Task, there: Walk) -> None:
    """Show the messages of an id, or the one at a place in the list if no message has that id."""
    (asked,) = task.wanted or ("",)
    at_place = None
    found = False
    async for message in there.messages():
        if task.means(message):
            found = True
            _tell(task, message)
        elif asked.isascii() and asked.isdecimal() and task.seen == int(asked):
            at_place = message
    if at_place is not None and not found:
        task.met.add(asked)
        _tell(task, at_place)


def _tell(task: Task, message: Consumed) -> None:
    if task.json:
        write_json(shown(message))
    else:
        write_page("\n".join(page(message)))


def _stays(task: Task, message: Consumed, reason: str) -> None:
    task.left += 1
    complain(f"{identity(message)} stays: {reason}")


def _blocked(reason: str | None) -> None:
    complain(f"RabbitMQ takes nothing at the moment, waiting: {reason}" if reason else "RabbitMQ takes jobs again")


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
