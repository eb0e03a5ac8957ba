"""One message within a session: MAIL, RCPT and DATA, and which reply belongs to which. Sans I/O.

With PIPELINING (RFC 2920) the three commands are one write and the replies are matched in order;
without it each waits for the one before. Either way the first refusal is the answer, and under
pipelining the replies still owed are read before the session may be used again. A 354 that comes
although a command was refused is ended as RFC 2920 section 3.1 says, with a lone dot, unless that
could deliver an empty message: then the connection must go.
"""

from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State

_STATES = _, _RCPTTO, _DATA, _MESSAGE = State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE
"""The states of the commands in their order, the lone dot's last. In Python 3.11 a member of an `Enum` costs a call."""

EXPECTED_CLASS: dict[State, int] = {_DATA: 3}
"""First digit of the hoped-for reply by state; 2 for all others (RFC 5321 section 4.2.1)."""


def check(state: State, reply: Reply) -> Failure | None:
    """Return what a reply in `state` means for the attempt: nothing if it is the hoped-for one."""
    digit = reply.code // 100
    if digit == EXPECTED_CLASS.get(state, 2):
        return None
    if digit in (4, 5):
        return Failure(state, Kind.ERROR, reply=reply)
    return Failure(state, Kind.INVALID, f"unexpected answer: {reply.code} {reply.text}"[:500])


class Transaction:
    """What to write next, whose reply is awaited, and the first refusal; without `data` it ends after RCPT."""

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
        """The state whose reply comes next; None when nothing is owed any more."""
        self.refusal: Failure | None = None
        self.ended = False
        """A refused transaction was closed by the lone dot: no RSET is needed."""
        self.must_close = False
        """The server leaves, is out of step, or waits for a message that must not be sent: only closing helps."""

    @property
    def command(self) -> str:
        """The command that was refused, else the one answered last or awaited; empty if none was written."""
        if self.refusal is not None:
            return self._lines[_STATES.index(self.refusal.state)]
        return self._lines[min(self._answered, self._sent - 1)] if self._sent else ""

    @property
    def due(self) -> State | None:
        """The state of the command to be written next, once nothing is awaited; None at the end."""
        return _STATES[self._sent] if self._sent < len(self._lines) else None

    @property
    def left_open(self) -> bool:
        """Tell whether what was refused has begun at the server all the same, and nothing has ended it."""
        begun = self._rcpt_accepted or self.refusal is None or self.refusal.state is not State.MAILFROM
        return begun and not self.ended

    def to_write(self) -> tuple[str, ...]:
        """Return the command lines to send now; they are then awaited."""
        if self.awaiting is not None:
            return ()
        lines = tuple(self._lines[self._sent :] if self._pipelining else self._lines[self._sent : self._sent + 1])
        if lines:
            self.awaiting = _STATES[self._sent]
            self._sent += len(lines)
        return lines

    def answer(self, reply: Reply) -> None:
        """Take the next reply, to what is awaited."""
        state = _STATES[self._answered]
        self._answered += 1
        self.awaiting = _STATES[self._answered] if self._answered < self._sent else None
        trouble = check(state, reply)
        if trouble is None and self.refusal is None:
            return
        self.ended = state is _MESSAGE
        if trouble is None:
            self._go_on(state)
        else:
            self.refusal = self.refusal or trouble
            self.must_close = self.must_close or trouble.kind is Kind.INVALID or reply.closing
        if self.awaiting is None and len(self._lines) < len(_STATES):
            del self._lines[self._sent :]

    def _go_on(self, state: State) -> None:
        """See what the server waits for that accepts a command after it has refused one."""
        if state is _RCPTTO:
            self._rcpt_accepted = True
        elif state is _DATA and self._rcpt_accepted:
            self.must_close = True
        elif state is _DATA:
            self._lines.append(".")
