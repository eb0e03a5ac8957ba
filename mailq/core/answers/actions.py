"""What response patterns do to an attempt's flags, its job and its result. Pure.

`Actions` is the sum of what matched (`core.answers.patterns`); `apply_to_document` and `apply_to_result` write it
into the job's next life and into the result. Places are JSON pointers (RFC 6901). What must stay true is not to be
set: `message_trouble` and `result_trouble` say so when the configuration is read, so that nothing has to be refused
while mail is delivered. An edit that does not fit a document (a member of what is no object) leaves it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from mailq.core.answers.flags import Flags
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.jobs.tolerance import mend
from mailq.core.results.schema import ResultRecord

Document = dict[str, Any]
Path = tuple[str, ...]
"""A JSON pointer, read: the names and indices on the way."""

FLAGS = ("fatal", "individual", "strange", "greylisted", "fallback")
MAX_DEPTH = 8
"""Names a pointer may have."""
MAX_VALUE = 10_000
"""Octets of JSON that a value may have."""

_PROTECTED = {
    "results": "is the history of the job",
    "recipient": "says whom the job is for",
    "envelope": "says who gets the bounces",
    "mime": "is the message",
    "key": "is the message",
    "seen": "is written by mailq",
    "extracted": "is written by mailq",
    "id": "is the job's identity",
    "nextattempt": "is written by mailq; use retry",
    "delayed": "is written by mailq; use retry",
    "tags": "is a list; use add_tags, set_tags or remove_tags",
    "ips": "is a list; use add_ips, set_ips or remove_ips",
    "dkim": "holds keys, which belong into no pattern",
}
_TOLD = frozenset(field.alias or name for name, field in ResultRecord.model_fields.items()) | {
    *("class", "category", "about", "rule", "ruleset", "patterns"),
}


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a list of texts: `set` replaces it (None: keeps it), then some are added and some removed."""

    set: tuple[str, ...] | None = None
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def of(self, values: Sequence[str]) -> list[str]:
        """Return the changed list, each text once."""
        kept = dict.fromkeys((*(values if self.set is None else self.set), *self.add))
        return [value for value in kept if value not in self.remove]

    def then(self, later: "Edit") -> "Edit":
        """Return both edits as one; where they contradict each other, this one holds."""
        return Edit(
            later.set if self.set is None else self.set,
            (*self.add, *(value for value in later.add if value not in self.remove)),
            (*self.remove, *(value for value in later.remove if value not in (*self.add, *(self.set or ())))),
        )


@dataclass(frozen=True, slots=True)
class Actions:
    """What patterns ask for. A flag that is None is left to inference; `retry` is in seconds.

    `fail` ends the job whatever the answer was; `retry` tries again whatever the answer was. `decider` is the id of
    the pattern that decided between going on and giving up, `patterns` are the ids of all that matched.
    """

    fatal: bool | None = None
    individual: bool | None = None
    strange: bool | None = None
    greylisted: bool | None = None
    fallback: bool | None = None
    retry: int | None = None
    fail: bool = False
    message: tuple[tuple[Path, Any], ...] = ()
    result: tuple[tuple[Path, Any], ...] = ()
    tags: Edit = Edit()
    ips: Edit = Edit()
    decider: str = ""
    patterns: tuple[str, ...] = ()

    @property
    def gives_up(self) -> bool | None:
        """Whether they end the job (True), have it tried again (False), or leave that open (None)."""
        if self.fail or self.fatal is True:
            return True
        return False if self.retry is not None or self.fatal is False else None

    def over(self, inferred: Flags) -> Flags:
        """Return the flags with those decided here in place of the inferred ones."""
        decided = {name: value for name in FLAGS if (value := getattr(self, name)) is not None}
        if self.retry is not None:
            decided["fatal"] = False
        return replace(inferred, **decided) if decided else inferred

    def then(self, later: "Actions") -> "Actions":
        """Return both as one; a later one does not override what this one decided.

        To give up and to go on are one decision: after a `retry`, a later `fail` counts as little as a later `retry`.
        """
        if None not in (self.gives_up, later.gives_up) and self.gives_up is not later.gives_up:
            later = replace(later, fatal=None, retry=None, fail=False, decider="")
        mine = {name: getattr(self, name) for name in (*FLAGS, "retry")}
        return Actions(
            **{name: getattr(later, name) if value is None else value for name, value in mine.items()},
            fail=self.fail or later.fail,
            message=_joined(self.message, later.message),
            result=_joined(self.result, later.result),
            tags=self.tags.then(later.tags),
            ips=self.ips.then(later.ips),
            decider=self.decider or later.decider,
            patterns=(*self.patterns, *later.patterns),
        )


NOTHING = Actions()
"""No pattern matched."""


def _joined(first: tuple[tuple[Path, Any], ...], later: tuple[tuple[Path, Any], ...]) -> tuple[tuple[Path, Any], ...]:
    return (*first, *((path, value) for path, value in later if not any(overlap(path, other) for other, _ in first)))


