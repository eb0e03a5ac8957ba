"""When not to try: a target that refused connections is left alone for a while. Pure.

After a few failures in a row the breaker is open: jobs get the reason at once instead of waiting for
the same timeout again. When the pause is over one job, the probe, may try; its success closes the
breaker, its failure opens it for twice as long.
"""

from dataclasses import dataclass, replace

from mailq.core.failure import Failure
from mailq.core.states import Kind, State

THRESHOLD = 3
"""Failures in a row that open the breaker."""

FIRST_PAUSE = 30.0
LONGEST_PAUSE = 900.0
"""Seconds that an open breaker waits before the next probe: the first time, and at most."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is remembered of one target; moments in seconds on a monotonic clock."""

    failures: int = 0
    until: float = 0.0
    pause: float = FIRST_PAUSE
    reason: Failure | None = None
    probed: bool = False

    def is_open(self, now: float) -> bool:
        """Tell whether a job must not try now."""
        return self.reason is not None and self.failures >= THRESHOLD and now < self.until

    def probing(self, now: float) -> "Breaker":
        """Return the breaker after one job was let through: the others wait for what it finds."""
        return replace(self, until=now + self.pause, probed=True) if self.failures >= THRESHOLD else self

    def failed(self, failure: Failure, now: float) -> "Breaker":
        """Return the breaker after a failure to get a conversation.

        Those who began before it opened tell nothing new: only a probe's failure makes the pause longer.
        """
        if self.failures >= THRESHOLD and not self.probed:
            return self
        failures = self.failures + 1
        if failures < THRESHOLD:
            return replace(self, failures=failures, reason=failure)
        pause = FIRST_PAUSE if failures == THRESHOLD else min(self.pause * 2, LONGEST_PAUSE)
        return Breaker(failures, now + pause, pause, failure)


def counts(failure: Failure) -> bool:
    """Tell whether a failure says that the target takes no connections."""
    if failure.state is State.CONNECT:
        return True
    closing = failure.reply is not None and failure.reply.closing
    return failure.state is State.INTRO and (failure.kind is not Kind.ERROR or closing)


def remembered(failure: Failure) -> Failure:
    """Return the failure anew, for a job that did not try: one that is raised often would collect tracebacks."""
    reply, code, status = failure.reply, failure.code, failure.status
    return Failure(failure.state, failure.kind, failure.text, reply=reply, code=code, status=status)
