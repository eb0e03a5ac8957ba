"""What a failed attempt is to be taken for: its class, what it is about, and the rule that says so. Pure.

An ending without a peer's reply is looked up in a table by state and kind. A reply goes through the
rules (`core.answers.rules`), all texts at once by RE2: one set of literals tells which expressions can fit at
all, and those few are tried in the order in which they would decide, until one fits. So matching is
linear in the reply, whatever a hostile server writes.
Which rule decides: the operator's before the shipped; what is not vague before what is; then text with
provider, text by its weight, enhanced code (RFC 3463), basic code (RFC 5321 section 4.2). The first of
equals decides, and `problems` calls equals that disagree an error. What the class is used for (routing
keys, suppression, retries) is decided elsewhere.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mailq.core.answers.rules import Rule, RulesError, compiled, read, read_reply
from mailq.core.bounce_classes import CLASSES, LOGIN, About, Category
from mailq.core.smtp.reply import Reply
from mailq.core.smtp.status import inside as inner
from mailq.core.states import AUTH_STATES, LOCAL_STATES, ORDER, WIRE_STATES, Kind, State

MAX_TEXT = 1000
"""Characters of a reply that are looked at."""


@dataclass(frozen=True, slots=True)
class Classification:
    """What an attempt's ending is taken for; `rule` is the id of what decided, which may be about greylisting."""

    number: int
    name: str
    category: Category
    about: About
    rule: str
    greylisting: bool = False


@dataclass(frozen=True, slots=True)
class _Ending:
    """What an ending that no server worded is taken for."""

    number: int
    about: About


_OURS: dict[Kind, _Ending] = {
    Kind.TIMEOUT: _Ending(24, About.US),
    Kind.LOST: _Ending(70, About.US),
    Kind.INVALID: _Ending(25, About.US),
    Kind.ERROR: _Ending(25, About.US),
}
"""For the states in which no other host has a part: what goes wrong there is the doing of the job or of this host."""

_ENDINGS: dict[tuple[State, Kind, str], _Ending] = {
    **{(state, kind, ""): ending for state in LOCAL_STATES for kind, ending in _OURS.items()},
    (State.PROCESS, Kind.INVALID, "5.3.4"): _Ending(23, About.MESSAGE),
    (State.PROCESS, Kind.INVALID, "5.1.3"): _Ending(10, About.RECIPIENT),  # the recipient is no address
    (State.PROCESS, Kind.INVALID, "5.1.7"): _Ending(25, About.SENDER),  # the envelope is no address
    (State.SUPPRESSION, Kind.ERROR, ""): _Ending(25, About.RECIPIENT),
    (State.STORAGE, Kind.ERROR, ""): _Ending(25, About.MESSAGE),
    (State.RESPONSIVE, Kind.ERROR, ""): _Ending(25, About.MESSAGE),
    (State.PERSONALIZE, Kind.ERROR, ""): _Ending(25, About.MESSAGE),
    (State.REWRITE, Kind.ERROR, ""): _Ending(25, About.MESSAGE),
    (State.DNS, Kind.TIMEOUT, ""): _Ending(21, About.DOMAIN),
    (State.DNS, Kind.LOST, ""): _Ending(21, About.DOMAIN),
    (State.DNS, Kind.INVALID, ""): _Ending(21, About.DOMAIN),
    (State.DNS, Kind.ERROR, ""): _Ending(21, About.DOMAIN),
    (State.DNS, Kind.ERROR, "5.1.2"): _Ending(10, About.DOMAIN),  # NXDOMAIN
    (State.DNS, Kind.ERROR, "5.1.10"): _Ending(10, About.DOMAIN),  # null MX, RFC 7505
    (State.CONNECT, Kind.ERROR, ""): _Ending(70, About.RELAY),
    (State.STARTTLS, Kind.ERROR, ""): _Ending(25, About.RELAY),  # policy asks for TLS that is not offered
    (State.MAILFROM, Kind.ERROR, "5.3.4"): _Ending(23, About.MESSAGE),  # above the SIZE offered, RFC 1870
    (State.MAILFROM, Kind.ERROR, "5.6.7"): _Ending(40, About.RECIPIENT),  # no SMTPUTF8, RFC 6531
    (State.MAILFROM, Kind.ERROR, "5.6.3"): _Ending(40, About.MESSAGE),  # no 8BITMIME, RFC 6152
    (State.MAILFROM, Kind.ERROR, "5.6.9"): _Ending(40, About.MESSAGE),  # no SMTPUTF8 for the header, RFC 6531
    **{(state, Kind.ERROR, ""): _Ending(25, About.US) for state in AUTH_STATES},
    **{(state, Kind.ERROR, "4.3.0"): _Ending(70, About.US) for state in State},  # a bug of ours
}
"""By state, kind and enhanced status; "" is any status that is not named."""

_ENDINGS_BY_KIND: dict[Kind, _Ending] = {
    Kind.TIMEOUT: _Ending(24, About.RELAY),
    Kind.LOST: _Ending(70, About.RELAY),
    Kind.INVALID: _Ending(70, About.RELAY),
    Kind.ERROR: _Ending(25, About.US),
}
"""For what the table above does not name."""

