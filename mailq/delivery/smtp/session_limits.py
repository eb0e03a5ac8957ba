"""Limits of messages per session that this process has learnt, by the sharing of sessions; bounded memory."""

from time import monotonic

from mailq.core.bounded import BoundedDict
from mailq.core.smtp.session_limit import SessionLimit
from mailq.core.traffic.limits import Allowance


class SessionLimits:
    """The numbers of messages that receivers take in one session (`core.smtp.session_limit`)."""

    def __init__(self) -> None:
        self._known: BoundedDict[str, SessionLimit] = BoundedDict()

    def most(self, allowance: Allowance) -> int:
        """Return how many messages one session may carry: as configured, or fewer if the receiver takes fewer."""
        configured = allowance.messages_per_session
        known = self._known.get(allowance.sharing) if self._known else None
        if known is None or known.messages is None or not known.holds(monotonic()):
            return configured
        return min(configured, known.messages)

    def refused(self, allowance: Allowance, before: int, *, named: bool) -> int | None:
        """Record that a session was refused after `before` messages; return the limit if it has changed."""
        old, now = self._known.get(allowance.sharing, SessionLimit()), monotonic()
        new = old.refused(before, now, named=named)
        self._known.remember(allowance.sharing, new)
        believed = old.messages if old.holds(now) else None
        return new.messages if new.holds(now) and new.messages != believed else None
