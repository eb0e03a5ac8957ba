"""How an attempt ends badly: `Failure`, and the codes for endings that no server worded; or is not made: `Delayed`.

One table gives each (state, kind) without a reply its default code, enhanced status and
description, so that result consumers always find numbers. The code's first digit is also the
default verdict (`core.answers.verdict`): a 4 is tried again, a 5 is not.
"""

from typing import NamedTuple, TypeVar

from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State, Word

E = TypeVar("E", bound=Exception)


class Default(NamedTuple):
    """What a result says when no server said it: SMTP code, RFC 3463 status, description."""

    code: int
    status: str
    text: str


class Trouble(Exception):  # noqa: N818 - not every trouble is an error of ours
    """What an edge raises when the world misbehaves; `kind` is lost, invalid or error."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Failure(Exception):  # noqa: N818 - the house word, see docs/glossary.md
    """The attempt ended here, at (state, kind). The only exception that the walk lets out.

    `reply` is the server's answer when it gave one; `code` and `status` are set where whoever
    raised it knows better than the table (for example NXDOMAIN against SERVFAIL). `unable` tells that this server
    cannot do what the message needs, though another server of the destination may.
    """

    def __init__(
        self,
        state: State,
        kind: Kind,
        text: str = "",
        *,
        reply: Reply | None = None,
        code: int | None = None,
        status: str | None = None,
        pointer: str | None = None,
        unable: bool = False,
    ) -> None:
        default = DEFAULTS.get((state, kind)) or DEFAULTS_BY_KIND[kind]
        super().__init__(text or default.text)
        self.state = state
        self.kind = kind
        self.reply = reply
        self.code = reply.code if reply else code or default.code
        self.status = (reply.status if reply else status) or (
            f"{self.code // 100}.0.0" if reply or code else default.status
        )
        self.text = reply.text if reply else text or default.text
        self.pointer = pointer
        self.unable = unable
        self.tls_unusable = False
        """The handshake succeeded and nothing worked inside TLS: the first exchange there failed."""

    @property
    def permanent(self) -> bool:
        """Tell whether trying again cannot help, by the first digit of the code."""
        return self.code // 100 == 5


class Cause(Word):
    """Why no attempt is made now."""

    DUE = "due"
    """Its time has not come, as the job itself says."""
    CONNECTIONS = "connections"
    """All connections allowed are in use."""
    RATE = "rate"
    """The rate allowed is used up."""
    DNS = "dns"
    """The DNS takes its time."""
    SILENCE = "silence"
    """The destination's servers take long to greet, and others wait for them already."""
    PAUSE = "pause"
    """The destination is left alone."""
    ELSEWHERE = "elsewhere"
    """Another process has it, or a copy of it."""
    JOURNAL = "journal"
    """It could not be noted that it is handed over."""
    LOGIN = "login"
    """The smarthost refuses the login, so no job is tried until one that is has found out more."""
    BROKER = "broker"
    """It could not be told what came of it."""


class Delayed(Exception):  # noqa: N818 - nothing went wrong
    """No attempt is made now: the job is to come back in `wait` seconds; `reason` says more of the cause."""

    def __init__(self, wait: float, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.wait = wait
        self.cause = cause
        self.reason = reason


def bare(trouble: E) -> E:
    """Return an exception that was caught and is kept, without its traceback and what it came from.

    The frames in a traceback hold what they worked on, often the exception itself: then a job and its message would
    stay in memory until the garbage collector comes by.
    """
    trouble.__traceback__ = trouble.__cause__ = trouble.__context__ = None
    return trouble


DEFAULTS_BY_KIND: dict[Kind, Default] = {
    Kind.TIMEOUT: Default(451, "4.4.2", "no answer in time"),
    Kind.LOST: Default(451, "4.4.2", "connection lost"),
    Kind.INVALID: Default(451, "4.5.0", "not a valid SMTP answer"),
    Kind.ERROR: Default(451, "4.3.0", "internal error"),
}
"""For every state that the table below does not name."""

DEFAULTS: dict[tuple[State, Kind], Default] = {
    (State.PROCESS, Kind.TIMEOUT): Default(554, "5.4.7", "[internal] message timeout"),
    (State.PROCESS, Kind.ERROR): Default(550, "5.3.5", "no usable source address"),
    (State.PROCESS, Kind.INVALID): Default(550, "5.6.0", "job cannot be processed"),
    (State.STORAGE, Kind.ERROR): Default(550, "5.6.0", "no message data was found"),
    (State.DNS, Kind.TIMEOUT): Default(451, "4.4.3", "no answer from the DNS in time"),
    (State.DNS, Kind.ERROR): Default(451, "4.4.3", "DNS lookup failed"),
    (State.BIND, Kind.ERROR): Default(451, "4.4.4", "no local address to send from"),
    (State.CONNECT, Kind.TIMEOUT): Default(451, "4.4.1", "connection timed out"),
    (State.CONNECT, Kind.ERROR): Default(451, "4.4.1", "connection failed"),
    (State.STARTTLS, Kind.ERROR): Default(454, "4.7.0", "TLS is not available"),
    (State.STARTTLS, Kind.INVALID): Default(454, "4.7.5", "TLS handshake failed"),
    (State.STARTTLS, Kind.LOST): Default(454, "4.7.5", "connection lost in the TLS handshake"),
}
