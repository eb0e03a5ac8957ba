"""The command `mailq`: one file per command, one table here that names them in the order of --help.

Only the module of the command that was asked for is imported, so that `mailq run` does not wait
for what `mailq demo` needs; `mailq --help` imports none of them, nor does a shell that completes a command's name.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import typer
from typer.main import get_command

from mailq.cli import naming
from mailq.cli.plain_help import PlainCommand, PlainGroup
from mailq.cli.streams import OutputError, discard, prepare


class Command(NamedTuple):
    """Where a command is, as a function or a group of commands, and its line in `mailq --help`."""

    module: str
    function: str
    summary: str


COMMANDS: dict[str, Command] = {
    "run": Command("run", "run", "Deliver jobs from the outbox until SIGTERM."),
    "send": Command("send", "send", "Put jobs on the outbox."),
    "watch": Command("watch", "watch", "See results arrive, one line each."),
    "poison": Command("poison", "poison", "See what could not be processed; put it back, or drop it."),
    "check": Command(
        "check", "check", "Look at configuration, rules, journal, broker, queues, DNS, sources, smarthost and webhooks."
    ),
    "classify": Command("classify", "classify", "Tell what a server's reply is taken for, and which rule says so."),
    "webhooks": Command("webhooks", "group", "Post events about results to HTTP endpoints until SIGTERM."),
    "sink": Command("sink", "sink", "Receive mail, and misbehave on demand."),
    "demo": Command("demo", "demo", "See it work: broker, receiving server and worker, four jobs and their results."),
    "torture": Command("torture", "torture", "Torture mailq: no mail may be lost, whatever happens."),
    "schemas": Command(
        "contracts",
        "schemas",
        "Print or write the JSON Schemas of jobs, results and events, and the AsyncAPI document of queues.",
    ),
    "example-config": Command(
        "contracts", "example_config", "Print a configuration with every key, explained and at its default."
    ),
    "version": Command("contracts", "version", "Print the versions of mailq and of Python."),
}

HELP = """\
Deliver e-mail from a RabbitMQ queue: JSON in, SMTP out, one result per attempt.

[bold]To begin[/bold]

  mailq demo                           see it work, on servers of its own
  mailq example-config > mailq.toml    a commented configuration
  mailq check -c mailq.toml            is everything there that it needs?
  mailq run -c mailq.toml              deliver until SIGTERM
  mailq send -c mailq.toml job.json    put a job on the outbox
  mailq watch -c mailq.toml            see the results come

[bold]Exit status:[/bold] 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.
"""


def build(names: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """Return the application with these commands."""
    app = _application()
    for name in names:
        module, function, _ = COMMANDS[name]
        found = getattr(import_module(f"mailq.cli.{module}"), function)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name, cls=PlainCommand)(found)
    return app


def overview() -> typer.Typer:
    """Return the application with the summaries of all commands, none of which is imported before it is called."""
    app = _application()
    for name, command in COMMANDS.items():
        app.command(name, cls=PlainCommand, help=command.summary)(_later(name))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name, and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare()
    first = (words or _completed())[:1]
    command = get_command(build(first) if first and first[0] in COMMANDS else overview())
    name = naming.called(sys.argv[0])
    naming.rename(command, name, COMMANDS)
    try:
        try:
            command(args=words, prog_name=name)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard()
        sys.exit(1)
    except OutputError as trouble:
        discard()
        sys.stderr.write(f"mailq: cannot write to standard output: {trouble}\n")
        sys.exit(1)


def _application() -> typer.Typer:
    app = typer.Typer(
        name="mailq",
        cls=PlainGroup,
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,  # they may show local variables, and those may be secret
    )
    app.callback()(_root)
    return app


def _later(name: str) -> Callable[[], None]:
    return lambda: main([name])


def _completed() -> list[str]:
    """Return the words after the name of the program in a command line that a shell wants to be completed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def _root() -> None:
    """Hold the commands: with one alone typer would make it the program itself."""
