"""Tables `[[patterns]]`: what an answer means, where it means something else than it says.

Everything that can be wrong with a pattern alone is refused here, with the reason: an expression that RE2 does not
have, a property that must not be set. `patterns_of` makes the tables into what `core.answers.patterns` works with;
`problems` tries each pattern on its own examples, for `mailq check`, and on what the rules of classification make of
them.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from mailq.config.base import Section
from mailq.config.checks import Domain, Seconds
from mailq.core.answers import actions as core
from mailq.core.answers.actions import (
    Actions,
    Edit,
    disagreement,
    message_trouble,
    overlap,
    parse_pointer,
    result_trouble,
)
from mailq.core.answers.classify import Ruleset
from mailq.core.answers.patterns import Facts, Pattern, Patterns, containing, exactly, plain, regex_trouble, wildcard
from mailq.core.bounce_classes import CLASSES
from mailq.core.smtp.reply import MalformedReplyError, Reply, ReplyReader
from mailq.core.states import WIRE_STATES, Kind, State

_TEXTS: dict[str, Callable[[str], str]] = {"exact": exactly, "contains": containing, "wildcard": wildcard, "regex": str}


def _codes(value: object) -> object:
    """Allow a code to be written as a number."""
    return tuple(str(each) for each in value) if isinstance(value, list | tuple) else value


def _code(value: str) -> str:
    if not re.fullmatch("[45][0-9x][0-9x]", value):
        raise ValueError(f'"{value}" is no code that an attempt fails with, such as "450", "45x" or "5xx"')
    return value


def _class(value: int) -> int:
    if value not in CLASSES:
        known = ", ".join(map(str, CLASSES))
        raise ValueError(f"there is no bounce class {value}; docs/reference/answers.md lists them: {known}")
    return value


def _regex(value: str) -> str:
    if reason := regex_trouble(value):
        raise ValueError(reason)
    return value


def _together(patterns: tuple["PatternConfig", ...]) -> tuple["PatternConfig", ...]:
    ids = [pattern.id for pattern in patterns]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'the id "{twice}" is there twice')
    patterns_of(patterns)
    return patterns


Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(max_length=1000, pattern=r"\S")]
Regex = Annotated[Text, AfterValidator(_regex)]
Code = Annotated[str, AfterValidator(_code)]
Class = Annotated[int, AfterValidator(_class)]
Status = Annotated[str, StringConstraints(pattern=r"^[245](\.\d{1,3}){0,2}$")]
Ip = Annotated[str, AfterValidator(lambda value: str(ipaddress.ip_address(value)))]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class PatternConfig(Section):
    """Triggers, all of which must hold (of several values any), and what then is to be done."""

    id: Identifier = Field(description="Name, told in results.", examples=["yahoo-deferred"])
    exact: Text | None = Field(
        None, description="The reply's text is this; letter case and line breaks are ignored.", examples=["Try later"]
    )
    contains: Text | None = Field(None, description="This is in the reply's text.", examples=["[TSS04]"])
    wildcard: Text | None = Field(
        None, description="The text is like this: * ? [abc] [!abc].", examples=["*temporarily deferred*"]
    )
    regex: Regex | None = Field(
        None, description="This RE2 expression is found in the text; one of these four at most.", examples=["TSS0[45]"]
    )
    states: tuple[State, ...] = Field((), description="Where the attempt ended.", examples=[["mailfrom", "rcptto"]])
    kinds: tuple[Kind, ...] = Field((), description="How it ended there.", examples=[["error", "timeout"]])
    codes: Annotated[tuple[Code, ...], BeforeValidator(_codes)] = Field(
        (), description="SMTP code, x for any digit.", examples=[[421, "45x"]]
    )
    statuses: tuple[Status, ...] = Field(
        (), description="Enhanced status, or its beginning.", examples=[["4.7", "5.7.1"]]
    )
    classes: tuple[Class, ...] = Field((), description="Number of the bounce class.", examples=[[51, 52]])
    sources: tuple[Ip, ...] = Field((), description="Address it was sent from.", examples=[["192.0.2.1"]])
    pools: tuple[Text, ...] = Field((), description="Pool it was sent from.", examples=[["bulk"]])
    domains: tuple[Domain, ...] = Field((), description="Domain of the recipient.", examples=[["example.com"]])
    mx: tuple[Domain, ...] = Field(
        (), description="The domain's MX hosts are under this name.", examples=[["yahoodns.net"]]
    )
    tags: tuple[Text, ...] = Field((), description="Tag of the job.", examples=[["newsletter"]])
    priority: int = Field(
        0, ge=-1000, le=1000, description="Higher comes first and is not overridden by lower.", examples=[10]
    )
    final: bool = Field(False, description="If it matches, less important ones are not looked at.", examples=[True])
    fatal: bool | None = Field(None, description="Flag: permanent or to be tried again.", examples=[False])
    individual: bool | None = Field(
        None, description="Flag: about this message only or the whole destination.", examples=[False]
    )
    strange: bool | None = Field(None, description="Flag: counts as a strange answer.", examples=[True])
    greylisted: bool | None = Field(
        None, description="Flag: tried again soon and from the same source.", examples=[True]
    )
    fallback: bool | None = Field(None, description="Flag: next target or smarthost at once, or not.", examples=[True])
    retry: Seconds | None = Field(None, description="Try again after so many seconds, 5xx or not.", examples=[7200])
    fail: bool = Field(False, description="Give the job up, 4xx or not.", examples=[False])
    set_message: dict[str, Any] = Field(
        {}, description="Set properties of the job, by JSON pointer.", examples=[{"/maxattempts": 3}]
    )
    set_result: dict[str, Any] = Field(
        {}, description="Set properties of the result, by JSON pointer.", examples=[{"/bounce-type": "inactive"}]
    )
    add_tags: tuple[Tag, ...] = Field((), description="Add tags to the job.", examples=[["deferred"]])
    set_tags: tuple[Tag, ...] | None = Field(None, description="Replace the job's tags.", examples=[["deferred"]])
    remove_tags: tuple[Tag, ...] = Field((), description="Remove tags from the job.", examples=[["priority"]])
    add_ips: tuple[Ip, ...] = Field((), description="Allow more source addresses.", examples=[["192.0.2.2"]])
    set_ips: tuple[Ip, ...] | None = Field(
        None, min_length=1, description="Replace the source addresses.", examples=[["192.0.2.3"]]
    )
    remove_ips: tuple[Ip, ...] = Field(
        (), description="Forbid source addresses; the last one stays.", examples=[["192.0.2.1"]]
    )
    examples: tuple[Text, ...] = Field(
        (), description="Replies that it is for, `mailq check` tries them.", examples=[["421 4.7.0 [TSS04] deferred"]]
    )
    counterexamples: tuple[Text, ...] = Field(
        (), description="Replies that it is not for.", examples=[["421 4.7.0 Too many connections"]]
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if trouble := next(self._troubles(), None):
            raise ValueError(trouble)
        return self

    def _troubles(self) -> Iterator[str]:
        if sum(getattr(self, name) is not None for name in _TEXTS) > 1:
            yield "has more than one of exact, contains, wildcard and regex; make two patterns of it"
        goes_on = [name for name, asked in (("retry", self.retry), ("fatal = false", self.fatal is False)) if asked]
        gives_up = [name for name, asked in (("fail", self.fail), ("fatal = true", self.fatal)) if asked]
        if goes_on and gives_up:
            yield f"has {goes_on[0]} and {gives_up[0]}: to go on and to give up"
        yield from _edits("set_message", self.set_message, message_trouble)
        yield from _edits("set_result", self.set_result, result_trouble)
        for name, edit in (("tags", self._tags()), ("ips", self._ips())):
            if both := sorted({*edit.add, *(edit.set or ())}.intersection(edit.remove)):
                yield f'has "{both[0]}" in remove_{name} and in add_{name} or set_{name}'
        for reply in (*self.examples, *self.counterexamples):
            if _reply(reply) is None:
                yield f'"{reply[:60]}" is no reply that refuses, such as "550 5.1.1 no such user"'

    def _tags(self) -> Edit:
        return Edit(self.set_tags, self.add_tags, self.remove_tags)

    def _ips(self) -> Edit:
        return Edit(self.set_ips, self.add_ips, self.remove_ips)

    def pattern(self) -> Pattern:
        """Return the pattern as it is tried on endings."""
        texts = [make(value) for name, make in _TEXTS.items() if (value := getattr(self, name)) is not None]
        return Pattern(
            id=self.id,
            effects=Actions(
                **{name: getattr(self, name) for name in (*core.FLAGS, "retry", "fail")},
                message=_read(self.set_message),
                result=_read(self.set_result),
                tags=self._tags(),
                ips=self._ips(),
            ),
            text=texts[0] if texts else "",
            states=frozenset(self.states),
            kinds=frozenset(self.kinds),
            codes=self.codes,
            statuses=self.statuses,
            classes=frozenset(self.classes),
            sources=frozenset(self.sources),
            pools=frozenset(self.pools),
            domains=frozenset(self.domains),
            hosts=self.mx,
            tags=frozenset(self.tags),
            priority=self.priority,
            final=self.final,
        )

    def facts(self, reply: Reply, ruleset: Ruleset) -> Facts:
        """Return an ending with this reply, of the class that the rules give it, in which all other triggers hold."""
        state = next((state for state in self.states if state in WIRE_STATES), next(iter(self.states), State.RCPTTO))
        kind = Kind.ERROR if Kind.ERROR in self.kinds else next(iter(self.kinds), Kind.ERROR)
        status, hosts = reply.status or f"{reply.code // 100}.0.0", self.mx[:1]
        found = ruleset.classify(state=state, kind=kind, code=reply.code, status=status, text=reply.text, hosts=hosts)
        return Facts(
            state=state,
            kind=kind,
            code=reply.code,
            status=status,
            text=reply.text,
            number=found.number,
            source=next(iter(self.sources), None),
            pool=next(iter(self.pools), None),
            domain=next(iter(self.domains), ""),
            hosts=hosts,
            tags=self.tags[:1],
        )


PatternTables = Annotated[tuple[PatternConfig, ...], Field(max_length=1000), AfterValidator(_together)]


def patterns_of(configs: Iterable[PatternConfig]) -> Patterns:
    """Return the patterns, ready to be matched."""
    return Patterns(config.pattern() for config in configs)


def problems(configs: Sequence[PatternConfig], ruleset: Ruleset) -> list[str]:
    """Return what is wrong with patterns when they are tried on their examples, a line for each."""
    patterns = patterns_of(configs)
    alone = [line for config in configs for line in _problems(config, patterns, ruleset)]
    return [*alone, *_quarrels(configs, patterns, ruleset)]


def _problems(config: PatternConfig, patterns: Patterns, ruleset: Ruleset) -> Iterator[str]:
    alone = patterns_of([config])
    if any((*(getattr(config, name) for name in _TEXTS), config.codes, config.statuses)):
        for name, replies in (("example", config.examples), ("counterexample", config.counterexamples)):
            if not replies:
                yield f"patterns.{config.id}: has no {name}; add a reply"
    for text in config.examples:
        facts = config.facts(_parsed(text), ruleset)
        if not alone.match(facts).patterns:
            yield f'patterns.{config.id}: does not match its example "{plain(text)[:60]}" of class {facts.number}'
        elif config.id not in (matched := patterns.match(facts).patterns):
            yield f'patterns.{config.id}: never gets its example "{plain(text)[:60]}": "{matched[-1]}" comes first'
    for text in config.counterexamples:
        if alone.match(config.facts(_parsed(text), ruleset)).patterns:
            yield f'patterns.{config.id}: matches its counterexample "{plain(text)[:60]}"'
    if config.pattern().effects == Actions() and not config.final:
        yield f"patterns.{config.id}: does nothing but be told in results; give it an effect"


def _quarrels(configs: Sequence[PatternConfig], patterns: Patterns, ruleset: Ruleset) -> Iterator[str]:
    """Yield what says that two patterns of one priority match one example and disagree, once for each two."""
    effects = {config.id: config.pattern().effects for config in configs}
    priorities = {config.id: config.priority for config in configs}
    told: set[frozenset[str]] = set()
    for config in configs:
        for text in config.examples:
            matched = patterns.match(config.facts(_parsed(text), ruleset)).patterns
            for other in matched if config.id in matched else ():
                first, second = sorted((config.id, other), key=matched.index)
                effect = disagreement(effects[first], effects[second])
                if effect and priorities[first] == priorities[second] and {first, second} not in told:
                    told.add(frozenset((first, second)))
                    yield (
                        f'patterns.{second}: disagrees about {effect} with "{first}", which stands first and wins, on'
                        f' "{plain(text)[:60]}"; give one of them a higher priority'
                    )


def _edits(name: str, edits: dict[str, Any], trouble: Callable[[core.Path, object], str | None]) -> Iterator[str]:
    read: list[core.Path] = []
    for pointer, value in edits.items():
        try:
            path = parse_pointer(pointer)
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        if reason := trouble(path, value):
            yield f'{name}: "{pointer}" {reason}'
        if any(overlap(path, other) for other in read):
            yield f'{name}: "{pointer}" is within another place that is set'
        read.append(path)


def _read(edits: dict[str, Any]) -> tuple[tuple[core.Path, Any], ...]:
    return tuple((parse_pointer(pointer), value) for pointer, value in edits.items())


def _reply(text: str) -> Reply | None:
    """Return a reply that an attempt fails with, written as servers send it, all its lines."""
    try:
        replies = ReplyReader().feed("".join(f"{line}\r\n" for line in text.strip().splitlines()).encode())
    except (MalformedReplyError, UnicodeEncodeError):
        return None
    return replies[0] if len(replies) == 1 and replies[0].code // 100 in (4, 5) else None


def _parsed(text: str) -> Reply:
    reply = _reply(text)
    assert reply is not None, "looked at when the configuration was read"
    return reply
