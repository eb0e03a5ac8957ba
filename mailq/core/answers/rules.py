"""The words of a classification, and the rules that lead to one, as they stand in rule files.

The numbers and names of the classes are SparkPost's, so that who knows those need learn nothing. A
rule says what it looks at (a text, a provider, an enhanced status code of RFC 3463, a basic code of
RFC 5321) and which class follows. This module reads rule files and says what is wrong with their
form; which rule decides, and whether the rules agree with each other, is `core.answers.classify`'s affair.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, Self

import re2  # type: ignore[import-untyped]  # it ships no types
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from mailq.core.bounce_classes import CLASSES, About
from mailq.core.smtp.reply import Reply, make_reply

MAX_RULES = 5000
"""Rules in one file; more are a mistake, and would make matching slow."""


MAX_MEMORY = 1024 * 1024
"""Octets that one compiled expression may use at most; it grows with what it has seen."""


class RulesError(ValueError):
    """A rule file cannot be used; the text names the file, the rule and the remedy."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; what is None or empty is not looked at.

    `vague` marks what by itself says little ("access denied", 5.7.1): every rule that is not vague
    comes first. A rule that looks at a basic code alone, or at nothing, is always vague. `greylisting`
    marks the words of a greylisting program (RFC 6647).
    """

    id: str
    number: int
    about: About | None
    text: str
    provider: str
    status: str
    code: str
    vague: bool
    weight: int
    examples: tuple[str, ...]
    counters: tuple[str, ...]
    source: str
    file: int
    greylisting: bool = False

    @property
    def rank(self) -> tuple[int, ...]:
        """Return what rules are ordered by, the first to decide has the smallest.

        An earlier file before a later one, not vague before vague, then text, provider, weight, enhanced
        code (its parts counted) and basic code (its digits counted): who looks at more comes first.
        """
        parts = sum(part != "x" for part in self.status.split(".") if part)
        digits = sum(digit != "x" for digit in self.code)
        return (self.file, self.vague, -bool(self.text), -bool(self.provider), -self.weight, -parts, -digits)


class RuleFile(NamedTuple):
    """What one file says."""

    version: str
    providers: dict[str, str]
    rules: list[Rule]


_Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]


_Line = Annotated[str, StringConstraints(min_length=3, max_length=2000)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: _Id
    number: int = Field(alias="class")
    about: About | None = None
    text: str = Field("", max_length=4000)
    provider: str = ""
    status: str = Field("", pattern=r"^([45x]\.([0-9]{1,3}|x)\.([0-9]{1,3}|x))?$")
    code: str = Field("", pattern=r"^([45]([0-9]{2}|xx))?$")
    vague: bool = False
    weight: int = Field(0, ge=0, le=9)
    examples: tuple[_Line, ...] = ()
    counters: tuple[_Line, ...] = ()
    source: str = Field(min_length=3, max_length=300)
    greylisting: bool = False

    @field_validator("number")
    @classmethod
    def _known(cls, number: int) -> int:
        if number not in CLASSES:
            raise ValueError(f"no such class; the classes are {', '.join(map(str, CLASSES))}")
        return number

    @model_validator(mode="after")
    def _passing(self) -> Self:
        if self.greylisting and "4" not in (self.code[:1], self.status[:1]):
            raise ValueError("greylisting passes: give it a code or a status that begins with 4")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(pattern=r"^[!-~]{1,40}$")
    providers: dict[_Id, tuple[str, ...]] = {}
    rule: tuple[_Rule, ...] = Field((), max_length=MAX_RULES)


def read(text: str, name: str, place: int) -> RuleFile:
    """Return what a rule file in TOML says; `place` is its place among the files.

    Raises:
        RulesError: it is no TOML or not of the form; names file, rule and remedy.
    """
    try:
        raw = tomllib.loads(text)
        file = _File.model_validate(raw)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{name}: is not TOML: {error}") from None
    except ValidationError as error:
        raise RulesError(f"{name}: {_first(error, raw)}") from None
    providers = {suffix.lower().strip("."): key for key, suffixes in file.providers.items() for suffix in suffixes}
    return RuleFile(file.version, providers, [_rule(rule, place) for rule in file.rule])


def _rule(rule: _Rule, place: int) -> Rule:
    return Rule(
        **rule.model_dump(exclude={"vague"}),
        vague=rule.vague or not (rule.text or rule.status),
        file=place,
    )


def _first(error: ValidationError, raw: dict[str, Any]) -> str:
    """Return what the first error says, with the rule's id and place instead of its index."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = [str(part) for part in found["loc"]]
    if where[:1] == ["rule"] and len(where) > 1:
        index = int(where[1])
        rule = raw["rule"][index]
        known = rule.get("id") if isinstance(rule, dict) else None
        return f"rule {known or 'without id'} (number {index + 1}): {' '.join(where[2:])}: {found['msg']}"
    return f"{'.'.join(where)}: {found['msg']}"


