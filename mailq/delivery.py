"""The pipeline: one job in, exactly one result out. Read `_walk`, `_reach`, `_converse`: that is a job's way.

`attempt` returns, it never reports: a function returns once, and that is the whole proof of
"exactly one result". Every expected ending is a `Failure`; a bug costs one attempt and is counted. No
attempt at all (`Postponed`) is made when the traffic limits say later. What the result means is for
`core.verdict`, what becomes of the job for `settlement`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from time import monotonic

from mailq.clock import Clock
from mailq.core.failure import Failure, Postponed
from mailq.core.job import Job, Smarthost
from mailq.core.limits import Allowance
from mailq.core.mime import Content, extract
from mailq.core.policy import Policy
from mailq.core.recent import Recent
from mailq.core.reply import Reply
from mailq.core.result import Result, Trail, accepted, failed
from mailq.core.routing import Route, Source, Target, Tls, try_next
from mailq.core.states import ORDER, Kind, State
from mailq.ports import Now, Observer, Resolver, Sources
from mailq.smtp.envelope import mail_from, rcpt_to
from mailq.smtp.pool import Held, Pool
from mailq.smtp.session import Session
from mailq.stages import bind, dns, process, storage
from mailq.traffic.governor import Governor

SHARED = 1.0
"""Seconds for which jobs for one domain share what was found of it, the order of its targets included."""

Destination = tuple[tuple[str, ...], Sequence[Target]]
"""The site (sorted MX hosts) and the targets in try order."""


@dataclass(slots=True)
class _Errand:
    """One attempt's job with what was made ready for the wire."""

    job: Job
    trail: Trail
    sources: Sequence[Source]
    content: Content
    smarthost: Smarthost | None
    hosts: tuple[str, ...]
    targets: Sequence[Target]

    @property
    def destination(self) -> str:
        """The domain by which limits are looked up: the recipient's, or the smarthost."""
        return self.smarthost.hostname if self.smarthost else self.job.recipient.domain


