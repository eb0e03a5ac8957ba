"""`mailq run`: worker processes under a supervisor, or one alone, until SIGTERM or SIGINT."""

from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop

from mailq import __version__
from mailq.cli.options import EX_CONFIG, ConfigOption, load
from mailq.cli.output import complain
from mailq.config import Config
from mailq.config.load import ConfigError
from mailq.config.load import load as load_config
from mailq.edges.log import configure


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
    announce(settings)
    # Imported here: a wrong configuration is told at once, and the log begins before the slow imports.
    from mailq.edges.http_server import ListenError  # noqa: PLC0415
    from mailq.service import supervisor  # noqa: PLC0415
    from mailq.service.run import run as run_worker  # noqa: PLC0415

    count = (settings.worker.processes if processes is None else processes) or supervisor.cores()
    read = partial(load_config, config)
    work = run_worker(settings, read) if count == 1 else supervisor.supervise(settings, read, count)
    try:
        raise typer.Exit(uvloop.run(work))
    except (ListenError, ConfigError) as trouble:
        complain(str(trouble))
        raise typer.Exit(1 if isinstance(trouble, ListenError) else EX_CONFIG) from None


def announce(config: Config) -> None:
    """Write the log's first line: which version starts, for which broker, and where the journals and limits are."""
    table = config.worker.journal_dir
    with configure(config.log) as log:
        log.logger.info(
            "starting",
            version=__version__,
            broker=_place(config.rabbitmq.url.get_secret_value()),
            outbox=config.rabbitmq.outbox,
            journal=str(Path(table).absolute()) if table else "none is kept",
            http=f"{config.http.host}:{config.http.port}" if config.http.enabled else "off",
        )


def _place(url: str) -> str:
    """Return host, port and virtual host of an AMQP URL, without the login."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _run_child(text: str) -> int:
    """Be one of a supervisor's processes; it says which, and sends the configuration."""
    from mailq.edges.control import Place  # noqa: PLC0415
    from mailq.service.run import run_child  # noqa: PLC0415 - as above

    try:
        place = Place.parse(text)
    except ValueError:
        raise typer.BadParameter("only a supervisor starts processes with it", param_hint="--child") from None
    return uvloop.run(run_child(place))
