r"""SMTP conversations as files: their language, and the delivery that meets them.

One file is one attempt. Blank lines and lines with `#` are comments; the others, in order:

    @ key=value     a property of the job; with a dot a key of the configuration (JSON, or plain text);
                    `servers` is the number of addresses that the recipient's domain has (1)
    S: text         the server says a line; adjacent ones leave in one write
    S:- text        the same without CRLF at the end
    S! action       close, reset (RST), stall (says nothing more, waits until the client gives up),
                    starttls (TLS handshake), pause (what was said so far leaves by itself),
                    next (what follows is another connection)
    C: regex        the client must send this line
    C: <payload>    the client must send a message; a regex may follow, to be found in it
    C! close        the client must close the connection and say nothing more
    => state kind [code [status]] [doubt]

In what the server says, `\r`, `\n`, `\0`, `\\` and `\xNN` are escapes, and `{text*1000}` repeats. A
client that speaks before it was answered has broken the dialogue, unless PIPELINING was offered.
After the last line RSET and QUIT are answered, nothing else is.

What is met is the real thing from `Delivery.attempt` down to the socket; only the DNS is replaced, by
`dns.overrides`. Unless told otherwise, news@sender.example writes to someone@example.com, the EHLO name
is client.example, and no clock runs longer than a few seconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import orjson

from mailq.config import Config
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result, Trail
from mailq.delivery.attempt import Delivery
from mailq.delivery.governor import Governor
from mailq.delivery.smtp.session_pool import SessionPool
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.service.build import meaning_of, policy_of, timeouts_of
from support.limits import private_table

DEADLINE = 10.0
"""Seconds in which a client must have done what the dialogue says."""

SECRET = "correct horse"
"""The password of dialogues with a login, whose user is `me`; it must appear in no result."""

JOB = {
    "recipient": "someone@example.com",
    "envelope": "news@sender.example",
    "mime": "Subject: hello\r\n\r\nworld\r\n",
}

STATES_WITH_CLOCKS = ("connect", "intro", "ehlo", "helo", "starttls", "auth", "mailfrom", "rcptto", "data", "message")

ACTIONS = frozenset({"close", "reset", "stall", "starttls", "pause", "next"})

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([rn0\\]))")
_REPEAT = re.compile(rb"\{(.+?)\*(\d+)\}", re.DOTALL)
_PLAIN = {"r": "\r", "n": "\n", "0": "\0", "\\": "\\"}


class DialogueError(ValueError):
    """The file is no dialogue; names the line."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a dialogue: `kind` is say, do, hear, message or gone."""

    number: int
    kind: str
    said: bytes = b""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the attempt comes to; None leaves open."""

    state: str
    kind: str
    code: int | None
    status: str | None
    doubt: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A parsed file: options, and the steps of each connection."""

    options: dict[str, Any]
    connections: tuple[tuple[Step, ...], ...]
    expected: Expected


def read(path: Path) -> Dialogue:
    """Return the dialogue in a file."""
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> Dialogue:
    """Return the dialogue written in `text`.

    Raises:
        DialogueError: it is none.
    """
    options: dict[str, Any] = {}
    connections: list[list[Step]] = [[]]
    expected: Expected | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if expected is not None:
            raise DialogueError(f"line {number}: stands after the end")
        mark, _, rest = line.partition(" ")
        match mark:
            case "@":
                key, _, value = rest.partition("=")
                options[key.strip()] = _value(value.strip())
            case "S!" if rest.strip() == "next":
                connections.append([])
            case "=>":
                expected = _expected(rest.split(), number)
            case _:
                connections[-1].append(_step(number, mark, rest))
    if expected is None:
        raise DialogueError("has no line => that tells the result")
    return Dialogue(options, tuple(tuple(steps) for steps in connections), expected)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _expected(words: list[str], number: int) -> Expected:
    doubt = words[-1:] == ["doubt"]
    match words[:-1] if doubt else words:
        case [state, kind]:
            return Expected(state, kind, None, None, doubt)
        case [state, kind, code]:
            return Expected(state, kind, int(code), None, doubt)
        case [state, kind, code, status]:
            return Expected(state, kind, int(code), status, doubt)
    raise DialogueError(f"line {number}: write => state kind [code [status]] [doubt]")


def _step(number: int, mark: str, rest: str) -> Step:
    match mark:
        case "S:":
            return Step(number, "say", _octets(rest) + b"\r\n")
        case "S:-":
            return Step(number, "say", _octets(rest))
        case "S!" if rest.strip() in ACTIONS:
            return Step(number, "do", text=rest.strip())
        case "C!" if rest.strip() == "close":
            return Step(number, "gone")
        case "C:" if rest.startswith("<payload>"):
            return Step(number, "message", text=rest.removeprefix("<payload>").strip())
        case "C:":
            return Step(number, "hear", text=rest)
    raise DialogueError(f"line {number}: {mark} {rest} is not known")


def _octets(text: str) -> bytes:
    raw = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _PLAIN[found[2]], text)
    octets = b"".join(_octet(publication) for publication in raw)
    return _REPEAT.sub(lambda found: found[1] * int(found[2]), octets)


def _octet(publication: str) -> bytes:
    return publication.encode("latin-1") if ord(publication) < 256 else publication.encode()


class _Bugs:
    """An observer that keeps what the code does not foresee; a dialogue must lead to none."""

    def __init__(self) -> None:
        self.seen: list[BaseException] = []

    def bug(self, where: str, error: BaseException) -> None:
        self.seen.append(error)

    def session_limit(self, host: str, messages: int) -> None: ...


class Leave:
    """A claim that is always granted (see `mailq.ports.journal.Claim`)."""

    def begin(self) -> None: ...

    def hand_over(self) -> None: ...


async def deliver(addresses: Sequence[tuple[str, int]], options: dict[str, Any]) -> Result:
    """Return the result of one real attempt, with the servers at `addresses` as the targets of its domain.

    Raises:
        Exception: the attempt met a bug, which is raised instead of being counted.
    """
    config = _config(addresses, options)
    job = Job.parse(orjson.dumps(_job(options)), limit=100_000_000)
    pool = SessionPool(
        TcpDialer(Security(config.tls)), private_table(), timeouts_of(config), config.timeouts.quit, 100, 500
    )
    sources = HostSources(config.sources, config.delivery.ehlo)
    bugs = _Bugs()
    delivery = Delivery(
        policy_of(config),
        DnsResolver(config.dns),
        sources,
        Governor([]),
        pool,
        meaning_of(config),
        bugs,
        lambda: datetime.now(UTC),
        Random(0),
    )
    try:
        result = await delivery.attempt(job, Trail(), Leave())
    finally:
        await pool.close()
    if bugs.seen:
        raise bugs.seen[0]
    return result


def _job(options: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if "." not in key and key != "servers"}
    return JOB | given


def _config(addresses: Sequence[tuple[str, int]], options: dict[str, Any]) -> Config:
    tables: dict[str, dict[str, Any]] = {
        "delivery": {"ehlo": "client.example"},
        "dns": {"overrides": {"*": [f"{host}:{port}" for host, port in addresses]}},
        "timeouts": dict.fromkeys(STATES_WITH_CLOCKS, DEADLINE / 2) | {"quit": 0.5},
    }
    for key, value in options.items():
        table, dot, name = key.partition(".")
        if dot:
            tables.setdefault(table, {})[name] = value
    if "username" in tables.get("smarthost", {}):
        host, port = addresses[0]
        tables["smarthost"] |= {"hostname": host, "port": port, "password": SECRET}
    return Config.model_validate(tables)
