r"""What a failed attempt tells beyond its code: the five flags inferred from it, and how long the server asks to wait.

Both hold without any response pattern (`core.answers.patterns`), which may decide each flag otherwise. The table:

fatal        The code is 5yz (RFC 5321 section 4.2.1), mailq's own codes among them. The job is given up. Not where
             the rule that decided says that it passes (class 70), as 552 for too many recipients does (RFC 5321
             section 4.5.3.1.10); nor in the states of a login, which is between the sender and the relay.
individual   Nobody but this message is concerned, see below. Where a pattern says that it is not so, and the job
             goes on, its whole destination is left alone meanwhile (`core.traffic.pause`); inference stops nobody.
strange      No valid SMTP answer, a code that no RFC gives, or an enhanced status (RFC 3463) of another class
             than the code. It changes nothing for the job: the log tells it, for people to look at.
greylisted   The server answered 4yz, and the rule that decided on its class is one about greylisting (RFC 6647). The
             next attempt is made soon and from the same source.
fallback     Trouble from bind on without an answer, 421, or a refusal before MAIL FROM that is not about the
             login; also DNS trouble that may pass. Next target, and after the last one the smarthost that is
             there for it, now; never when the message may have been taken.

`individual`, the first line that applies: yes before the wire except in dns and bind; no where no answer came, for
421 and for an answer before MAIL FROM; yes if greylisted; by the bounce class where that is known (`_INDIVIDUAL`,
`_COMMON`); by the subject of the enhanced status (addresses, mailboxes, content and sizes: yes; system, network,
protocol, policy: no); else yes.

How long to wait is read from the first 500 characters of the words, in linear time.
"""

import re
from dataclasses import dataclass

import re2  # type: ignore[import-untyped]  # it comes without type information

from mailq.core.bounce_classes import TRANSIENT
from mailq.core.states import AUTH_STATES, ORDER, Kind, State

LOOKED_AT = 500
"""Characters of a reply that are searched for wordings."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What an ending means for the job and for its destination; a success has none."""

    fatal: bool = False
    individual: bool = False
    strange: bool = False
    greylisted: bool = False
    fallback: bool = False


NO_FLAGS = Flags()
"""Of a success."""

_KNOWN_CODES = frozenset(
    {421, 432, 450, 451, 452, 453, 454, 455, 458, 459}
    | {500, 501, 502, 503, 504, 521, 523, 524, 525, 530, 534, 535, 538}
    | {550, 551, 552, 553, 554, 555, 556}
)
"""Refusals of RFC 5321 and its extensions: RFC 1985, 2645, 3207, 4954, 5248, 7504."""

_INDIVIDUAL = frozenset({10, 22, 23, 26, 30, 52, 53, 60, 80, 90, 100})
"""Bounce classes about one recipient or one message: invalid, full, too large, content, ..."""

_COMMON = frozenset({21, 24, 25, 50, 51, 54})
"""Bounce classes about a whole destination or the sending host: DNS, time, blocks, relaying."""

_SUBJECTS = {"1": True, "2": True, "3": False, "4": False, "5": False, "6": True, "7": False}
"""Second number of an enhanced status (RFC 3463 section 3) to whether one message only is concerned."""

_STATUSES = {"1.2": False, "1.8": False, "1.10": False, "2.4": True, "3.4": True, "5.3": True}
"""Exceptions: unknown domains and null MX concern all; a message too big for the system or too many recipients, one."""


def infer(
    state: State, kind: Kind, code: int, status: str, number: int | None = None, *, greylisting: bool = False
) -> Flags:
    """Return the flags of a failed attempt by the table above.

    `number` is its bounce class, None if not known; `greylisting` tells that the rule that decided is about that.
    """
    answered = kind is Kind.ERROR and ORDER[state] >= ORDER[State.INTRO]
    greylisted = greylisting and answered and code // 100 == 4
    return Flags(
        fatal=code // 100 == 5 and number not in TRANSIENT and state not in AUTH_STATES,
        individual=_individual(state, code, status, number, answered=answered, greylisted=greylisted),
        strange=kind is Kind.INVALID or (answered and _odd(code, status)),
        greylisted=greylisted,
        fallback=_fallback(state, kind, code),
    )


def _odd(code: int, status: str) -> bool:
    return code not in _KNOWN_CODES or not status.startswith(f"{code // 100}.")


def _fallback(state: State, kind: Kind, code: int) -> bool:
    """Tell whether another target may help, or another server than those that the DNS does not tell.

    Trouble of the connection moves on, up to and including 421 anywhere (RFC 5321 section 3.8); an
    answer about the sender, the recipient, the message or the login does not.
    """
    if state is State.DNS:
        return code // 100 == 4
    if kind is not Kind.ERROR or code == 421:
        return ORDER[state] >= ORDER[State.BIND]
    return ORDER[State.BIND] <= ORDER[state] < ORDER[State.MAILFROM] and state not in AUTH_STATES


def _individual(state: State, code: int, status: str, number: int | None, *, answered: bool, greylisted: bool) -> bool:
    if ORDER[state] < ORDER[State.DNS]:
        return True
    if not answered or code == 421 or ORDER[state] < ORDER[State.MAILFROM]:
        return False
    if greylisted or number in _INDIVIDUAL:
        return True
    if number in _COMMON:
        return False
    subject = status.partition(".")[2]
    return _STATUSES.get(subject, _SUBJECTS.get(subject.partition(".")[0], True))