def disagreement(one: Actions, other: Actions) -> str | None:
    """Return what two patterns ask for so differently that the first one decides; None where the order is all one."""
    first, second = _unordered(one.then(other)), _unordered(other.then(one))
    return next((name for name, value in first.items() if value != second[name]), None)


def _unordered(effects: Actions) -> Document:
    """Return what is asked for, by name, without the order in which it was said."""
    edits = {
        name: (None if edit.set is None else frozenset(edit.set), frozenset(edit.add), frozenset(edit.remove))
        for name, edit in (("tags", effects.tags), ("ips", effects.ips))
    }
    decided = {name: getattr(effects, name) for name in (*FLAGS, "retry", "fail")}
    return {**decided, "set_message": dict(effects.message), "set_result": dict(effects.result), **edits}


def overlap(one: Path, other: Path) -> bool:
    """Tell whether one of two places is the other or within it."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def apply_to_document(document: Document, effects: Actions, sources: Sequence[str] = ()) -> Document:
    """Return the job's document as the patterns want it for its next attempt; the given one stays as it is.

    `sources` are the addresses that a job without `ips` may be sent from, as far as they are known: they are what is
    added to and removed from then. The last address of a job is never removed: it could not be sent at all.
    """
    if not effects.patterns:
        return document
    if effects.tags != Edit() or effects.ips != Edit():
        document = {**document, **_lists(document)}
    for path, value in effects.message:
        document = _set(document, path, value)
    if effects.tags != Edit():
        document = {**document, "tags": effects.tags.of(_texts(document.get("tags")))}
    if effects.ips != Edit():
        usual = document.get("ips")
        ips = effects.ips.of(_texts(sources if usual is None else usual))
        if ips and (usual is not None or effects.ips.set or sources):
            document = {**document, "ips": ips}
    return document


def _lists(document: Document) -> Document:
    """Return `tags` and `ips` of a document as lists, whatever form of theirs was taken."""
    given: Document = {name: document[name] for name in ("tags", "ips") if name in document}
    return mend(given, given)[0]


def apply_to_result(record: Document, effects: Actions) -> Document:
    """Return a result with the flags and properties that patterns set, and their ids; the given one stays as it is."""
    if not effects.patterns:
        return record
    flags = {name: value for name in FLAGS if (value := getattr(effects, name)) is not None}
    record = {**record, **flags, "patterns": list(effects.patterns)}
    for path, value in effects.result:
        record = _set(record, path, value)
    return record


def _texts(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list | tuple) else []


def _set(node: Any, path: Path, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a node with the value at a place inside it; unchanged where there is no such place."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(node, dict):
        return {**node, name: _set(node.get(name, {}), rest, value)}
    if isinstance(node, list) and name == "-" and not rest:
        return [*node, value]
    if isinstance(node, list) and name.isdecimal() and len(name) < MAX_DEPTH and int(name) < len(node):
        return [*node[: int(name)], _set(node[int(name)], rest, value), *node[int(name) + 1 :]]
    return node


def parse_pointer(text: str) -> Path:
    """Return the names in a JSON pointer (RFC 6901 sections 3 and 4) to a place inside a document.

    Raises:
        ValueError: it has not that form, points to the whole document, or too deeply into it.
    """
    if not text.startswith("/") or text == "/":
        raise ValueError(f'"{text}" is not a JSON pointer such as "/campaign/name"')
    if "~" in text.replace("~0", "").replace("~1", ""):
        raise ValueError(f'"{text}" has a "~" that is not "~0" or "~1"')
    path = tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))
    if len(path) > MAX_DEPTH:
        raise ValueError(f'"{text}" goes deeper than {MAX_DEPTH} names')
    return path


def message_trouble(path: Path, value: object) -> str | None:
    """Return why a pattern may not set this place of a job to this value; None where it may."""
    name = path[0]
    if reason := _PROTECTED.get(name) or _value_trouble(value):
        return reason
    if name not in Job.model_fields:
        return None
    if len(path) > 1:
        return f'is inside a property that mailq reads; set "/{name}" as a whole'
    try:
        Job.parse(orjson.dumps({"recipient": "postmaster@example.com", name: value}), limit=2 * MAX_VALUE, strict=True)
    except InvalidJobError as trouble:
        return f"would make the job invalid: {trouble.pointer} {trouble.reason}"
    return None


def result_trouble(path: Path, value: object) -> str | None:
    """Return why a pattern may not set this place of a result to this value; None where it may."""
    if path[0] in FLAGS:
        return f"is a flag; use {path[0]} = true or false"
    if path[0] in _TOLD:
        return "says what happened"
    return _value_trouble(value)


def _value_trouble(value: object) -> str | None:
    try:
        size = len(orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME))
    except TypeError:
        return "is no JSON value: write times as text"
    return f"is larger than {MAX_VALUE} octets" if size > MAX_VALUE else None
