"""When not to try: a target that refused connections, or a login, is left alone for a while. Pure.

After a few failures in a row the breaker is open: jobs get the reason at once instead of waiting for
the same timeout again. When the pause is over one job, the probe, may try; its success closes the
breaker, its failure opens it for twice as long.
"""

from dataclasses import dataclass, replace

from mailq.core.smtp.failure import Failure
from mailq.core.states import AUTH_STATES, Kind, State
from mailq.core.traffic.routes import Route, Tls

THRESHOLD = 3
"""Failures in a row that open the breaker."""

PROBE_TIME = 15.0
"""Seconds for which a probe counts as under way."""

PROBE_WAIT = 5.0
"""Seconds after which those who wait for a probe ask again."""

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

    def wait(self, now: float) -> float:
        """Return the seconds until a job that is not let through should ask again: soon while a probe is under way."""
        left = self.until - now
        began = self.until - self.pause
        return min(left, PROBE_WAIT) if self.probed and now - began < PROBE_TIME else left


def about_login(route: Route, failure: Failure) -> bool:
    """Tell whether a failure is about the login: the server refuses it, or is not trusted with it.

    Every job of that server meets the same, so a few attempts tell as much as thousands.
    """
    if route.login is None or failure.kind is not Kind.ERROR:
        return False
    without = route.tls is Tls.OPPORTUNISTIC  # it goes on without TLS then
    return failure.state in AUTH_STATES or (failure.state is State.STARTTLS and not without)


def login_refusal(route: Route, failure: Failure) -> Failure:
    """Return the failure as it is remembered for other jobs: without the server's words, which may hold a secret."""
    login, target = route.login, route.target
    assert login is not None
    text = f"{target.host} port {target.port}: login as {login.username} failed in state {failure.state} with "
    return Failure(failure.state, failure.kind, f"{text}{failure.code} {failure.status}", code=failure.code)


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
