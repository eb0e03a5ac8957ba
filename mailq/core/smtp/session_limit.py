"""How many messages a receiver takes in one session, as its refusals on used sessions tell. Pure.

RFC 5321 has no word for such a limit, so receivers say it in many ways: 421 (section 3.8), 452 4.4.5, 450, 503 out of
step, even 550, at MAIL, RCPT or DATA. A refusal about the session says nothing about the job: a new session shows what
the receiver thinks of that. What is learnt holds for an hour, so that a raised limit is found.
"""

import re
from dataclasses import dataclass

from mailq.core.smtp.reply import Reply
from mailq.core.states import State

LASTS = 3600.0
"""Seconds for which a limit is believed; after that sessions are as long as configured, until the next refusal."""

OUT_OF_STEP = 503
"""Bad sequence of commands: the receiver takes the session to be somewhere else than the client does."""

_SYSTEM_CONGESTION = "4.4.5"
"""RFC 3463 section 3.5; some servers send it for this limit."""

_STATES = frozenset({State.MAILFROM, State.RCPTTO, State.DATA})

_COUNTED = r"(?:messages?|e-?mails?|mails|transactions?|envelopes?|deliver(?:y|ies)|recipients?)"
_PLACE = r"(?:session|connection)\b"
_LIMIT = re.compile(r"\b(?:too many|max(?:imum)?|limits?|exceed(?:s|ed|ing)?|reached|only)\b", re.IGNORECASE)
_ABOUT = re.compile(rf"\b{_COUNTED}\b.{{0,80}}\b{_PLACE}|\b{_PLACE}.{{0,80}}\b{_COUNTED}\b", re.IGNORECASE)
_READ = 500
"""Characters of an answer that are searched."""


def names_limit(reply: Reply) -> bool:
    """Tell whether a refusal says that the session has carried as many messages as it may."""
    text = reply.text[:_READ].replace("\n", " ")
    return reply.status == _SYSTEM_CONGESTION or bool(_LIMIT.search(text) and _ABOUT.search(text))


def about_session(state: State, reply: Reply) -> bool:
    """Tell whether a refusal on a used session may be about the session, so that a new one is to be asked.

    A 4yz answer to MAIL comes before any recipient is known. Later only words, 421 and 503 count: 450 to RCPT may be
    greylisting, 550 is about the recipient.
    """
    if state not in _STATES:
        return False
    if reply.closing or reply.code == OUT_OF_STEP or names_limit(reply):
        return True
    return state is State.MAILFROM and reply.code // 100 == 4


@dataclass(frozen=True, slots=True)
class SessionLimit:
    """The knowledge about one receiver; moments in seconds on a monotonic clock.

    `messages` is the limit believed until `until`, None if there is none; `guess` is the number of messages before the
    last refusal that did not name its reason: the second one of the same number is believed.
    """

    messages: int | None = None
    until: float = 0.0
    guess: int = 0

    def holds(self, now: float) -> bool:
        """Tell whether a limit is believed at this moment."""
        return self.messages is not None and now < self.until

    def refused(self, before: int, now: float, *, named: bool) -> "SessionLimit":
        """Return what is known after a session was refused that had carried `before` messages, and a new one was not.

        `named` tells that the refusal gave the limit as its reason.
        """
        known = self.messages if self.holds(now) else None
        if not named and before != self.guess:
            return SessionLimit(known, self.until, before)
        return SessionLimit(before if known is None else min(before, known), now + LASTS, before)
