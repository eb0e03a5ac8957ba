"""What is known of destinations: how much is allowed towards them, and what not to try for a while.

Decisions are pure and stand in `core.limits` and `core.breaker`; here is what is remembered between
jobs of this process, bounded. Rates and connections are counted where all processes see them, by the
`Limits` port (see `smtp.pool`).
"""

from collections.abc import Sequence
from time import monotonic

from mailq.core.breaker import Breaker, counts, remembered
from mailq.core.failure import Failure
from mailq.core.limits import Allowance, LimitRule, allowance
from mailq.core.recent import Recent
from mailq.core.routing import Route, Source

PLAINTEXT_MEMORY = 600.0
"""Seconds for which a target whose TLS handshake failed is spoken to without."""


class Governor:
    """The traffic decisions of one process."""

    def __init__(self, rules: Sequence[LimitRule]) -> None:
        self._rules = tuple(rules)
        self._allowances: Recent[tuple[str | None, str | None, str, tuple[str, ...]], Allowance] = Recent()
        self._breakers: Recent[tuple[str | None, str, int], Breaker] = Recent()
        self._plaintext: Recent[tuple[str, int], float] = Recent()

    def allowance(self, source: Source, domain: str, hosts: tuple[str, ...]) -> Allowance:
        """Return what `source` may do towards `domain`, which is served by `hosts`."""
        key = (source.ip, source.pool, domain, hosts)
        found = self._allowances.get(key)
        if found is None:
            found = allowance(self._rules, source.ip or "*", domain, hosts, source.pool)
            self._allowances.remember(key, found)
        return found

    def check(self, route: Route) -> None:
        """Spare a job the wait for a target that takes no connections.

        Raises:
            Failure: the one remembered.
        """
        breaker = self._breakers.get(_target(route))
        now = monotonic()
        if breaker is not None and breaker.reason is not None and breaker.is_open(now):
            raise remembered(breaker.reason, breaker.until - now)

    def probe(self, route: Route) -> None:
        """Let a job connect, and if it is the first after a pause, let the others wait for what it finds.

        Raises:
            Failure: another one was first.
        """
        self.check(route)
        breaker = self._breakers.get(_target(route))
        if breaker is not None:
            self._breakers.remember(_target(route), breaker.probing(monotonic()))

    def connected(self, route: Route) -> None:
        """Note that a conversation came about."""
        self._breakers.pop(_target(route), None)

    def failed(self, route: Route, failure: Failure) -> None:
        """Note that none came about."""
        if counts(failure):
            key = _target(route)
            self._breakers.remember(key, self._breakers.get(key, Breaker()).failed(failure, monotonic()))

    def without_tls(self, route: Route) -> bool:
        """Tell whether a handshake with this target failed lately."""
        return monotonic() < self._plaintext.get((route.target.ip, route.target.port), 0.0)

    def handshake_failed(self, route: Route) -> None:
        """Note that a handshake failed, so that the next job need not find out again."""
        self._plaintext.remember((route.target.ip, route.target.port), monotonic() + PLAINTEXT_MEMORY)


def _target(route: Route) -> tuple[str | None, str, int]:
    return route.source.ip, route.target.ip, route.target.port
