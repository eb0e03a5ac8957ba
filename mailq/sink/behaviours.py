"""How the sink misbehaves, as values: read from an address, or from a fault set for the whole server.

The local part of a recipient chooses what happens to it (`reject-554-message@any.test`); the local part
of a sender does so for MAIL FROM, the one answer that comes before a recipient is known. What comes
before any address (greeting, EHLO, STARTTLS, AUTH) is chosen by a fault: `intro=drop`. This module
only reads the words; `sink.conversation` acts on them.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from mailq.core.states import WIRE_STATES, State

TABLE = (
    ("accept, any other word", "takes the message"),
    ("tempfail-NNN[-STATE]", "answers NNN, a 4yz code; tempfail alone: 450"),
    ("reject-NNN[-STATE]", "answers NNN, a 5yz code; reject alone: 550"),
    ("greylist[-N]", "451 4.7.1 to the first N (1) of sender and recipient"),
    ("close-421[-STATE]", "answers 421 and closes the connection"),
    ("drop[-STATE]", "closes the connection instead of answering"),
    ("reset[-STATE]", "resets the connection (RST) instead of answering"),
    ("stall[-STATE]", "never answers again"),
    ("garbage[-STATE]", "answers with bytes that are no SMTP reply"),
    ("drop-before-dot", "closes while the message arrives"),
    ("drop-after-dot", "takes the message, closes without an answer"),
    ("slow-MS[-STATE]", "answers MS milliseconds late, message if no STATE"),
)
"""The words of an address and what they do, for `mailq sink --help`."""

NOTES = (
    "STATE is rcptto (the default), data or message; mailfrom is chosen by the sender's address. A +tag and what"
    " follows it is ignored. A word of this table that is misspelt is refused with 553."
)

MAX_DELAY_MS = 600_000


class Action(StrEnum):
    """What is done instead of the answer that would be right."""

    ANSWER = "answer"
    DROP = "drop"
    RESET = "reset"
    STALL = "stall"
    GARBAGE = "garbage"
    CUT = "cut"
    FORGET = "forget"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One deviation: at which state, after which delay in seconds, and what.

    `code` 0 is the usual answer, `status` and `text` have defaults; `times` bounds how often it
    happens to one pair of sender and recipient (0: always).
    """

    at: State
    action: Action
    code: int = 0
    delay: float = 0.0
    times: int = 0
    status: str = ""
    text: str = ""


_WORDS = frozenset({"tempfail", "reject", "greylist", "close", "drop", "reset", "stall", "garbage", "slow"})
_SENDER_STATES = frozenset({State.MAILFROM})
_RECIPIENT_STATES = frozenset({State.RCPTTO, State.DATA, State.MESSAGE})
_CODE = re.compile(r"[45][0-9]{2}")
_NUMBER = re.compile(r"[0-9]{1,6}")
_STATUS = {
    421: "4.3.2",
    450: "4.2.1",
    451: "4.3.0",
    452: "4.2.2",
    454: "4.7.0",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    530: "5.7.0",
    535: "5.7.8",
    550: "5.1.1",
    552: "5.2.2",
    553: "5.1.3",
    554: "5.7.1",
    555: "5.5.4",
    556: "5.1.10",
}


def status_of(code: int) -> str:
    """Return the enhanced status (RFC 3463) that usually goes with a refusing code."""
    return _STATUS.get(code, f"{code // 100}.0.0")


def of_recipient(local: str) -> Behaviour | None:
    """Return what the local part of a recipient asks for; None is to take the message."""
    return _read(local, _RECIPIENT_STATES, State.RCPTTO)


def of_sender(local: str) -> Behaviour | None:
    """Return what the local part of a sender asks for at MAIL FROM; None is nothing."""
    behaviour = _read(local, _SENDER_STATES, None)
    return behaviour if behaviour and behaviour.at is State.MAILFROM else None


def parse_fault(text: str) -> Behaviour:
    """Return the fault written as `state=action`, such as `intro=drop`, `ehlo=502` or `data=slow-500`.

    Raises:
        ValueError: the state is not one in which a server answers, or there is no such action.
    """
    name, _, words = text.partition("=")
    if name not in WIRE_STATES:
        raise ValueError(f"{name!r} is no state of the sink; choose from {', '.join(_names())}")
    at = State(name)
    if words == "broken" and at is State.STARTTLS:
        return Behaviour(at, Action.BROKEN)
    behaviour = (
        Behaviour(at, Action.ANSWER, code=int(words)) if _CODE.fullmatch(words) else _action(words.split("-"), at)
    )
    if behaviour is None:
        raise ValueError(
            f"{words!r} is no fault; choose a code such as 421, drop, reset, stall, garbage, slow-MS,"
            " or for starttls broken"
        )
    return behaviour


def _names() -> list[str]:
    return [state for state in State if state in WIRE_STATES]


def _read(local: str, states: frozenset[State], default: State | None) -> Behaviour | None:
    """Return the behaviour written in a local part, a refusing one if it is misspelt."""
    words = local.partition("+")[0].lower().split("-")
    if words[0] not in _WORDS:
        return None
    named = State(words.pop()) if words[-1] in states else None
    behaviour = _whole(words) if named is None else None
    at = named or (State.MESSAGE if words[0] == "slow" else default)
    if behaviour is None and at is not None:
        behaviour = _refusal(words, at) or _action(words, at)
    return behaviour or Behaviour(State.RCPTTO, Action.ANSWER, 553, text="no such behaviour, see mailq sink --help")


def _whole(words: list[str]) -> Behaviour | None:
    """Return a behaviour that has a state of its own."""
    match words:
        case ["greylist"]:
            return _greylist(1)
        case ["greylist", times] if _NUMBER.fullmatch(times):
            return _greylist(int(times))
        case ["drop", "before", "dot"]:
            return Behaviour(State.MESSAGE, Action.CUT)
        case ["drop", "after", "dot"]:
            return Behaviour(State.MESSAGE, Action.FORGET)
    return None


def _greylist(times: int) -> Behaviour:
    return Behaviour(State.RCPTTO, Action.ANSWER, 451, times=times, status="4.7.1", text="greylisted, try again")


def _refusal(words: list[str], at: State) -> Behaviour | None:
    match words:
        case ["tempfail"]:
            return Behaviour(at, Action.ANSWER, 450)
        case ["reject"]:
            return Behaviour(at, Action.ANSWER, 550)
        case ["close", "421"]:
            return Behaviour(at, Action.ANSWER, 421)
        case ["tempfail" | "reject", code] if _CODE.fullmatch(code):
            return Behaviour(at, Action.ANSWER, int(code))
    return None


def _action(words: list[str], at: State) -> Behaviour | None:
    match words:
        case ["drop" | "reset" | "stall" | "garbage" as action]:
            return Behaviour(at, Action(action))
        case ["slow", milliseconds] if _NUMBER.fullmatch(milliseconds) and int(milliseconds) <= MAX_DELAY_MS:
            return Behaviour(at, Action.ANSWER, delay=int(milliseconds) / 1000)
    return None
