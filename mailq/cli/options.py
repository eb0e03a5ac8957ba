"""Options that several commands share, and the one way in which a command reads its configuration."""

from pathlib import Path
from typing import Annotated

import typer

from mailq.cli.output import complain
from mailq.config import Config
from mailq.config.load import ConfigError
from mailq.config.load import load as load_config

EX_CONFIG = 78
"""Exit status for a configuration that cannot be used (sysexits.h)."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        readable=False,  # by `load`: a configuration that cannot be read is status 78, however it is named
        help="Configuration in TOML. Default: the file named by MAILQ_CONFIG, else /etc/mailq/mailq.toml"
        " if it exists, else the built-in defaults. MAILQ_<TABLE>__<KEY> in the environment comes first.",
        show_default=False,
    ),
]


def load(path: Path | None) -> Config:
    """Return the configuration, or end the program with status 78 and what is wrong on standard error."""
    try:
        return load_config(path)
    except ConfigError as trouble:
        for line in str(trouble).splitlines():
            complain(line)
        raise typer.Exit(EX_CONFIG) from None