def compiled(rules: Sequence[Rule]) -> re2.Filter:
    """Return the expressions of rules, each to be matched from a text's start.

    For a match whose start is known RE2 needs one automaton; to tell where another starts it needs two.

    Raises:
        RulesError: names the rule and what RE2 says of its expression.
    """
    matcher = re2.Filter()
    for rule in rules:
        if _closes_early(rule.text):  # "a)(b" would be mended by the group around it
            raise RulesError(f"rule {rule.id}: text: {_why(rule.text)}")
        try:
            matcher.Add(f".*?(?:{rule.text})", _options(rule.text))
        except re2.error:
            raise RulesError(f"rule {rule.id}: text: {_why(rule.text)}") from None
    if rules:
        matcher.Compile()
    return matcher


_BRACKETS = re.compile(r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^]\\])*\]|[()]", re.DOTALL)
"""Brackets of groups, and all in which there may be others."""


def _closes_early(pattern: str) -> bool:
    """Return whether an expression closes a group that it has not opened."""
    depth = 0
    for found in _BRACKETS.findall(pattern):
        depth += (found == "(") - (found == ")")
        if depth < 0:
            return True
    return False


_LOWER = re.compile(
    r"(?:[^\\[A-Z\x80-\U0010ffff]|\\[bBdDsSwW]|\\[^\w]"
    r"|\[\^?-?(?:[a-z]-[a-z]|[0-9]-[0-9]|\\[dDsSwW]|\\[^\w]|[^]\\[A-Z\x80-\U0010ffff-])+-?\])*"
)
"""An expression that means the same for a text in lower case, whether case is told apart or not."""


def _options(pattern: str) -> re2.Options:
    return _options_for(case_sensitive=_LOWER.fullmatch(pattern) is not None)  # which compiles faster


@cache
def _options_for(*, case_sensitive: bool) -> re2.Options:
    options = re2.Options()
    options.case_sensitive, options.never_capture = case_sensitive, True
    options.log_errors, options.max_mem = False, MAX_MEMORY
    return options


def _why(pattern: str) -> str:
    try:
        re2.compile(pattern, _options(pattern))
    except re2.error as error:
        words = error.args[0]
        reason = words.decode() if isinstance(words, bytes) else words
        return f"{reason}; RE2 knows neither look-around nor back-references"
    return "RE2 does not take it"


_LINE = re.compile(r"(?:smtp;\s*)?([245][0-9]{2})(?:[ -]|$)(.*)", re.DOTALL)


def read_reply(text: str) -> Reply:
    """Return the reply that is written as a server sends it or a log shows it, one or several lines.

    Raises:
        ValueError: it does not begin with a reply code.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    first = _LINE.fullmatch(lines[0]) if lines else None
    if first is None:
        raise ValueError("does not begin with a reply code like 550")
    code = first[1]
    bare = [line[4:] if line[:3] == code and line[3:4] in {" ", "-"} else line for line in lines[1:]]
    reply = make_reply(int(code), [first[2].strip(), *bare])
    again = re.compile(rf"\s{code}[- ](?:{re.escape(reply.status)}\s)?" if reply.status else rf"\s{code}-")
    return Reply(reply.code, reply.status, again.sub(" ", reply.text))