def retry_hint(text: str) -> int | None:
    """Return after how many seconds the server's words ask to try again; None if they name no figure.

    Only words that belong to trying again count: "10 messages in 5 minutes" asks for nothing. Bounds are for
    the policy (`core.answers.verdict`).
    """
    found = _HINT.search(_clean(text))
    if found is None:
        return None
    return round(_seconds(next(group for group in found.groups() if group))) or None


_ONE = ("a", "an", "one", "une", "eine", "einer", "un", "una")
_FEW = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10, "fifteen": 15, "thirty": 30, "sixty": 60}
_NUMBERS = dict.fromkeys(_ONE, 1) | _FEW
_UNITS = {"s": 1, "m": 60, "h": 3600, "st": 3600, "d": 86_400, "t": 86_400, "j": 86_400}
"""The beginning of a unit's name to its seconds: English, German, French and Spanish."""

_UNIT = (
    r"(?:s|secs?|seconds?|sekunden?|secondes?|segundos?|m|mins?|minutes?|minuten|minutos?"
    r"|h|hrs?|hours?|stunden?|heures?|horas?|d|days?|tag(?:en?)?|jours?|d[ií]as?)\b(?:\(s\))?\.?"
)
_TERM = rf"(?:\d{{1,6}}(?:[.,]\d{{1,2}})?[ -]?|(?:{'|'.join(_NUMBERS)}) ){_UNIT}"
_COMPACT = r"\d{1,3}h\d{1,2}m(?:\d{1,2}s)?|\d{1,3}m\d{1,2}s"
_AMOUNT = rf"(?:half an hour|{_COMPACT}|{_TERM}(?:(?: ?, ?| and | und | et | ){_TERM})*)"
_CLOCK = r"\d{1,3}:[0-5]\d:[0-5]\d"
_GAP = r"[ ,:=(\"'~-]{1,3}"
_ABOUT = rf"(?:{_GAP}(?:at|least|about|approx(?:imately)?|another|the|next|a|more|than|minimum|of|environ)\b\.?){{0,4}}"
_VERB = (
    r"\b(?:(?:re)?try|retrying|retries|retried|come back|re-?send|re-?submit|re-?attempt|reconnect|return|attempts?"
    r"|redeliver|r[ée]essaye[rz]|versuchen|intente)"
)
_FILLER = (
    r"(?:again|later|back|please|the|this|your|our|it|es|to|once|more|only|be|is|sending|send|deliver(?:y|ing)?"
    r"|email|e-mail|mail|message|connecting|connection|server|sie|de nuevo|allowed|possible|accepted|earliest)"
)
_STATE = r"\b(?:wait(?:ing)?|gr[ae]y-?list(?:ed|ing)|defer(?:red)?|delayed|blocked|banned|suspended|throttled|paused)"
_DURING = rf"(?:{_GAP}(?:for|period|time|is|temporarily|in effect|patiently|please)){{0,3}}"
_THEN = rf"(?:{_GAP}(?:please|you|can|may|and|then|to|have|must|should|the|message)){{0,4}}"
_AGAIN = rf"{_GAP}(?:try|retry|re-?send|send|come back|again|erneut|wieder|nochmals?)\b"
_HINTS = (
    rf"{_VERB}(?:{_GAP}{_FILLER}){{0,6}}{_GAP}(?:in|after|for|dans|en){_ABOUT}{_GAP}({_AMOUNT})",
    rf"{_VERB}(?:{_GAP}{_FILLER}){{0,6}}{_GAP}in{_GAP}({_CLOCK})",
    rf"{_STATE}{_DURING}{_ABOUT}{_GAP}({_AMOUNT}|{_CLOCK})",
    r"\bretry[-_ ]?(?:after|in|timeout|time|delay|interval)? ?[:=] ?(\d{1,6})\b",
    rf"({_AMOUNT}) (?:remaining|left|to go)\b",
    rf"\b(?:remaining|time left)(?: time)?{_GAP}({_AMOUNT}|{_CLOCK})",
    # Only at the beginning of a clause: "10 messages in 5 minutes, try again later" is a limit.
    rf"(?:^|[.;:!,-] ?)(?:please |bitte )?(?:in|after)\b{_ABOUT}{_GAP}({_AMOUNT}){_THEN}{_AGAIN}",
)
"""How servers say when to come back; each has one group, the time."""

_OPTIONS = re2.Options()
_OPTIONS.case_sensitive = False
_HINT = re2.compile("|".join(_HINTS), _OPTIONS)
_TERMS = re.compile(rf"(\d+(?:[.,]\d+)?[ -]?|(?:{'|'.join(_NUMBERS)}) )(st|[smhdtj])[a-zéí]*")


def _clean(text: str) -> str:
    """Return the beginning of a reply on one line; what is not Unicode (half surrogates) is shown as `?`."""
    return " ".join(text[:LOOKED_AT].encode(errors="replace").decode().split())


def _seconds(words: str) -> float:
    words = words.lower()
    if words == "half an hour":
        return 1800
    if ":" in words:
        hours, minutes, seconds = (int(part) for part in words.split(":"))
        return hours * 3600 + minutes * 60 + seconds
    if words.isdecimal():
        return int(words)
    return sum(_number(number) * _UNITS[unit] for number, unit in _TERMS.findall(words))


def _number(word: str) -> float:
    word = word.rstrip(" -")
    return _NUMBERS[word] if word in _NUMBERS else float(word.replace(",", "."))
