"""The output of commands, for people and programs: the one door through which texts of strangers reach a terminal.

All output is escaped (`core.escape`), in a line for people, in JSON, in a cell of a table and in
a complaint. Tables take texts as they are: square brackets of strangers are no markup of rich's.
"""

import sys
from collections.abc import Sequence
from typing import Any

import orjson
from rich.text import Text

from mailq.core.escape import escaped


def write(text: str) -> None:
    """Write a line to standard output."""
    _put(escaped(text))


def write_page(text: str) -> None:
    """Write a text of several lines to standard output."""
    _put(escaped(text, kept="\n"))


def complain(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"mailq: {escaped(text)}\n")


def write_json(value: Any, *, indent: bool = False) -> None:  # noqa: ANN401 - whatever AMQP and JSON hold
    """Write a value as JSON, in one line unless it is to be indented."""
    _put(escaped(as_json(value, indent=indent), kept="\n"))


def as_json(value: Any, *, indent: bool = False) -> str:  # noqa: ANN401 - the same
    """Return JSON of whatever AMQP headers and documents hold; what JSON has no type for becomes text."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(value, default=_foreign, option=option).decode()


def one_line(body: bytes) -> str:
    """Return a body as one line of JSON, its numbers as they are; what is no JSON becomes a JSON string."""
    try:
        orjson.loads(body)
        text = body.decode()
    except ValueError:
        return escaped(as_json(body.decode("utf-8", "replace")))
    # JSON has line ends only between its parts.
    return escaped(text.replace("\r", "").replace("\n", ""))


def write_table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows in columns, the first of them the headings."""
    shown = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _put("  ".join(cells).rstrip())


def cell(text: str, style: str = "") -> Text:
    """Return a text for a cell of a rich table: escaped but for its line ends, and without markup."""
    return Text(escaped(text, kept="\n"), style=style)


def _put(text: str) -> None:
    """Write lines in UTF-8, whatever the locale, and let readers have them at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


def _foreign(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
