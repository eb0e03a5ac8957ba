"""`mailq torture`: harm everything around real workers, and see whether mail is lost or doubled."""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop

from mailq.cli.directories import new_directory
from mailq.cli.output import complain
from mailq.ports.broker import BrokerError
from mailq.testbed.rabbitmq import LabError
from mailq.torture import TortureError, report
from mailq.torture.plan import KINDS, schedule
from mailq.torture.show import Show

_HELP = """\
Torture mailq: no mail may be lost, whatever happens.

Starts a RabbitMQ, workers, a receiver and a name server of its own,
lets disasters happen to them while jobs are under way, and compares in
the end what was published, what the receiver took, and what the results
say. Needs RabbitMQ installed, and Linux; changes nothing on the machine.
Status 0 if nothing was lost, no result is missing, and no job was
delivered twice but where nobody can know, and then its result says
in_doubt; else 1.

{kinds}

[dim]mailq torture
mailq torture --disasters 2000 --seed 7 --json
mailq torture --kinds kill-ack,broker-kill --keep .run/torture[/dim]
"""


def torture(
    disasters: Annotated[int, typer.Option("--disasters", "-n", min=1, help="How many.")] = 50,
    seed: Annotated[
        int | None, typer.Option(min=0, help="What happens when; the same again with the same seed. Default: the time.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(metavar="KIND,KIND…", help="Only these kinds, of those above. Default: all.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, max=16, help="Processes of each of the two `mailq run`.")
    ] = 2,
    jobs: Annotated[int, typer.Option("--jobs-per-disaster", min=1, max=99, help="Jobs published for each.")] = 5,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="Publish jobs with neither message id nor id.")] = False,  # noqa: FBT002
    limit: Annotated[float, typer.Option("--limit", min=1, help="Seconds after which it ends with an error.")] = 7200,
    json: Annotated[bool, typer.Option("--json", help="End with the figures as one line of JSON.")] = False,  # noqa: FBT002
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", readable=False, help="Put all files (logs, what was accepted) here and leave them."
        ),
    ] = None,
) -> None:
    """Torture mailq; the whole text of --help is `_HELP`."""
    chosen = _chosen(kinds)
    settings = report.Settings(int(time.time()) if seed is None else seed, disasters, chosen, processes, jobs, unnamed)
    home = _home(keep)
    # SIGTERM is Ctrl-C here, as in `mailq demo`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    began = time.monotonic()
    _print(f"seed {settings.seed}: {settings.command(tuple(KINDS))}")
    try:
        show = Show(home, schedule(settings.seed, disasters, chosen, jobs), settings, _print)
        books = uvloop.run(show.run(limit))
    except (TortureError, LabError, BrokerError) as trouble:
        complain(f"the torture ended early: {trouble}\nonce more: {settings.command(tuple(KINDS))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    finally:
        if keep is None:
            shutil.rmtree(home, ignore_errors=True)
    for line in report.lines(books, settings, tuple(KINDS)):
        _print(line)
    if json:
        _print(orjson.dumps(report.record(books, settings, time.monotonic() - began)).decode())
    if show.trouble is not None:
        complain(f"the torture ended early: {show.trouble}")
    raise typer.Exit(0 if books.total().holds and show.trouble is None else 1)


torture.__doc__ = _HELP.format(kinds="\n".join(f"  {kind.name:<22} {kind.about}" for kind in KINDS.values()))


def _chosen(kinds: str | None) -> tuple[str, ...]:
    """Return the names of the kinds that were asked for, or end with what is wrong."""
    chosen = tuple(KINDS) if kinds is None else tuple(dict.fromkeys(kinds.split(",")))
    if unknown := [name for name in chosen if name not in KINDS]:
        raise typer.BadParameter(f"there is no kind {unknown[0]!r}", param_hint="--kinds")
    return chosen


def _home(keep: Path | None) -> Path:
    """Return the empty directory for all files, an absolute path."""
    if keep is None:
        return new_directory(Path(tempfile.gettempdir()), "TMPDIR", "mailq-torture-")
    return new_directory(keep, "--keep", "run-")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
