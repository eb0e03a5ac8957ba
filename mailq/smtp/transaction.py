"""One message within a session: MAIL, RCPT and DATA, and which reply belongs to which. Sans I/O.

With PIPELINING (RFC 2920) the three commands are one write and the replies are matched in order;
without it each waits for the one before. Either way the first refusal is the answer, and under
pipelining the replies still owed are read before the session may be used again. A 354 that comes
although a command was refused is ended as RFC 2920 section 3.1 says, with a lone dot, unless that
could deliver an empty message: then the connection must go.
"""

from mailq.core.failure import Failure
from mailq.core.reply import Reply
from mailq.core.states import Kind, State

EXPECTED_CLASS: dict[State, int] = {State.DATA: 3}
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

    __slots__ = ("_answered", "_commands", "_pipelining", "_rcpt_accepted", "_sent", "ended", "must_close", "refusal")

    def __init__(self, mail: str, rcpt: str, *, pipelining: bool, data: bool = True) -> None:
        self._commands = [(State.MAILFROM, mail), (State.RCPTTO, rcpt)]
        if data:
            self._commands.append((State.DATA, "DATA"))
        self._sent = self._answered = 0
        self._pipelining = pipelining
        self._rcpt_accepted = False
        self.refusal: Failure | None = None
        self.ended = False
        """A refused transaction was closed by the lone dot: no RSET is needed."""
        self.must_close = False
        """The server waits for a message that must not be sent: only closing helps."""

    @property
    def awaiting(self) -> State | None:
        """The state whose reply comes next; None when nothing is owed any more."""
        return self._commands[self._answered][0] if self._answered < self._sent else None

    @property
    def command(self) -> str:
        """The command that was refused, else the one answered last or awaited."""
        place = self._answered if self._answered < self._sent else self._answered - 1
        state = self.refusal.state if self.refusal else self._commands[place][0]
        return next(line for each, line in self._commands if each is state)

    def to_write(self) -> tuple[str, ...]:
        """Return the command lines to send now; they are then awaited."""
        if self._answered < self._sent:
            return ()
        batch = self._commands[self._sent :] if self._pipelining else self._commands[self._sent : self._sent + 1]
        self._sent += len(batch)
        return tuple(line for _, line in batch)

    def answer(self, reply: Reply) -> None:
        """Take the next reply."""
        state = self._commands[self._answered][0]
        self._answered += 1
        if state is State.MESSAGE:
            self.ended = True
            return
        trouble = check(state, reply)
        if trouble is None:
            self._go_on(state)
        elif self.refusal is None:
            self.refusal = trouble
        if self.refusal and self._answered == self._sent and self._commands[-1][0] is not State.MESSAGE:
            del self._commands[self._sent :]

    def _go_on(self, state: State) -> None:
        if state is State.RCPTTO:
            self._rcpt_accepted = True
        if state is State.DATA and self.refusal is not None:
            if self._rcpt_accepted:
                self.must_close = True
            else:
                self._commands.append((State.MESSAGE, "."))
