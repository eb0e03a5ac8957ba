"""`mailq run`: worker processes under a supervisor, or one alone, until SIGTERM or SIGINT."""

import sys
from functools import partial
from typing import Annotated

import typer
import uvloop

from mailq.cli.options import EX_CONFIG, ConfigOption, load
from mailq.config.load import ConfigError
from mailq.config.load import load as load_config


def run(
    config: ConfigOption = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            "-p",
            min=0,
            max=256,
            help="Worker processes; 0: one for each core that may be used. Default: worker.processes.",
            show_default=False,
        ),
    ] = None,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Deliver jobs from the outbox until SIGTERM.

    SIGTERM and SIGINT stop the consuming, let what is on the wire end
    within worker.drain_timeout, give the rest back to the broker, and
    exit with status 0; a second one makes haste. Workers share the
    outbox: start as many as you like, on as many hosts as you like.

    SIGHUP reads the configuration again: patterns and classification
    rules are taken over at once, other changes are named in the log as
    waiting for a restart, and a wrong file changes nothing.

    Several processes run under a supervisor: it starts one anew that
    dies, passes signals on, and serves /metrics, /healthz and /readyz
    for all of them. One process runs without it.

    [dim]mailq run -c /etc/mailq/mailq.toml --processes 4
    MAILQ_RABBITMQ__URL=amqp://mail:secret@broker/ mailq run[/dim]
    """
    if child is not None:
        raise typer.Exit(_run_child(child))
    settings = load(config)
    # Imported here: a wrong configuration is told at once.
    from mailq import supervisor, wiring  # noqa: PLC0415
    from mailq.edges.http import ListenError  # noqa: PLC0415

    count = (settings.worker.processes if processes is None else processes) or supervisor.cores()
    read = partial(load_config, config)
    work = wiring.run(settings, read) if count == 1 else supervisor.supervise(settings, read, count)
    try:
        raise typer.Exit(uvloop.run(work))
    except (ListenError, ConfigError) as trouble:
        sys.stderr.write(f"mailq: {trouble}\n")
        raise typer.Exit(1 if isinstance(trouble, ListenError) else EX_CONFIG) from None


def _run_child(text: str) -> int:
    """Be one of a supervisor's processes; it says which, and sends the configuration."""
    from mailq import wiring  # noqa: PLC0415 - as above
    from mailq.edges.control import Place  # noqa: PLC0415

    try:
        place = Place.parse(text)
    except ValueError:
        raise typer.BadParameter("only a supervisor starts processes with it", param_hint="--child") from None
    return uvloop.run(wiring.run_child(place))
