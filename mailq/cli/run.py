"""`mailq run`: one worker process, in the foreground, until SIGTERM or SIGINT."""

import sys

import typer
import uvloop

from mailq.cli.options import ConfigOption, load


def run(config: ConfigOption = None) -> None:
    """Deliver jobs from the outbox until SIGTERM.

    SIGTERM and SIGINT stop the consuming, let what is on the wire end
    within worker.drain_timeout, give the rest back to the broker, and
    exit with status 0. Workers share the outbox: start as many as you
    like, on as many hosts as you like.

    [dim]mailq run -c /etc/mailq/mailq.toml
    MAILQ_RABBITMQ__URL=amqp://mail:secret@broker/ mailq run[/dim]
    """
    settings = load(config)
    # Imported here: a wrong configuration is told at once.
    from mailq import wiring  # noqa: PLC0415
    from mailq.edges.http import ListenError  # noqa: PLC0415

    try:
        raise typer.Exit(uvloop.run(wiring.run(settings)))
    except ListenError as trouble:
        sys.stderr.write(f"mailq: {trouble}\n")
        raise typer.Exit(1) from None
