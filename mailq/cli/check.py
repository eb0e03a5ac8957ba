"""`mailq check`: is everything there that a worker with this configuration needs?

Looks and changes nothing: no queue is declared, no mail is sent. Each finding says what was seen
and what to do about it; the findings themselves are made in `mailq.cli.check_remote`
and `mailq.cli.check_local`.
"""

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mailq.cli.check_remote import examine
from mailq.cli.finding import Finding, Level
from mailq.cli.options import ConfigOption, load
from mailq.cli.output import cell, write_json
from mailq.config.load import find_file

MOST = 5
"""Lines of one finding in the table; how many more there are is said."""

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def check(
    config: ConfigOption = None,
    domain: Annotated[str, typer.Option(metavar="DOMAIN", help="Look up the MX hosts of this domain.")] = "example.com",
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Also connect to this mail server from each source and read its greeting."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,  # noqa: FBT002
) -> None:
    """Look at configuration, rules, journal, broker, queues, DNS, sources, smarthost and webhooks.

    Changes nothing; logs in at the smarthost, but sends no mail. Exit status 1 if something is missing without
    which the worker cannot do its work, or a rule or pattern is wrong;
    a warning alone is status 0. --json tells every problem, the table
    the first five of a kind.

    [dim]mailq check -c mailq.toml
    mailq check --domain example.org --connect mx.example.org[/dim]
    """
    settings = load(config)
    findings = asyncio.run(examine(settings, find_file(config), domain, connect))
    if json:
        write_json([finding.as_json() for finding in findings], indent=True)
    else:
        _print(findings)
    raise typer.Exit(1 if any(finding.level is Level.FAIL for finding in findings) else 0)


def _print(findings: list[Finding]) -> None:
    table = Table("", "what", "seen", box=None, pad_edge=False)
    for finding in findings:
        seen = cell(_first_lines(finding.seen))
        if finding.advice:
            seen.append_text(cell(f"\n{finding.advice}", style="italic"))
        table.add_row(cell(finding.level.value, style=_COLOURS[finding.level]), cell(finding.what), seen)
    Console().print(table)


def _first_lines(seen: str) -> str:
    lines = seen.splitlines()
    more = [f"and {len(lines) - MOST} more, which --json tells"] if len(lines) > MOST else []
    return "\n".join([*lines[:MOST], *more])
