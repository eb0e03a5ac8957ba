"""Commands that print what others build on: JSON Schemas, the example configuration, the version."""

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

import mailq


def schemas(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write one file per schema into this folder.")
    ] = None,
) -> None:
    """Print or write the JSON Schemas of jobs, results and republished messages.

    [dim]mailq schemas --out schemas[/dim]
    """
    from mailq.core import records  # noqa: PLC0415 - `mailq version` needs none of it

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for name, text in records.schemas().items():
        if out is None:
            sys.stdout.write(text)
        else:
            (out / f"{name}.json").write_text(text, "utf-8")


def example_config() -> None:
    """Print a configuration with every key, explained and at its default.

    [dim]mailq example-config > mailq.toml[/dim]
    """
    from mailq.config.example import example  # noqa: PLC0415 - see above

    sys.stdout.write(example())


def version() -> None:
    """Print the versions of mailq and of Python."""
    sys.stdout.write(f"mailq {mailq.__version__} (Python {platform.python_version()})\n")