class Delivery:
    """Makes attempts; everything it needs of the world comes in through ports."""

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        sources: Sources,
        governor: Governor,
        pool: Pool,
        observer: Observer,
        now: Now,
        rng: Random,
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._sources = sources
        self._governor = governor
        self._pool = pool
        self._observer = observer
        self._now = now
        self._rng = rng
        self._clock = Clock(policy.attempt_timeout)
        self._routes: Recent[tuple[str | None, str, str, str, int], Route] = Recent()
        self._destinations: Recent[tuple[str, int], tuple[float, Destination | None]] = Recent()

    @property
    def pool(self) -> Pool:
        """The SMTP sessions, to be counted, swept and in the end closed."""
        return self._pool

    async def attempt(self, job: Job, trail: Trail, *, returned: bool = False) -> Result | Postponed:
        """Return what one attempt to deliver `job` came to, or that none is made now; raises only cancellation.

        `returned` tells that the job was postponed before and goes ahead of those who were not.
        """
        try:
            with self._clock:
                reply = await self._walk(job, trail, returned=returned)
            return accepted(trail, reply, time=self._now(), attempt=job.attempt)
        except Postponed as later:
            return later
        except Failure as trouble:
            failure = trouble
        except TimeoutError:
            failure = Failure(trail.state, Kind.TIMEOUT, f"the attempt took more than {self._clock.limit:g} s")
        except Exception as error:  # noqa: BLE001 - a bug costs one attempt and never a job
            self._observer.bug(trail.state, error)
            failure = Failure(trail.state, Kind.ERROR, "internal error", code=451, status="4.3.0")
        return failed(trail, failure, time=self._now(), attempt=job.attempt)

    async def _walk(self, job: Job, trail: Trail, *, returned: bool) -> Reply:
        trail.enter(State.PROCESS)
        sources = process.sources(job, self._policy, self._sources, self._now())
        trail.enter(State.STORAGE)
        content = storage.content(job, self._policy.max_message_size)
        trail.extracted = extract(content.content)
        trail.enter(State.DNS)
        smarthost = job.smarthost or self._policy.smarthost
        hosts, targets = await self._resolve(job, smarthost, trail)
        errand = _Errand(job, trail, sources, content, smarthost, hosts, targets)
        await self._pace(errand, returned=returned)
        return await self._reach(errand)

    async def _reach(self, errand: _Errand) -> Reply:
        """Try target after target; the ending that got furthest is the one to be told."""
        trail = errand.trail
        endings: list[tuple[Failure, Trail]] = []
        for target in errand.targets:
            trail.forget_connection()
            try:
                return await self._converse(errand, target)
            except Failure as failure:
                endings.append((failure, replace(trail)))
                if not try_next(failure, in_doubt=trail.in_doubt):
                    break
        furthest, known = max(endings, key=lambda ending: ORDER[ending[0].state])
        trail.facts, trail.in_doubt = known.facts, known.in_doubt
        raise furthest

    async def _converse(self, errand: _Errand, target: Target) -> Reply:
        """Send the message to one target over a session, a used one if there is; a stale one costs nothing."""
        trail, job = errand.trail, errand.job
        source = bind.choose(errand.sources, target, self._rng)
        route = self._route(source, target, errand.smarthost)
        allowance = self._governor.allowance(source, errand.destination, errand.hosts)
        while True:
            held = await self._session(trail, route, allowance)
            session = held.session
            try:
                if allowance.message_rate:
                    await self._pool.depart(allowance.message_rate_key, allowance.message_rate)
                mail = mail_from(job.envelope, job.recipient, errand.content, job.dsn, session.offered)
                rcpt = rcpt_to(job.recipient, job.dsn, session.offered)
                return await session.deliver(trail, mail, rcpt, errand.content.content)
            except Failure as failure:
                if not _stale(session, failure):
                    raise
                trail.forget_connection()
            finally:
                self._pool.release(held)

    def _route(self, source: Source, target: Target, smarthost: Smarthost | None) -> Route:
        """Return the route; one that no job's own smarthost shapes is the same for every message, so it is kept."""
        key = (source.ip, source.ehlo, target.host, target.ip, target.port)
        route = self._routes.get(key) if smarthost is self._policy.smarthost else None
        if route is None:
            route = Route(source, target, self._policy.tls_towards(smarthost), self._policy.login(smarthost))
            if smarthost is self._policy.smarthost:
                self._routes.remember(key, route)
        return route

    async def _session(self, trail: Trail, route: Route, allowance: Allowance) -> Held:
        """Return a session on the route, without TLS where that is opportunistic and does not come about."""
        falls_back = route.tls is Tls.OPPORTUNISTIC and self._policy.retry_plaintext
        if falls_back and self._governor.without_tls(route):
            return await self._open(trail, replace(route, tls=Tls.NONE), allowance)
        try:
            return await self._open(trail, route, allowance)
        except Failure as failure:
            if failure.state is not State.STARTTLS or not falls_back:
                raise
            self._governor.handshake_failed(route)
            trail.forget_connection()
            return await self._open(trail, replace(route, tls=Tls.NONE), allowance)

    async def _open(self, trail: Trail, route: Route, allowance: Allowance) -> Held:
        self._governor.check(route)
        found = await self._pool.find(route, allowance)
        if found is not None:
            return found
        try:
            self._governor.probe(route)
        except Failure:
            self._pool.vacate(allowance)
            raise
        try:
            held = await self._pool.open(trail, route, allowance)
        except Failure as failure:
            self._governor.failed(route, failure)
            raise
        self._governor.connected(route)
        return held

    async def _pace(self, errand: _Errand, *, returned: bool) -> None:
        """Wait for this message's turn where messages a second are limited."""
        source = next((each for each in errand.sources if each.reaches(errand.targets[0])), errand.sources[0])
        allowance = self._governor.allowance(source, errand.destination, errand.hosts)
        if allowance.message_rate:
            await self._pool.pace(allowance.message_rate_key, allowance.message_rate, returned=returned)

    async def _resolve(self, job: Job, smarthost: Smarthost | None, trail: Trail) -> Destination:
        """Return the site and the targets in try order; within a second all jobs for a domain share the answer."""
        key = (smarthost.hostname, smarthost.port) if smarthost else (job.recipient.domain, 0)
        until, known = self._destinations.get(key, (0.0, None))
        now = monotonic()
        if known is not None and now < until:
            trail.spent(State.DNS, 0.0)
            return known
        try:
            async with asyncio.timeout(self._policy.dns_timeout):
                found = await self._look_up(*key) if smarthost else await self._look_up(job.recipient.domain, None)
        except TimeoutError:
            raise Failure(State.DNS, Kind.TIMEOUT) from None
        finally:
            trail.spent(State.DNS, monotonic() - now)
        self._destinations.remember(key, (monotonic() + SHARED, found))
        return found

    async def _look_up(self, name: str, port: int | None) -> Destination:
        """Return where mail for a domain goes, or where a host is that has a port already."""
        policy, resolver, rng = self._policy, self._resolver, self._rng
        family, most = policy.family, policy.max_targets
        if port is not None:
            return (name,), await dns.host_targets(name, port, resolver, rng=rng, family=family, max_targets=most)
        targets = await dns.targets(
            name, resolver, rng=rng, port=policy.port, family=family, max_targets=most, overrides=policy.overrides
        )
        return await dns.site(name, resolver, policy.overrides), targets


def _stale(session: Session, failure: Failure) -> bool:
    """Tell whether a used session turned out to be closed by the peer: the message has not been offered yet."""
    closing = failure.reply is not None and failure.reply.closing
    return session.messages > 1 and failure.state is State.MAILFROM and (failure.kind is Kind.LOST or closing)
