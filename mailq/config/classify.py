"""Table `classification`: rules of the operator's own, before those that are shipped."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mailq.config.base import Section
from mailq.core.classify import Ruleset
from mailq.data import bounces


class ClassificationConfig(Section):
    """What failed attempts are taken for: class, category and what they are about."""

    rules: tuple[Path, ...] = Field(
        (), description="Rule files in TOML that come before the shipped rules, the first before the second."
    )


def ruleset_of(files: Sequence[Path]) -> Ruleset:
    """Return the rules of these files and the shipped ones behind them.

    Raises:
        RulesError: a file cannot be used.
        OSError: a file cannot be read.
    """
    texts = [file.read_text("utf-8") for file in files]
    return Ruleset.load([*texts, bounces()], [*map(str, files), "bounces.toml"])
