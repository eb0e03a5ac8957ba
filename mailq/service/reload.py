"""Reload on SIGHUP: a process reads the configuration again while attempts run.

A process applies the tables in `LIVE`, which say how results are read; no running attempt depends on them. Open
connections depend on the other tables, so the log names their changes as waiting for a restart. An invalid
configuration changes nothing. The outcome of a reload is one line in the log. `run` (a worker alone) and `supervisor`
receive the signal.
"""

import logging
from collections.abc import Callable

from mailq.config import Config
from mailq.config.classify import ruleset_of
from mailq.config.load import ConfigError
from mailq.config.patterns import patterns_of
from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.rules import RulesError
from mailq.edges.log import Logger

LIVE = ("patterns", "classification")
"""Tables that apply without a restart; rule files named in `classification` are read again."""


class Reload:
    """Reads the configuration again; `config` is the configuration in force."""

    def __init__(self, config: Config, read: Callable[[], Config], logger: Logger) -> None:
        """Begin with `config`; `read` returns the newest one or raises `ConfigError`."""
        self.config = config
        self._read = read
        self._logger = logger

    def again(self) -> Interpreter | None:
        """Return the interpreter of the newest configuration; None, with a line in the log, if that is invalid.

        The call blocks for some 50 ms, and for 200 ms with a thousand patterns.
        """
        try:
            newest = self._read()
            meaning = meaning_of(newest)
        except ConfigError as trouble:
            self._logger.warning("reload", change="refused", detail="; ".join(str(trouble).splitlines()))
            return None
        waiting = [name for name in changed(self.config, newest) if name not in LIVE]
        self.config = self.config.model_copy(update={name: getattr(newest, name) for name in LIVE})
        level, more = (logging.WARNING, {"needs_restart": waiting}) if waiting else (logging.INFO, {})
        self._logger.log(level, "reload", change="taken", **describe(meaning), **more)
        return meaning


def changed(old: Config, new: Config) -> list[str]:
    """Return the names of the tables in which two configurations differ."""
    return [name for name in Config.model_fields if getattr(old, name) != getattr(new, name)]


def describe(meaning: Interpreter) -> dict[str, str | int]:
    """Return the facts about rules and patterns for the log."""
    return {"patterns": len(meaning.patterns), "ruleset": meaning.ruleset.version}


def meaning_of(config: Config) -> Interpreter:
    """Return the interpreter of unsuccessful results.

    Raises:
        ConfigError: a file of rules cannot be used.
    """
    try:
        ruleset = ruleset_of(config.classification.rules)
    except RulesError as trouble:
        raise ConfigError(f"classification.rules: {trouble}") from None
    return Interpreter(ruleset, patterns_of(config.patterns))