_ABOUT: dict[State, About] = {
    State.MAILFROM: About.SENDER,
    State.RCPTTO: About.RECIPIENT,
    State.DATA: About.MESSAGE,
    State.MESSAGE: About.MESSAGE,
}
"""What a reply is about that says nothing of it; in all other states it is about the server."""

_NOTHING = Rule("unknown", 1, None, "", "", "", "", vague=True, weight=0, examples=(), counters=(), source="", file=0)
"""What decides if no rule does."""


class Ruleset:
    """All rules of all files, ready to match; made once per process."""

    def __init__(self, version: str, providers: dict[str, str], rules: Sequence[Rule]) -> None:
        self.version = version
        self.rules = tuple(sorted(rules, key=lambda rule: rule.rank))
        self._providers = providers
        self._worded = [place for place, rule in enumerate(self.rules) if rule.text]
        self._texts = compiled([self.rules[place] for place in self._worded])
        self._expressions = {place: self._texts.re(index) for index, place in enumerate(self._worded)}
        self._by_status: defaultdict[str, list[int]] = defaultdict(list)
        self._by_code: defaultdict[str, list[int]] = defaultdict(list)
        for place, rule in enumerate(self.rules):
            if not rule.text:
                (self._by_status[rule.status] if rule.status else self._by_code[rule.code]).append(place)
        self._warm()

    def _warm(self) -> None:
        """Match every rule against its own examples once.

        RE2 builds its automata as texts ask for them, and a step that is new to them costs a hundred times
        one that is not. The examples are what servers say, so much of what they will say is built here.
        """
        said = [(place, _plain(text)) for place in self._worded for text in self.rules[place].examples]
        for place, text in said:
            self._expressions[place].match(text)
        if said:
            self._texts.Match(b" ".join(text for _, text in said), potential=True)

    @classmethod
    def load(cls, texts: Sequence[str], names: Sequence[str] = ()) -> "Ruleset":
        """Return the rules of these texts in TOML, the operator's first, the shipped last.

        `names` are the texts' file names for error messages. The version names all files'.

        Raises:
            RulesError: names file, rule and remedy.
        """
        known = [*names, *(f"rule file {place + 1}" for place in range(len(names), len(texts)))]
        files = [read(text, name, place) for place, (text, name) in enumerate(zip(texts, known, strict=True))]
        providers = {suffix: key for file in reversed(files) for suffix, key in file.providers.items()}
        seen: dict[str, str] = {}
        for file, name in zip(files, known, strict=True):
            for rule in file.rules:
                if rule.id in seen:
                    raise RulesError(f"{name}: rule {rule.id}: {seen[rule.id]} has the id already; give it another")
                if rule.provider and rule.provider not in providers.values():
                    raise RulesError(f"{name}: rule {rule.id}: name the provider {rule.provider} under [providers]")
                seen[rule.id] = name
        rules = [rule for file in files for rule in file.rules]
        try:
            return cls("+".join(file.version for file in files), providers, rules)
        except RulesError as error:
            name = next((seen[rule] for rule in seen if f"rule {rule}:" in str(error)), "rules")
            raise RulesError(f"{name}: {error}") from None

    def classify(
        self,
        *,
        state: State,
        kind: Kind,
        code: int,
        status: str,
        text: str,
        hosts: Sequence[str] = (),
        from_peer: bool | None = None,
    ) -> Classification:
        """Return what an attempt that ended so is to be taken for.

        `hosts` are the names of the server spoken to (MX host, name in its greeting). `from_peer` tells
        whether the server worded it; None where that is not known.
        """
        if from_peer is False or kind is not Kind.ERROR or state not in WIRE_STATES:
            ending = _ending(state, kind, status)
            if ending is not None:
                # What is given up is not transient: who decided that without an answer was on our side.
                number = 25 if ending.number == 70 and code // 100 == 5 else ending.number
                return _answer(number, ending.about, _ending_id(state, kind, status))
        found = next(self._fitting(code, status, text, hosts), _NOTHING)
        if state in AUTH_STATES:  # whatever is said there is said about the login, never about mail
            rule = found.id if found.number == LOGIN else _ending_id(state, kind, "")
            return _answer(LOGIN, About.US, rule)
        about = found.about or CLASSES[found.number].about or _about(state)
        return _answer(found.number, about, found.id, greylisting=found.greylisting)

    def matching(self, reply: Reply, hosts: Sequence[str] = ()) -> list[Rule]:
        """Return every rule that a reply fits, the one that decides first."""
        return list(self._fitting(reply.code, reply.status or "", reply.text, hosts))

    def host_of(self, provider: str) -> tuple[str, ...]:
        """Return a host name by which a provider is known; () without one."""
        return next(((suffix,) for suffix, key in self._providers.items() if key == provider), ())

    def _fitting(self, code: int, status: str, text: str, hosts: Sequence[str]) -> Iterator[Rule]:
        """Yield the rules that fit, the one that decides first; an expression is tried when its turn comes."""
        basic = str(code)
        if not status or status.endswith(".0.0"):
            status = inner(code, text[:MAX_TEXT]) or "x.0.0"
        status = basic[0] + status[1:]  # a class that disagrees is wrong (RFC 3463 section 2)
        codes = ("", f"{basic[0]}xx", basic)
        statuses = _patterns(status)
        plain = _plain(text)
        possible = self._texts.Match(plain, potential=True) if self._worded else None
        found = [self._worded[index] for index in possible or ()]
        for key in statuses:
            found += self._by_status.get(key, ())
        for key in codes:
            found += self._by_code.get(key, ())
        found.sort()
        providers: set[str] | None = None
        for place in found:
            rule = self.rules[place]
            if rule.code not in codes or (rule.status and rule.status not in statuses):
                continue
            if rule.provider:
                providers = self._providers_of(hosts) if providers is None else providers
                if rule.provider not in providers:
                    continue
            if not rule.text or self._expressions[place].match(plain):
                yield rule

    def _providers_of(self, hosts: Sequence[str]) -> set[str]:
        found = set()
        for host in hosts:
            rest = host.lower().rstrip(".")
            while rest:
                if rest in self._providers:
                    found.add(self._providers[rest])
                rest = rest.partition(".")[2]
        return found


