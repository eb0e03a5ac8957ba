"""Response patterns: which endings of an attempt are to mean something else than they would. Pure.

A pattern has triggers (what must hold of an ending, all of them) and `Actions`. Patterns are tried by priority, the
highest number first, equals in the order in which they were written; all that match add up until one that is final,
and none overrides what a more important one decided. The texts of all patterns are one set of regular expressions
(RE2), matched at once and in linear time, whatever the server writes.

What the effects come to is for `core.answers.verdict` and `core.answers.actions`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import re2  # type: ignore[import-untyped]  # it comes without type information

from mailq.core.answers.actions import NOTHING, Actions
from mailq.core.states import Kind, State
from mailq.core.traffic.limits import under

MAX_TEXT = 4096
"""Characters of a reply that are compared."""

MAX_MEMORY = 64 * 1024 * 1024
"""Octets that the matcher of all texts may use."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an ending: of the answer, of who sent to whom, and of the job."""

    state: State
    kind: Kind
    code: int
    status: str
    text: str
    number: int | None = None
    source: str | None = None
    pool: str | None = None
    domain: str = ""
    hosts: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """Triggers and effects; a trigger that is empty holds always, one with several values if any of them fits.

    `text` is a regular expression of RE2 found anywhere in the reply's text, letter case and line breaks ignored (see
    `exactly`, `containing`, `wildcard`). Codes have digits or `x` ("4xx"), statuses are whole or begin an enhanced
    status ("4.7"), classes are numbers of the bounce classification, hosts are MX hosts or domains above them.
    """

    id: str
    effects: Actions
    text: str = ""
    states: frozenset[State] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    codes: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    classes: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    priority: int = 0
    final: bool = False

    def applies(self, facts: Facts) -> bool:
        """Tell whether all triggers but the text hold."""
        return self.answers(facts.code, facts.status) and self._happened(facts) and self._meant(facts)

    def answers(self, code: int, status: str) -> bool:
        """Tell whether code and enhanced status are among the wanted ones."""
        return (not self.codes or any(_like(code, each) for each in self.codes)) and (
            not self.statuses or any(status == each or status.startswith(f"{each}.") for each in self.statuses)
        )

    def _happened(self, facts: Facts) -> bool:
        return (
            (not self.states or facts.state in self.states)
            and (not self.kinds or facts.kind in self.kinds)
            and (not self.classes or facts.number in self.classes)
        )

    def _meant(self, facts: Facts) -> bool:
        return (
            (not self.sources or facts.source in self.sources)
            and (not self.pools or facts.pool in self.pools)
            and (not self.domains or facts.domain in self.domains)
            and (not self.hosts or any(under(host, name) for host in facts.hosts for name in self.hosts))
            and (not self.tags or not self.tags.isdisjoint(facts.tags))
        )


class PatternError(ValueError):
    """Texts cannot be searched for; where it is one pattern's, the message names it."""


class Patterns:
    """All patterns, made ready once; safe to share, never changed."""

    def __init__(self, patterns: Iterable[Pattern] = ()) -> None:
        """Order the patterns and compile their texts.

        Raises:
            PatternError: an expression is none of RE2, or all together need too much memory.
        """
        self._patterns = tuple(sorted(patterns, key=lambda pattern: -pattern.priority))
        self._pauses = any(pattern.effects.individual is False for pattern in self._patterns)
        self._by_class = any(pattern.classes for pattern in self._patterns) and any(
            pattern.effects.fallback is not None for pattern in self._patterns
        )
        self._texts = re2.Set.SearchSet(_options())
        self._places: dict[str, int] = {}
        for pattern in self._patterns:
            if pattern.text and pattern.text not in self._places:
                if reason := regex_trouble(pattern.text):
                    raise PatternError(f"{pattern.id}: {reason}")
                self._places[pattern.text] = self._texts.Add(pattern.text)
        try:
            self._texts.Compile()
        except re2.error:
            raise PatternError("the texts of all patterns together are too large; make them simpler") from None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._patterns)

    @property
    def pauses(self) -> bool:
        """Tell whether any of them says that an ending is about the whole destination."""
        return self._pauses

    @property
    def fall_back_by_class(self) -> bool:
        """Tell whether it may hang on an ending's class what they say of the next target."""
        return self._by_class

    def match(self, facts: Facts) -> Actions:
        """Return what the patterns that match an ending ask for together."""
        if not self._patterns:
            return NOTHING
        found = self._found(facts.text)
        effects = NOTHING
        for pattern in self._patterns:
            if (not pattern.text or self._places[pattern.text] in found) and pattern.applies(facts):
                own = pattern.effects
                decider = "" if own.gives_up is None else pattern.id
                effects = effects.then(replace(own, patterns=(pattern.id,), decider=decider))
                if pattern.final:
                    break
        return effects

    def _found(self, text: str) -> frozenset[int]:
        if not self._places:
            return frozenset()
        return frozenset(self._texts.Match(plain(text).encode(errors="replace")) or ())


def plain(text: str) -> str:
    """Return the part of a reply that is compared, on one line: servers break lines where they like."""
    return " ".join(text[:MAX_TEXT].split())


def exactly(text: str) -> str:
    """Return the expression for a reply that has this text and no other."""
    return rf"\A{re2.escape(plain(text))}\z"


def containing(text: str) -> str:
    """Return the expression for a reply with this text somewhere in it."""
    return str(re2.escape(plain(text)))


def wildcard(text: str) -> str:
    """Return the expression for a reply like this: `*` any text, `?` one character, `[..]`, `[!..]` one of (not)."""
    parts = re.split(r"(\*|\?|\[!?\]?[^\]]*\])", plain(text))
    return rf"\A{''.join(_wild(part) for part in parts)}\z"


def _wild(part: str) -> str:
    if part in ("*", "?"):
        return ".*" if part == "*" else "."
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        negated = part[1] == "!"
        inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", part[1 + negated : -1])
        return f"[{'^' if negated else ''}{inside}]"
    return str(re2.escape(part))


def regex_trouble(expression: str) -> str | None:
    """Return why a text is no regular expression of RE2; None if it is one."""
    try:
        re2.compile(expression, _options())
    except re2.error as trouble:
        reason = trouble.args[0]
        words = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"is no regular expression of RE2: {words}"
    return None


def _options() -> re2.Options:
    options = re2.Options()
    options.case_sensitive = False
    options.dot_nl = True
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    return options


def _like(code: int, wanted: str) -> bool:
    return all(want in (digit, "x") for digit, want in zip(str(code), wanted, strict=False))
