"""`mailq watch`: see results as they arrive on their queues, one line each.

Peeks by default: it consumes without ever acknowledging, so that the broker puts everything back in its old
place when the connection ends. `--take` acknowledges what was shown.
"""

import asyncio
import functools
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
import typer

from mailq.cli.broker import connection, unavailable
from mailq.cli.options import ConfigOption, load
from mailq.cli.output import complain, one_line, write
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed
from mailq.core.jobs.content_encoding import EncodingError, inflate
from mailq.core.smtp.reply import printable
from mailq.edges.amqp.consumer import Consumer
from mailq.ports.broker import BrokerError

PEEK = 1000
"""Messages of a queue that a peek holds at most."""

LARGEST = 100 * 1024 * 1024
"""Octets of a result at most after its gzip is undone."""

TAKE = 200
"""Messages of a queue under way when taking."""


def watch(
    queues: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUEUE", help="Queues to watch. Default: the configured result queues."),
    ] = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the messages, one a line, escaped.")] = False,  # noqa: FBT002
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="End after so many seconds.")] = None,
    take: Annotated[  # noqa: FBT002
        bool, typer.Option("--take/--keep", help="Remove what is shown, or put it back at the end (default).")
    ] = False,
) -> None:
    """See results arrive, one line each.

    time, queue, success|failure|retry, recipient, state/result, code
    status description, attempt, and for a retry its time.

    Without --take nothing is removed: up to 1000 messages of each
    queue are held unacknowledged and return to their places when the
    watch ends. Until then no other consumer gets them, and a quorum
    queue with a delivery limit counts each such return: watch is for
    looking, not for living on.

    Exit status 1: --timeout came before --count; 69: no broker, or it
    lacks a queue.

    [dim]mailq watch -c mailq.toml
    mailq watch failures --json --take --count 100 > failures.jsonl[/dim]
    """
    settings = load(config).rabbitmq
    configured = (settings.results, settings.success, settings.failures, settings.retry)
    names = list(dict.fromkeys(queues or [name for name in configured if name]))
    view = _View(json=json, take=take, count=count)
    try:
        asyncio.run(_watch(settings, names, view, timeout))
    except BrokerError as trouble:
        raise unavailable(trouble) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if count is not None and view.shown < count:
        complain(f"{view.shown} of {count} messages came within {timeout:g} s")
        raise typer.Exit(1)


@dataclass(slots=True)
class _View:
    """What is shown, and how much of it was."""

    json: bool
    take: bool
    count: int | None
    shown: int = 0
    held: dict[str, int] = field(default_factory=dict)

    @property
    def prefetch(self) -> int:
        """Messages of one queue to be held at most."""
        return min(self.count or PEEK, TAKE if self.take else 65535)

    @property
    def done(self) -> bool:
        """Tell whether as many were shown as were asked for."""
        return self.count is not None and self.shown >= self.count


async def _watch(config: RabbitConfig, names: Sequence[str], view: _View, timeout: float | None) -> None:  # noqa: ASYNC109 - an option
    """Show messages until there were enough, the time is over, or the broker is lost (BrokerError)."""
    arrivals: asyncio.Queue[tuple[str, Consumed] | BrokerError] = asyncio.Queue()
    consumers: dict[str, Consumer] = {}
    async with AsyncExitStack() as stack:
        for name in names:
            opened = await stack.enter_async_context(connection(config, "watch", name))
            opened.closed.add_done_callback(lambda closed: arrivals.put_nowait(closed.result()))
            deliver = functools.partial(_arrived, arrivals, name)
            consumers[name] = Consumer(opened, name, view.prefetch, deliver)
            stack.callback(consumers[name].flush)
            await consumers[name].start()
        try:
            async with asyncio.timeout(timeout):
                while not view.done:
                    arrival = await arrivals.get()
                    if isinstance(arrival, BrokerError):
                        raise arrival
                    _show(*arrival, view, consumers)
        except TimeoutError:
            return


def _arrived(arrivals: "asyncio.Queue[tuple[str, Consumed] | BrokerError]", name: str, consumed: Consumed) -> None:
    arrivals.put_nowait((name, consumed))


def _show(name: str, consumed: Consumed, view: _View, consumers: dict[str, Consumer]) -> None:
    """Print a message; only what was printed is acknowledged."""
    body = _plain(consumed)
    write(one_line(body) if view.json else line(name, body))
    view.shown += 1
    view.held[name] = view.held.get(name, 0) + 1
    if view.take:
        consumers[name].ack(consumed.tag)
    elif view.held[name] == view.prefetch and not view.done:
        complain(f"{name}: {view.prefetch} messages are held, no more of this queue is shown without --take")


def _plain(consumed: Consumed) -> bytes:
    """Return the body of a message with its gzip undone, where that is possible within bounds."""
    try:
        return inflate(consumed.body, LARGEST) if consumed.zipped else consumed.body
    except EncodingError:
        return consumed.body


def line(queue: str, body: bytes) -> str:
    """Return what one line says of a message from a result queue; never holds a control character."""
    try:
        document = orjson.loads(body)
        results = document["results"]
        last = results[-1]
        recipient = str(document.get("recipient", "-"))
        next_attempt = document.get("nextattempt", {}).get("time")
        words = _words(queue, recipient, last, next_attempt)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        words = ["-", queue, f"no result: {len(body)} octets"]
    return printable(" ".join(words).encode(errors="replace"), limit=1000)


def _words(queue: str, recipient: str, last: dict[str, Any], next_attempt: str | None) -> list[str]:
    if last["result"] == "accepted":
        outcome = "dry run" if last.get("dryrun") is True else "success"
    else:
        outcome = "retry" if next_attempt else "failure"
    answer = [str(last[name]) for name in ("code", "status", "description") if name in last]
    attempt = [f"(attempt {last['attempt']})"] if "attempt" in last else []
    again = [f"next {next_attempt}"] if next_attempt else []
    return [
        str(last["time"]),
        queue,
        outcome,
        recipient,
        f"{last['state']}/{last['result']}",
        *answer,
        *attempt,
        *again,
    ]