def tie(rules: Sequence[Rule]) -> tuple[Rule, Rule] | None:
    """Return the deciding rule of `matching` and one of the same rank that says another class, if there is one."""
    return next(
        ((rules[0], rule) for rule in rules[1:] if rule.rank == rules[0].rank and rule.number != rules[0].number), None
    )


def problems(ruleset: Ruleset) -> list[str]:
    """Return what is wrong with the rules, each with its remedy; empty if all is well.

    The rules of a file are held against each other, not against those of files before it: an operator
    may well put a shipped rule out of use.
    """
    return [f"rule {rule.id}: {problem}" for rule in ruleset.rules for problem in _problems(ruleset, rule)]


def _problems(ruleset: Ruleset, rule: Rule) -> Iterator[str]:
    if not rule.examples:
        yield "has no example; add a reply that it decides"
    if not rule.counters:
        yield "has no counter-example; add a reply that looks alike and that it must not decide"
    decided = []
    for example in rule.examples:
        try:
            fitting = _fitting(ruleset, rule, example)
        except ValueError as error:
            yield f"example {example!r} {error}"
            return
        decided.append(fitting[:1] == [rule])
        yield from _unfit(rule, example, fitting)
    if not any(decided):
        yield "decides none of its examples: it is dead; delete it, or narrow the rule that does"
    for counter in rule.counters:
        try:
            if _fitting(ruleset, rule, counter)[:1] == [rule]:
                yield f"decides its counter-example {counter!r}; narrow it"
        except ValueError as error:
            yield f"counter-example {counter!r} {error}"


def _fitting(ruleset: Ruleset, rule: Rule, text: str) -> list[Rule]:
    """Return the rules of the same file that fit a reply from the rule's provider."""
    found = ruleset.matching(read_reply(text), ruleset.host_of(rule.provider))
    return [each for each in found if each.file == rule.file]


def _unfit(rule: Rule, example: str, fitting: Sequence[Rule]) -> Iterator[str]:
    tied = tie(fitting)
    if rule not in fitting:
        yield f"does not fit its example {example!r}; mend one of them"
    elif tied:
        yield f"contradicts rule {(tied[1] if tied[0] == rule else tied[0]).id} on {example!r}; narrow or weigh one"
    elif fitting[0].number != rule.number:
        yield f"is shadowed by rule {fitting[0].id} on {example!r}; narrow that one"


def _plain(text: str) -> bytes:
    """Return a reply's text as rules see it: lower case, one line, single blanks, words with an @ left out."""
    words = text[:MAX_TEXT].split()
    if "@" in text:
        words = [word for word in words if "@" not in word]
    return " ".join(words).lower().encode("utf-8", "replace")


@lru_cache(maxsize=1000)
def _patterns(status: str) -> tuple[str, ...]:
    """Return all forms in which a rule may name an enhanced status code."""
    kind, subject, detail = (*status.split("."), "", "")[:3]
    return tuple(f"{first}.{rest}" for first in (kind, "x") for rest in (f"{subject}.{detail}", f"{subject}.x", "x.x"))


def _ending(state: State, kind: Kind, status: str) -> _Ending | None:
    """Return what stands in the tables; None for a reply remembered by the breaker, which has rules."""
    named = _ENDINGS.get((state, kind, status)) or _ENDINGS.get((state, kind, ""))
    if named is None and kind is Kind.ERROR and state in WIRE_STATES:
        return None
    return named or _ENDINGS_BY_KIND.get(kind)


def _ending_id(state: State, kind: Kind, status: str) -> str:
    named = f"/{status}" if (state, kind, status) in _ENDINGS else ""
    return f"{state.value}/{kind.value}{named}"


def _about(state: State) -> About:
    return _ABOUT.get(state, About.RELAY if ORDER[state] > ORDER[State.BIND] else About.US)


def _answer(number: int, about: About, rule: str, *, greylisting: bool = False) -> Classification:
    known = CLASSES[number]
    return Classification(number, known.name, known.category, about, rule, greylisting)
