"""The command `mailq`: one file per command, one table here that names them in the order of --help.

Only the module of the command that was asked for is imported, so that `mailq run` does not wait
for what `mailq demo` needs; --help imports them all.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("mailq.cli.run", "run"),
    "send": ("mailq.cli.send", "send"),
    "watch": ("mailq.cli.watch", "watch"),
    "poison": ("mailq.cli.poison", "poison"),
    "check": ("mailq.cli.check", "check"),
    "classify": ("mailq.cli.classify", "classify"),
    "webhooks": ("mailq.cli.webhooks", "group"),
    "sink": ("mailq.cli.sink", "sink"),
    "demo": ("mailq.cli.demo", "demo"),
    "torture": ("mailq.cli.torture", "torture"),
    "schemas": ("mailq.cli.contracts", "schemas"),
    "example-config": ("mailq.cli.contracts", "example_config"),
    "version": ("mailq.cli.contracts", "version"),
}
"""Name of each command: its module, and its function or group of commands."""

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
    app = typer.Typer(
        name="mailq",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,  # they may show local variables, and those may be secret
    )
    app.callback()(_root)
    for name in names:
        module, function = COMMANDS[name]
        found = getattr(import_module(module), function)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name, and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = words[:1] if words and words[0] in COMMANDS else tuple(COMMANDS)
    build(asked)(args=words, prog_name="mailq")


def _root() -> None:
    """Hold the commands: with one alone typer would make it the program itself."""
