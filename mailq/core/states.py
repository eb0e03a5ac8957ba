"""The two axes of what can happen: where an attempt stood (`State`) and how it ended there (`Kind`).

The words are MailerQ's, so that its result consumers work unchanged. What an ending *means*
(success, failure, retry) is decided in `core.answers.verdict` and nowhere else.
"""

from enum import StrEnum


class Word(StrEnum):
    """A word of a fixed vocabulary, looked up as fast as the text that it is (Enum hashes its name, in Python)."""

    __hash__ = str.__hash__


class State(Word):
    """Where an attempt stands; members are in the order in which a delivery goes through them."""

    PROCESS = "process"
    SUPPRESSION = "suppression"
    STORAGE = "storage"
    RESPONSIVE = "responsive"
    PERSONALIZE = "personalize"
    REWRITE = "rewrite"
    DNS = "dns"
    BIND = "bind"
    CONNECT = "connect"
    HANDSHAKE = "handshake"
    INTRO = "intro"
    EHLO = "ehlo"
    HELO = "helo"
    STARTTLS = "starttls"
    AUTHPLAIN = "authplain"
    AUTHLOGIN = "authlogin"
    AUTHUSERNAME = "authusername"
    AUTHPASSWORD = "authpassword"
    AUTHCRAM = "authcram"
    AUTHRESPONSE = "authresponse"
    AUTHXOAUTH2 = "authxoauth2"
    MAILFROM = "mailfrom"
    RCPTTO = "rcptto"
    DATA = "data"
    MESSAGE = "message"


class Kind(Word):
    """How an attempt ended in its state; the JSON property is called `result`."""

    ACCEPTED = "accepted"
    TIMEOUT = "timeout"
    LOST = "lost"
    INVALID = "invalid"
    ERROR = "error"


NAMES: dict[State, str] = {state: str(state) for state in State}
"""The states as plain text, as keys of JSON have to be: to look it up is a third of making it."""

ORDER: dict[State, int] = {state: place for place, state in enumerate(State)}

AUTH_STATES = frozenset(state for state in State if state.startswith("auth"))
"""The states of an SMTP AUTH exchange (RFC 4954), one per line that the client sends."""

LOCAL_STATES = frozenset(state for state in State if ORDER[state] < ORDER[State.DNS]) | {State.BIND}
"""The states in which no other host has a part."""

WIRE_STATES = frozenset(state for state in State if ORDER[state] >= ORDER[State.INTRO])
"""The states in which an SMTP server is expected to answer."""
