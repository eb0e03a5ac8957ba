"""`mailq demo`: the main job, for real, in under a minute.

Starts what is needed (a private RabbitMQ unless one is named, the lab's sink with TLS, one worker as a
process of its own), publishes four jobs, waits for their results, and shows them. It succeeds only if
everything that has to arrive did. All it started ends with it, even if it is killed.
"""

import asyncio
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from mailq.cli.directories import new_directory
from mailq.cli.output import complain
from mailq.config import Config
from mailq.ports.broker import BrokerError
from mailq.testbed.demo import DemoError, Documents, Play
from mailq.testbed.rabbitmq import LabError, PrivateRabbit

SHOWN_WHOLE = "greylist@demo.test"
"""The job whose result is shown as JSON: it has two attempts."""


def demo(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="AMQP-URL",
            envvar="MAILQ_RABBITMQ__URL",
            show_envvar=True,
            help="Use this broker, with queues of the demo's own. Default: start a private one.",
        ),
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", readable=False, help="Where files of the demo go.")] = Path(
        ".run/demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave files and queues for a look at them.")] = False,  # noqa: FBT002
    json: Annotated[bool, typer.Option("--json", help="Print everything that arrived as one JSON object.")] = False,  # noqa: FBT002
) -> None:
    """See it work: broker, receiving server and worker, four jobs and their results.

    Needs nothing but RabbitMQ installed (or --url), changes nothing on
    the machine, and ends by itself: status 0 if every result arrived
    as it has to, else 1 and the reason.

    [dim]mailq demo
    mailq demo --url amqp://guest:guest@localhost/ --json[/dim]
    """
    began = time.monotonic()
    # SIGTERM is Ctrl-C here: inside the loop asyncio makes a cancellation of that, which tears nothing apart. A
    # shell's background jobs begin with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    home = new_directory(directory, "--dir")
    say = _Teller(quiet=json)
    try:
        config, documents = _run(home, url, say, keep=keep)
    except (DemoError, LabError, BrokerError) as trouble:
        complain(f"the demo failed: {trouble}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
    if json:
        sys.stdout.buffer.write(orjson.dumps(documents, option=orjson.OPT_INDENT_2) + b"\n")
        return
    _show(config, documents)
    say(f"\nAll {sum(map(len, documents.values()))} results arrived, {time.monotonic() - began:.1f} s in all.")
    if keep:
        say(f"Files are in {home}.")


class _Teller:
    """Says on standard error what is going on."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def __call__(self, text: str) -> None:
        self._console.print(text, markup=False)


def _run(home: Path, url: str | None, say: _Teller, *, keep: bool) -> tuple[Config, Documents]:
    """Start the broker if none was named, and play; returns the configuration and what arrived on each queue."""
    if url:
        play = Play(home, url, say, private=False, keep=keep)
        return play.config, asyncio.run(play.perform())
    rabbit = PrivateRabbit(home / "rabbitmq")
    try:
        say(f"starting a private RabbitMQ on 127.0.0.1:{rabbit.port}")
        rabbit.start()
        play = Play(home, rabbit.url, say, private=True, keep=keep)
        return play.config, asyncio.run(play.perform())
    finally:
        rabbit.stop()


def _show(config: Config, documents: Documents) -> None:
    """Print every result with the queues that it arrived on, and one document whole."""
    console = Console(highlight=False)
    table = Table("on the queues", "arrived", show_lines=True)
    names = config.rabbitmq
    places: dict[str, list[str]] = {}
    for queue in (names.retry, names.success, names.failures, names.results):
        for document in documents[queue]:
            places.setdefault(_sentence(document), []).append(queue)
    for sentence, queues in places.items():
        table.add_row(Text("\n".join(queues)), Text(sentence))
    console.print(table)
    whole = next(each for each in documents[names.results] if each["recipient"] == SHOWN_WHOLE)
    console.print(Text(f"\nThe message about {SHOWN_WHOLE} on the queue {names.results}, whole:"))
    console.print(JSON(orjson.dumps(whole).decode()))


def _sentence(document: dict[str, Any]) -> str:
    """Return the last result of a document in three lines."""
    last = document["results"][-1]
    facts = [f"attempt {last['attempt']}", f"{sum(last.get('timing', {}).values()):.0f} ms"]
    if cipher := last.get("cipher"):
        facts.append(f"{cipher['protocol']} {cipher['name']}")
    answer = f"{last['state']}/{last['result']}: {last['code']} {last['status']} {last['description']}"
    return f"{document['recipient']}\n{answer}\n{', '.join(facts)}"
