"""`mailq classify`: what a reply would be taken for and why, and how well the rules do on a corpus of them.

Reads rule files and prints; what decides is `core.answers.classify`. A reply is given as a server sends it or a
log shows it; one on standard input may have several lines.
"""

import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mailq.cli.output import cell, complain, write_json
from mailq.config.classify import ruleset_of
from mailq.core.answers.classify import Classification, Ruleset, tie
from mailq.core.answers.rules import Rule, read_reply
from mailq.core.bounce_classes import CLASSES
from mailq.core.smtp.reply import MAX_LINE, Reply, printable
from mailq.core.states import WIRE_STATES, Kind, State

Answering = StrEnum("Answering", {state.name: state.value for state in State if state in WIRE_STATES})  # type: ignore[misc]
"""The states in which a server answers."""

_RCPTTO = Answering("rcptto")


def classify(
    reply: Annotated[
        str | None, typer.Argument(metavar="REPLY", help="The reply, code first; - reads it from standard input.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="The MX host that sent it, for rules of one receiver.")
    ] = None,
    state: Annotated[Answering, typer.Option(help="What it answered.")] = _RCPTTO,
    rules: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", readable=False, help="Your own rules, before the shipped ones.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="Classify all replies of this file and count the right ones."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,  # noqa: FBT002
) -> None:
    """Tell what a server's reply is taken for, and which rule says so.

    Exit status 1 if the corpus has a reply that is taken for something else than it says.

    [dim]mailq classify '550 5.1.1 No such user' --host mx.example.net
    mailq classify --corpus replies.toml --rules own.toml[/dim]
    """
    if (reply is None) == (corpus is None):
        raise typer.BadParameter("give a reply or --corpus")
    try:
        ruleset = ruleset_of(rules or [])
        if corpus is not None:
            report = measure(ruleset, corpus)
            write_json(report.as_json(), indent=True) if json else report.show(Console())
            raise typer.Exit(1 if report.wrong else 0)
        answer = explain(ruleset, sys.stdin.read() if reply == "-" else reply or "", State(state.value), host or [])
    except OSError as trouble:
        complain(f"{trouble.filename}: cannot be read: {trouble.strerror}; name a file that this user may read")
        raise typer.Exit(2) from None
    except ValueError as trouble:
        complain(str(trouble))
        raise typer.Exit(2) from None
    write_json(answer, indent=True) if json else _show(answer)


def explain(ruleset: Ruleset, text: str, state: State, hosts: Sequence[str]) -> dict[str, Any]:
    """Return a reply's classification as JSON, and the rules that fit behind it.

    Raises:
        ValueError: the text is no reply to a failed attempt.
    """
    reply = _failed(text)
    found = _classify(ruleset, reply, state, hosts)
    fitting = ruleset.matching(reply, hosts)
    return {
        "class": found.number,
        "name": found.name,
        "category": found.category.value,
        "about": found.about.value,
        "rule": found.rule,
        "why": _why(fitting[0]) if fitting else "no rule fits",
        "yielded": [rule.id for rule in fitting[1:]],
        "ruleset": ruleset.version,
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One reply of a corpus, what it is to be, and what the rules say."""

    text: str
    expected: int
    held_out: bool
    found: Classification
    tied: tuple[Rule, Rule] | None

    @property
    def right(self) -> bool:
        """Tell whether it is taken for what it is to be."""
        return self.found.number == self.expected


@dataclass(frozen=True, slots=True)
class Report:
    """How the rules do on a corpus."""

    ruleset: str
    lines: Sequence[Line]

    @property
    def wrong(self) -> list[Line]:
        """The lines that are taken for something else."""
        return [line for line in self.lines if not line.right]

    @property
    def tied(self) -> list[Line]:
        """The lines that two rules of one rank say different classes of."""
        return [line for line in self.lines if line.tied]

    @property
    def undetermined(self) -> list[Line]:
        """The lines that the rules know nothing of."""
        return [line for line in self.lines if line.found.number == 1]

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        held_out = [line for line in self.lines if line.held_out]
        return {
            "ruleset": self.ruleset,
            "replies": len(self.lines),
            "right": len(self.lines) - len(self.wrong),
            "accuracy": share(self.lines),
            "held_out": {"replies": len(held_out), "accuracy": share(held_out)},
            "wrong": [_line(line) for line in self.wrong],
            "ties": [_line(line) | {"rules": [rule.id for rule in line.tied or ()]} for line in self.tied],
            "undetermined": [_line(line) for line in self.undetermined],
        }

    def show(self, console: Console) -> None:
        """Print a table by class, the confusions, the ties and what is undetermined."""
        table = Table("class", "", "replies", "right", "taken for", box=None, pad_edge=False)
        for number in sorted({line.expected for line in self.lines}):
            lines = [line for line in self.lines if line.expected == number]
            taken = Counter(line.found.number for line in lines if not line.right)
            confused = ", ".join(f"{other} ({count})" for other, count in taken.most_common())
            right = sum(line.right for line in lines)
            table.add_row(str(number), CLASSES[number].name, str(len(lines)), str(right), confused)
        console.print(table)
        held_out = [line for line in self.lines if line.held_out]
        console.print(f"\n{len(self.lines)} replies, {share(self.lines):.1%} right", highlight=False)
        if held_out:
            console.print(f"{len(held_out)} of them held out, {share(held_out):.1%} right", highlight=False)
        for title, lines in (("wrong", self.wrong), ("ties", self.tied), ("undetermined", self.undetermined)):
            console.print(f"\n{title}: {len(lines)}", highlight=False)
            for line in lines:
                rules = " = ".join(rule.id for rule in line.tied) if line.tied else line.found.rule
                words = f"  {line.expected} → {line.found.number} ({rules}): {line.text}"
                console.print(
                    cell(printable(words.replace("\n", " / ").encode(errors="replace"), limit=MAX_LINE)), soft_wrap=True
                )


def measure(ruleset: Ruleset, file: Path) -> Report:
    """Return how the rules do on a corpus in TOML; see tests/data/replies.toml for the form.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no corpus; names the page.
    """
    lines: list[Line] = []
    for place, page in enumerate(tomllib.loads(file.read_text("utf-8")).get("page", []), 1):
        try:
            lines += _page(ruleset, page)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: page {place}: {error}") from None
    if not lines:
        raise ValueError(f"{file}: holds no replies")
    return Report(ruleset.version, lines)


def share(lines: Sequence[Line]) -> float:
    """Return the share of lines that are right, 0 to 1; 1 of none."""
    return sum(line.right for line in lines) / len(lines) if lines else 1.0


def _page(ruleset: Ruleset, page: dict[str, Any]) -> Iterator[Line]:
    hosts = ruleset.host_of(page.get("provider", ""))
    for name in ("replies", "held_out"):
        for number, category, text in page.get(name, []):
            if CLASSES[number].category.value != category:
                raise ValueError(f"class {number} is not {category}")
            yield _measured(ruleset, text, number, hosts, held_out=name == "held_out")


def _measured(ruleset: Ruleset, text: str, number: int, hosts: Sequence[str], *, held_out: bool) -> Line:
    reply = _failed(text)
    found = _classify(ruleset, reply, State.RCPTTO, hosts)
    return Line(text, number, held_out, found, tie(ruleset.matching(reply, hosts)))


def _failed(text: str) -> Reply:
    reply = read_reply(text)
    if reply.code < 400:
        raise ValueError(f"{reply.code} does not fail an attempt")
    return reply


def _classify(ruleset: Ruleset, reply: Reply, state: State, hosts: Sequence[str]) -> Classification:
    status = reply.status or f"{reply.code // 100}.0.0"
    return ruleset.classify(
        state=state, kind=Kind.ERROR, code=reply.code, status=status, text=reply.text, hosts=hosts, from_peer=True
    )


def _why(rule: Rule) -> str:
    looks = {"provider": rule.provider, "text": rule.text, "status": rule.status, "code": rule.code}
    fits = ", ".join(f"{name} {value if name != 'text' else 'matches'}" for name, value in looks.items() if value)
    return f"{fits}{', vague' if rule.vague else ''} ({rule.source})"


def _line(line: Line) -> dict[str, Any]:
    return {"text": line.text, "expected": line.expected, "class": line.found.number, "rule": line.found.rule}


def _show(answer: dict[str, Any]) -> None:
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    table.add_row("class", cell(f"{answer['class']} {answer['name']}"))
    for name in ("category", "about", "rule", "why", "ruleset"):
        table.add_row(name, cell(answer[name]))
    if answer["yielded"]:
        table.add_row("also fit", cell(", ".join(answer["yielded"])))
    Console(soft_wrap=True).print(table)
