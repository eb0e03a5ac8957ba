"""`mailq send`: put jobs on the outbox, all checked before the first is published.

Publishes as any producer does: to the outbox by name, persistent, confirmed. Decides nothing about a job;
that it is one is told by the same parser that the worker uses.
"""

import asyncio
import gzip
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from mailq.cli.broker import connection, unavailable
from mailq.cli.jobfile import Entry, Flaw, read
from mailq.cli.options import ConfigOption, load
from mailq.cli.output import complain
from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.max_message_size import oversized
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError

EX_DATAERR = 65
EX_NOINPUT = 66
"""Exit statuses for a file with something wrong in it, and for one that cannot be read (sysexits.h)."""

MANY = 100
"""Jobs from which on a progress bar is worth its lines."""

SHOWN = 20
"""Flaws that are shown one by one."""

BATCH_JOBS = 500
BATCH_OCTETS = 16 * 1024 * 1024
"""Publications in flight at most; the next batch waits for their confirms."""


def send(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="Jobs in JSON; - is standard input.")],
    config: ConfigOption = None,
    compress: Annotated[bool, typer.Option("--gzip", help="Compress each job (content_encoding gzip).")] = False,  # noqa: FBT002
    skip_invalid: Annotated[  # noqa: FBT002
        bool, typer.Option("--skip-invalid", help="Leave out what is no valid job instead of sending nothing.")
    ] = False,
) -> None:
    """Put jobs on the outbox.

    The file holds one JSON object, an array of objects, or one object
    per line. Each is checked as the worker does it; if one is wrong,
    its line and JSON pointer are told and nothing is sent.
    AMQP message id is the job's id, or a new one; AMQP priority its
    priority.

    RabbitMQ 4 takes messages of 16 MiB unless its max_message_size says
    otherwise; --gzip makes most jobs much smaller.

    Exit status 65: something is wrong in the file; 66: it cannot be
    read; 69: no broker, it lacks the outbox, or refuses a job.

    [dim]mailq send -c mailq.toml job.json
    generate-jobs | mailq send -c mailq.toml --gzip -[/dim]
    """
    settings = load(config)
    # The worker's bound: JSON escapes and properties may double what is in `mime`.
    found = read(_content(file), 2 * settings.delivery.max_message_size, strict=settings.delivery.strict)
    entries = _entries(file, found, skip_invalid=skip_invalid)
    try:
        asyncio.run(_send(settings.rabbitmq, entries, compress=compress))
    except BrokerError as trouble:
        raise unavailable(trouble) from None
    jobs = "1 job" if len(entries) == 1 else f"{len(entries)} jobs"
    sys.stdout.write(f"{jobs} sent to {settings.rabbitmq.outbox}\n")


def _content(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        complain(f"{file}: cannot be read: {error.strerror}; name a file that this user may read, or - for input")
        raise typer.Exit(EX_NOINPUT) from None


def _entries(file: str, pieces: Iterable[Entry | Flaw], *, skip_invalid: bool) -> list[Entry]:
    """Return the jobs, or end with what is wrong."""
    entries: list[Entry] = []
    flaws: list[Flaw] = []
    for piece in pieces:
        (entries if isinstance(piece, Entry) else flaws).append(piece)  # type: ignore[arg-type]  # by the test
    for flaw in flaws[:SHOWN]:
        complain(f"{file}:{flaw}")
    if len(flaws) > SHOWN:
        complain(f"{file}: and {len(flaws) - SHOWN} more")
    if flaws and not skip_invalid:
        complain("nothing was sent; --skip-invalid leaves these out")
        raise typer.Exit(EX_DATAERR)
    if not entries:
        complain(f"{file}: there is no valid job in it")
        raise typer.Exit(EX_DATAERR)
    return entries


async def _send(config: RabbitConfig, entries: Sequence[Entry], *, compress: bool) -> None:
    """Publish all and return when the broker has confirmed every one."""
    console = Console(stderr=True)
    bar = Progress(console=console) if len(entries) >= MANY and console.is_terminal else nullcontext()
    async with connection(config, "send", config.outbox) as opened:
        publisher = Publisher(opened, config.confirm_timeout, _blocked)
        await publisher.start()
        sent = 0
        with bar as progress:
            task = progress.add_task("sending", total=len(entries)) if progress else None
            for batch in _batches(entries):
                try:
                    await publisher.publish([_publication(config.outbox, entry, compress=compress) for entry in batch])
                except BrokerError as trouble:
                    raise BrokerError(_told(trouble, sent, len(entries), compress=compress)) from None
                sent += len(batch)
                if progress and task is not None:
                    progress.advance(task, len(batch))


def _told(trouble: BrokerError, sent: int, count: int, *, compress: bool) -> str:
    """Return what went wrong, the remedy where there is one, and how much was done."""
    remedy = ""
    if oversized(trouble):
        zipped = "" if compress else "send it with --gzip, or "
        remedy = f"; {zipped}raise max_message_size in the broker's rabbitmq.conf"
    return f"{trouble}{remedy}; {sent} of {count} jobs were confirmed before"


def _publication(outbox: str, entry: Entry, *, compress: bool) -> Publication:
    return Publication(
        exchange="",
        routing_key=outbox,
        body=gzip.compress(entry.body, compresslevel=6) if compress else entry.body,
        message_id=entry.job.id or str(uuid.uuid4()),
        content_encoding="gzip" if compress else None,
        priority=entry.job.priority,
    )


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    octets = 0
    for entry in entries:
        if batch and (len(batch) >= BATCH_JOBS or octets + len(entry.body) > BATCH_OCTETS):
            yield batch
            batch, octets = [], 0
        batch.append(entry)
        octets += len(entry.body)
    yield batch


def _blocked(reason: str | None) -> None:
    complain(f"RabbitMQ takes nothing at the moment, waiting: {reason}" if reason else "RabbitMQ takes jobs again")
