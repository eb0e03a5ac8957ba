"""Table `classification`: rules of the operator's own, before those that are shipped."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mailq.config.base import Section
from mailq.core.answers.classify import Ruleset
from mailq.core.answers.rules import RulesError
from mailq.data import bounces


class ClassificationConfig(Section):
    """What failed attempts are taken for: class, category and what they are about."""

    rules: tuple[Path, ...] = Field(
        (), description="Rule files in TOML that come before the shipped rules, the first before the second."
    )


def ruleset_of(files: Sequence[Path]) -> Ruleset:
    """Return the rules of these files and the shipped ones behind them.

    Raises:
        RulesError: a file cannot be read or used.
    """
    return Ruleset.load([*map(_text, files), bounces()], [*map(str, files), "bounces.toml"])


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as trouble:
        raise RulesError(f"{file}: cannot be read: {trouble.strerror}; name a file that this user may read") from None
    except UnicodeDecodeError:
        raise RulesError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
