"""Traffic decisions for destinations: limits, breakers, pauses and refused logins.

`core.traffic.limits`, `core.traffic.breaker` and `core.traffic.pause` make the decisions, and are pure. The governor
remembers their state between the jobs of this process, bounded in octets. The `Limits` port counts rates and
connections for all processes together (see `smtp.session_pool`).
"""

from collections.abc import Sequence
from time import monotonic

from mailq.core.bounded import BoundedDict
from mailq.core.smtp.failure import Cause, Delayed, Failure
from mailq.core.states import ORDER, State
from mailq.core.traffic.breaker import Breaker, about_login, counts, login_refusal, remembered
from mailq.core.traffic.limits import Allowance, LimitRule, allowance
from mailq.core.traffic.pause import Pause, paused
from mailq.core.traffic.routes import Login, Route, Source, Target

PLAINTEXT_MEMORY = 600.0
"""Seconds for which sessions with a target use no TLS after its handshake failed."""

MEGABYTE = 1024 * 1024


class Governor:
    """The traffic decisions of one process."""

    def __init__(self, rules: Sequence[LimitRule]) -> None:
        self._rules = tuple(rules)
        self.paces = any(rule.message_rate for rule in rules)
        """True if any rule limits messages a second."""
        self._by_address = any(rule.network for rule in rules)
        self._allowances: BoundedDict[tuple[str | None, str | None, str, tuple[str, ...], str, str], Allowance] = (
            BoundedDict(8 * MEGABYTE)
        )
        self._breakers: BoundedDict[tuple[str | None, str, int], Breaker] = BoundedDict()
        self._logins: BoundedDict[tuple[str, int, Login], Breaker] = BoundedDict(MEGABYTE)
        self._plaintext: BoundedDict[tuple[str, int], float] = BoundedDict(MEGABYTE)
        self._pauses: BoundedDict[tuple[str | None, tuple[str, ...]], Pause] = BoundedDict(2 * MEGABYTE)

    def allowance(self, source: Source, domain: str, hosts: tuple[str, ...], target: Target) -> Allowance:
        """Return the allowance of `source` towards a target of `domain`, which `hosts` serve."""
        name = "" if target.host in hosts else target.host
        key = (source.ip, source.pool, domain, hosts, name, target.ip if self._by_address else "")
        found = self._allowances.get(key)
        if found is None:
            found = allowance(self._rules, source.ip or "*", domain, hosts, source.pool, target)
            self._allowances.remember(key, found)
        return found

    def unpaused(
        self, sources: Sequence[Source], hosts: tuple[str, ...], targets: Sequence[Target]
    ) -> Sequence[Source]:
        """Return the sources for which the site of `hosts`, with these targets, is not paused.

        Raises:
            Delayed: all sources that reach a target are paused; the job returns after the first pause.
        """
        if not self._pauses:
            return sources
        now = monotonic()
        able = [source for source in sources if any(source.reaches(target) for target in targets)]
        pauses = [self._pauses.get(_towards(source, hosts)) for source in able]
        free = [each for each, pause in zip(able, pauses, strict=True) if pause is None or not pause.left(now)]
        if free or not able:
            return free or sources
        first = min((pause for pause in pauses if pause is not None), key=lambda pause: pause.until)
        raise Delayed(first.left(now), Cause.PAUSE, first.reason)

    def pause(self, source: Source, hosts: tuple[str, ...], seconds: float, reason: str) -> None:
        """Pause a site for a source, or for its whole pool, for about so many seconds (see `core.traffic.pause`)."""
        key = _towards(source, hosts)
        self._pauses.remember(key, paused(self._pauses.get(key), seconds, reason, monotonic()))

    def spared(self, route: Route) -> tuple[Failure, float] | None:
        """Return the remembered failure of a target with an open breaker, and the seconds until the next probe."""
        breaker = self._breakers.get(route.ends)
        if breaker is None or breaker.reason is None or not breaker.is_open(now := monotonic()):
            return None
        return remembered(breaker.reason), breaker.until - now

    def admit(self, route: Route) -> None:
        """Admit a job to a login, unless the login was refused lately; then one job, the probe, logs in for all.

        Raises:
            Delayed: the job is delayed without an attempt.
        """
        key = _login(route)
        breaker = self._logins.get(key) if key else None
        if breaker is not None and breaker.is_open(now := monotonic()):
            raise _login_later(breaker, now)

    def probe(self, route: Route) -> None:
        """Record that a job connects; with a half-open breaker it is the probe, and other jobs wait for its outcome."""
        if (key := _login(route)) and (login := self._logins.get(key)) is not None:
            self._logins.remember(key, login.probing(monotonic()))
        breaker = self._breakers.get(route.ends)
        if breaker is not None:
            self._breakers.remember(route.ends, breaker.probing(monotonic()))

    def connected(self, route: Route) -> None:
        """Record that a session was opened, and close the breakers of its target and login."""
        self._breakers.forget(route.ends)
        if key := _login(route):
            self._logins.forget(key)

    def failed(self, route: Route, failure: Failure) -> None:
        """Record that a session could not be opened.

        Raises:
            Delayed: the login is known to be refused, so the job need not spend an attempt.
        """
        if about_login(route, failure) and (key := _login(route)):
            self._login_failed(key, login_refusal(route, failure))
        if counts(failure):
            self._breakers.remember(route.ends, self._breakers.get(route.ends, Breaker()).failed(failure, monotonic()))
        elif ORDER[failure.state] > ORDER[State.CONNECT]:
            self._breakers.forget(route.ends)  # the target accepts connections, though its reply is a refusal

    def _login_failed(self, key: tuple[str, int, Login], refusal: Failure) -> None:
        """Record a refused login; a job that began before the breaker opened is delayed."""
        now, known = monotonic(), self._logins.get(key, Breaker())
        breaker = known.failed(refusal, now)
        self._logins.remember(key, breaker)
        if breaker is known:
            raise _login_later(known, now)

    def without_tls(self, route: Route) -> bool:
        """Return whether a TLS handshake with this target failed lately."""
        return monotonic() < self._plaintext.get((route.target.ip, route.target.port), 0.0)

    def handshake_failed(self, route: Route) -> None:
        """Record that a TLS handshake failed, so that the next jobs use no TLS."""
        self._plaintext.remember((route.target.ip, route.target.port), monotonic() + PLAINTEXT_MEMORY)


def _towards(source: Source, hosts: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return the key of a pause: a pool, or a source without one, and a site."""
    return (f"pool {source.pool}" if source.pool else source.ip), hosts


def _login(route: Route) -> tuple[str, int, Login] | None:
    """Return host, port and login of a route; None without a login."""
    return (route.target.host, route.target.port, route.login) if route.login else None


def _login_later(breaker: Breaker, now: float) -> Delayed:
    reason = breaker.reason.text if breaker.reason else "login refused"
    return Delayed(breaker.wait(now), Cause.LOGIN, reason)
