"""One message within a session: MAIL, RCPT and DATA, and which reply belongs to which. Sans I/O.

With PIPELINING (RFC 2920) the three commands are one write and the replies are matched in order;
without it each waits for the one before. Either way the first refusal is the answer, and under
pipelining the replies still owed are read before the session may be used again. A 354 that comes
although a command was refused is ended as RFC 2920 section 3.1 says, with a lone dot, unless that
could deliver an empty message: then the connection must go.
"""

from collections import deque

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
    """What to write next, whose reply is awaited, and the first refusal."""

    __slots__ = ("_awaited", "_pipelining", "_rcpt_accepted", "_unsent", "ended", "must_close", "refusal")

    def __init__(self, mail: str, rcpt: str, *, pipelining: bool) -> None:
        self._unsent = deque(((State.MAILFROM, mail), (State.RCPTTO, rcpt), (State.DATA, "DATA")))
        self._awaited: deque[State] = deque()
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
        return self._awaited[0] if self._awaited else None

    def to_write(self) -> tuple[str, ...]:
        """Return the command lines to send now; they are then awaited."""
        if self._awaited or not self._unsent:
            return ()
        count = len(self._unsent) if self._pipelining else 1
        batch = [self._unsent.popleft() for _ in range(count)]
        self._awaited.extend(state for state, _ in batch)
        return tuple(line for _, line in batch)

    def answer(self, reply: Reply) -> None:
        """Take the next reply."""
        state = self._awaited.popleft()
        if state is State.MESSAGE:
            self.ended = True
            return
        trouble = check(state, reply)
        if trouble is None:
            self._go_on(state)
        elif self.refusal is None:
            self.refusal = trouble
        if self.refusal and not self._awaited and self._unsent and self._unsent[0][0] is not State.MESSAGE:
            self._unsent.clear()

    def _go_on(self, state: State) -> None:
        if state is State.RCPTTO:
            self._rcpt_accepted = True
        if state is State.DATA and self.refusal is not None:
            if self._rcpt_accepted:
                self.must_close = True
            else:
                self._unsent.append((State.MESSAGE, "."))
