"""One message within a session: MAIL, RCPT and DATA, each matched to its reply. Sans I/O.

With PIPELINING (RFC 2920) the three commands are one write and the replies are matched in order. Without it each
command waits for the reply to the one before. The first refusal is the failure. Under pipelining the session reads all
further replies before it may be used again. After a refusal the client answers a 354 with a lone dot, as RFC 2920
section 3.1 says. If that could deliver an empty message, the client closes the connection instead.
"""

from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State

_STATES = _, _RCPTTO, _DATA, _MESSAGE = State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE
"""The states of the commands in order, with the lone dot last. In Python 3.11 a member of an `Enum` costs a call."""

EXPECTED_CLASS: dict[State, int] = {_DATA: 3}
"""First digit of the expected reply by state; 2 for all others (RFC 5321 section 4.2.1)."""


def check(state: State, reply: Reply) -> Failure | None:
    """Return the failure that a reply in `state` means; None for the expected reply."""
    digit = reply.code // 100
    if digit == EXPECTED_CLASS.get(state, 2):
        return None
    if digit in (4, 5):
        return Failure(state, Kind.ERROR, reply=reply)
    return Failure(state, Kind.INVALID, f"unexpected answer: {reply.code} {reply.text}"[:500])


class Transaction:
    """The state of one transaction: next command, awaited reply, first refusal; without `data` the last is RCPT."""

    __slots__ = (
        "_answered",
        "_lines",
        "_pipelining",
        "_rcpt_accepted",
        "_sent",
        "awaiting",
        "ended",
        "must_close",
        "refusal",
    )

    def __init__(self, mail: str, rcpt: str, *, pipelining: bool, data: bool = True) -> None:
        self._lines = [mail, rcpt, "DATA"] if data else [mail, rcpt]
        self._sent = self._answered = 0
        self._pipelining = pipelining
        self._rcpt_accepted = False
        self.awaiting: State | None = None
        """The state whose reply comes next; None if no reply is awaited."""
        self.refusal: Failure | None = None
        self.ended = False
        """True if the lone dot ended a refused transaction: no RSET is needed."""
        self.must_close = False
        """True if the server closes, is out of step, or waits for a message that must not be sent."""

    @property
    def command(self) -> str:
        """The refused command, else the last one with a reply or awaited; empty before the first write."""
        if self.refusal is not None:
            return self._lines[_STATES.index(self.refusal.state)]
        return self._lines[min(self._answered, self._sent - 1)] if self._sent else ""

    @property
    def due(self) -> State | None:
        """The state of the command to write next, once no reply is awaited; None at the end."""
        return _STATES[self._sent] if self._sent < len(self._lines) else None

    @property
    def left_open(self) -> bool:
        """True if the transaction has begun at the server in spite of the refusal, and no command has ended it."""
        begun = self._rcpt_accepted or self.refusal is None or self.refusal.state is not State.MAILFROM
        return begun and not self.ended

    def to_write(self) -> tuple[str, ...]:
        """Return the command lines to send now; the transaction then awaits their replies."""
        if self.awaiting is not None:
            return ()
        lines = tuple(self._lines[self._sent :] if self._pipelining else self._lines[self._sent : self._sent + 1])
        if lines:
            self.awaiting = _STATES[self._sent]
            self._sent += len(lines)
        return lines

    def answer(self, reply: Reply) -> None:
        """Take the reply in the state `awaiting`."""
        state = _STATES[self._answered]
        self._answered += 1
        self.awaiting = _STATES[self._answered] if self._answered < self._sent else None
        failure = check(state, reply)
        if failure is None and self.refusal is None:
            return
        self.ended = state is _MESSAGE
        if failure is None:
            self._go_on(state)
        else:
            self.refusal = self.refusal or failure
            self.must_close = self.must_close or failure.kind is Kind.INVALID or reply.closing
        if self.awaiting is None and len(self._lines) < len(_STATES):
            del self._lines[self._sent :]

    def _go_on(self, state: State) -> None:
        """Decide what the transaction needs after a command was accepted although an earlier one was refused."""
        if state is _RCPTTO:
            self._rcpt_accepted = True
        elif state is _DATA and self._rcpt_accepted:
            self.must_close = True
        elif state is _DATA:
            self._lines.append(".")
