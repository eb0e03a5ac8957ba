"""`mailq sink`: run the receiving server of the lab in the foreground."""

import asyncio
import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.markup import escape

from mailq.cli.output import complain
from mailq.core.smtp.reply import printable
from mailq.sink.behaviours import NOTES, TABLE
from mailq.sink.server import Message, Sink
from mailq.testbed.certificates import Authority

_HELP = """\
Receive mail, and misbehave on demand.

Takes every message and prints a line for it; delivers nothing
anywhere. What happens to a message is chosen by the recipient's local part:

{table}

{notes}

[dim]mailq sink --port 2525 --tls --dir mail
mailq sink --fault intro=stall --fault ehlo=502
mailq sink --tls --auth user:secret --require-auth --count 1[/dim]
"""


_ADDRESS = "choose an address of this host with --host"
_REMEDIES = {
    errno.EADDRINUSE: "choose another port with --port, or 0 for a free one",
    errno.EACCES: "ports below 1024 are not for normal users; choose another with --port",
}


def sink(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 2525,
    tls: Annotated[bool, typer.Option("--tls", help="Offer STARTTLS with a new certificate of a new test CA.")] = False,  # noqa: FBT002
    implicit_tls: Annotated[bool, typer.Option("--implicit-tls", help="Start TLS before the greeting.")] = False,  # noqa: FBT002
    require_tls: Annotated[bool, typer.Option("--require-tls", help="Refuse MAIL before STARTTLS.")] = False,  # noqa: FBT002
    auth: Annotated[
        list[str] | None, typer.Option(metavar="USER:PASSWORD", help="Offer AUTH for this user, after TLS; repeatable.")
    ] = None,
    plaintext_auth: Annotated[bool, typer.Option("--plaintext-auth", help="Offer AUTH without TLS too.")] = False,  # noqa: FBT002
    require_auth: Annotated[bool, typer.Option("--require-auth", help="Refuse MAIL before AUTH.")] = False,  # noqa: FBT002
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE=FAULT",
            help="Do this in every session; repeatable. STATE is intro, ehlo, helo, starttls, one of auth*,"
            " mailfrom, rcptto, data or message; FAULT a code such as 421, drop, reset, stall, garbage,"
            " slow-MS, or for starttls broken.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="EXTENSION", help="Do not offer it, for example PIPELINING; repeatable.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", readable=False, help="Write each message here too: an .eml and a .json file."),
    ] = None,
    max_size: Annotated[int, typer.Option(min=1, help="Largest message in octets.")] = 50 * 1024 * 1024,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
) -> None:
    """Receive mail, and misbehave on demand; the whole text of --help is `_HELP`."""
    with tempfile.TemporaryDirectory(prefix="mailq-sink-") as secrets:
        authority = Authority.create(Path(secrets)) if tls or implicit_tls else None
        names = dict.fromkeys(("localhost", "127.0.0.1", "::1", "sink.test", host))
        try:
            server = Sink(
                host,
                port,
                tls=authority.issue(*names).context() if authority else None,
                implicit_tls=implicit_tls,
                require_tls=require_tls,
                users=_users(auth or ()),
                plaintext_auth=plaintext_auth,
                require_auth=require_auth,
                faults=fault or (),
                without=without or (),
                directory=directory,
                max_size=max_size,
            )
        except ValueError as trouble:
            complain(str(trouble))
            raise typer.Exit(2) from None
        except OSError as trouble:
            complain(f"{directory}: cannot be made: {trouble.strerror}; name another place with --dir")
            raise typer.Exit(1) from None
        try:
            uvloop.run(_serve(server, authority, count))
        except OSError as trouble:
            reason = trouble.strerror if isinstance(trouble, socket.gaierror) else os.strerror(trouble.errno or 0)
            complain(f"cannot listen on {host}:{port}: {reason}; {_REMEDIES.get(trouble.errno or 0, _ADDRESS)}")
            raise typer.Exit(1) from None


sink.__doc__ = _HELP.format(
    table="\n".join(f"  {escape(f'{word:<22}')} {escape(effect)}" for word, effect in TABLE), notes=escape(NOTES)
)


def _users(pairs: Sequence[str]) -> dict[str, str]:
    """Return users and passwords.

    Raises:
        ValueError: a pair has no colon.
    """
    if not all(":" in pair for pair in pairs):
        raise ValueError("--auth is of the form USER:PASSWORD")
    return dict(pair.split(":", 1) for pair in pairs)


async def _serve(server: Sink, authority: Authority | None, count: int | None) -> None:
    """Receive until there were `count` messages, or SIGINT or SIGTERM comes."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        _print(f"listening on {server.host}:{server.port}")
        if authority:
            _print(f"certificate is issued by {authority.file}")
        printing, stopping = asyncio.create_task(_print_messages(server, count)), asyncio.create_task(stop.wait())
        await asyncio.wait({printing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if printing.done():
            printing.result()
        printing.cancel()


async def _print_messages(server: Sink, count: int | None) -> None:
    printed = 0
    while count is None or printed < count:
        await server.wait(printed + 1)
        for message in server.since(printed):
            _print(line(message))
            printed = message.number


def line(message: Message) -> str:
    """Return what one line says of a message; never holds a control character."""
    session = message.session
    sender = message.sender or "<>"
    recipients = ", ".join(to.address for to in message.recipients[:5])
    more = f" and {len(message.recipients) - 5} more" if len(message.recipients) > 5 else ""
    facts = [
        f"{message.time:%H:%M:%S}",
        str(message.number),
        f"{sender} -> {recipients}{more}",
        f"{len(message.content)} octets",
        f"from {session.peer} ({session.helo})",
        f"{session.tls} {session.cipher}" if session.tls else "no TLS",
        *([f"user {session.user}"] if session.user else []),
        f"session {session.connection} message {message.nth}",
    ]
    return printable("  ".join(facts).encode(errors="replace"), limit=2000)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
