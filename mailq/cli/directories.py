"""Directories that a command makes: one that cannot be written becomes one line and status 1, here and nowhere else."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from mailq.cli.output import complain


@contextmanager
def writing(directory: Path, option: str) -> Iterator[None]:
    """Tell of an error of the system while files are made in a directory, and end the program; `option` names it."""
    try:
        yield
    except OSError as trouble:
        complain(
            f"{trouble.filename or directory}: cannot be made: {trouble.strerror}; name another place with {option}"
        )
        raise typer.Exit(1) from None


def new_directory(parent: Path, option: str, prefix: str = "") -> Path:
    """Return a new empty directory below a directory that is made if it is missing, an absolute path."""
    with writing(parent, option):
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent.resolve()))
