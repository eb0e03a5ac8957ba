"""The name that the command was called by: help, examples and tab completion use it.

The package installs one program under two names. Postfix, Exim and sendmail own `/usr/bin/mailq`, so a host with a mail
server calls `mailqctl`.
"""

import re
from collections.abc import Collection
from pathlib import Path

from typer.core import TyperCommand, TyperGroup, TyperOption

NAMES = ("mailq", "mailqctl")
"""The console scripts of pyproject.toml; the first one is also the name of `python -m mailq`."""


def called(path: str) -> str:
    """Return the name by which `path`, the first word of the command line, calls the program."""
    name = Path(path).name
    return name if name in NAMES else NAMES[0]


def rename(command: object, name: str, commands: Collection[str]) -> None:
    """Write `name` into the examples that the help of a command and of those below it gives."""
    if not isinstance(command, TyperCommand | TyperGroup):
        return
    example = re.compile(rf"\b{NAMES[0]} (?={'|'.join(map(re.escape, commands))})")
    command.help = example.sub(f"{name} ", command.help or "")
    for option in command.params:
        if isinstance(option, TyperOption) and option.help:
            option.help = example.sub(f"{name} ", option.help)
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            rename(below, name, commands)
