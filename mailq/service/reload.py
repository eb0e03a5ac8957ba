"""SIGHUP: the configuration is read again while mail is on its way.

Taken are the tables in `LIVE`, which say what endings mean: nothing that is under way depends on them. Other tables
are wired into what is open, so a change of theirs is only named, as waiting for a restart. A configuration that
cannot be used changes nothing. What came of it is one line in the log; who asks, and who else has to be told,
is for `wiring` (a worker alone) and `supervisor`.
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
"""Tables that are taken over without a restart; the rule files that the second names are read anew."""


class Reload:
    """Reads the configuration again; `config` is the one in force."""

    def __init__(self, config: Config, read: Callable[[], Config], logger: Logger) -> None:
        """Begin with `config`; `read` returns the newest one or raises `ConfigError`."""
        self.config = config
        self._read = read
        self._logger = logger

    def again(self) -> Interpreter | None:
        """Return what endings mean by the newest configuration; None where that cannot be used, as the log then tells.

        It blocks for some 50 ms, and for 200 ms with a thousand patterns.
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
    """Return what the log tells of rules and patterns."""
    return {"patterns": len(meaning.patterns), "ruleset": meaning.ruleset.version}


def meaning_of(config: Config) -> Interpreter:
    """Return what unsuccessful endings are read by.

    Raises:
        ConfigError: a file of rules cannot be used.
    """
    try:
        ruleset = ruleset_of(config.classification.rules)
    except RulesError as trouble:
        raise ConfigError(f"classification.rules: {trouble}") from None
    return Interpreter(ruleset, patterns_of(config.patterns))
