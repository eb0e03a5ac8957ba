"""The pipeline: one job in, exactly one result out. Read `_walk`, then `_try`.

`attempt` returns, it never reports: a function returns once, and that is the whole proof of
"exactly one result". Every expected ending is a `Failure`; a bug costs one attempt and is counted.
What the result means is for `core.verdict`, what becomes of the job for `settlement`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from time import monotonic

from mailq.core.failure import Failure
from mailq.core.job import Job
from mailq.core.mime import Content, extract
from mailq.core.policy import Policy
from mailq.core.reply import Reply
from mailq.core.result import Result, Trail, accepted, failed
from mailq.core.routing import Route, Source, Target, Tls, try_next
from mailq.core.states import ORDER, Kind, State
from mailq.ports import Now, Observer, Resolver, Sources
from mailq.smtp.envelope import mail_from, rcpt_to
from mailq.smtp.pool import Pool
from mailq.stages import bind, dns, process, storage


class Delivery:
    """Makes attempts; everything it needs of the world comes in through ports."""

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        sources: Sources,
        pool: Pool,
        observer: Observer,
        now: Now,
        rng: Random,
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._sources = sources
        self._pool = pool
        self._observer = observer
        self._now = now
        self._rng = rng

    @property
    def open_sessions(self) -> int:
        """The number of SMTP connections."""
        return self._pool.open_sessions

    async def attempt(self, job: Job, trail: Trail) -> Result:
        """Return what one attempt to deliver `job` came to; raises nothing but cancellation."""
        limit = self._policy.attempt_timeout
        try:
            async with asyncio.timeout(limit):
                reply = await self._walk(job, trail)
            return accepted(trail, reply, time=self._now(), attempt=job.attempt)
        except Failure as trouble:
            failure = trouble
        except TimeoutError:
            failure = Failure(trail.state, Kind.TIMEOUT, f"the attempt took more than {limit:g} s")
        except Exception as error:  # noqa: BLE001 - a bug costs one attempt and never a job
            self._observer.bug(trail.state, error)
            failure = Failure(trail.state, Kind.ERROR, "internal error", code=451, status="4.3.0")
        return failed(trail, failure, time=self._now(), attempt=job.attempt)

    async def _walk(self, job: Job, trail: Trail) -> Reply:
        trail.enter(State.PROCESS)
        sources = process.sources(job, self._policy, self._sources, self._now())
        trail.enter(State.STORAGE)
        content = storage.content(job, self._policy.max_message_size)
        trail.extracted = extract(content.content)
        trail.enter(State.DNS)
        targets = await self._resolve(job, trail)
        endings: list[tuple[Failure, Trail]] = []
        for target in targets:
            trail.forget_connection()
            try:
                return await self._try(job, trail, content, sources, target)
            except Failure as failure:
                endings.append((failure, replace(trail)))
                if not try_next(failure, in_doubt=trail.in_doubt):
                    break
        furthest, facts = max(endings, key=lambda ending: ORDER[ending[0].state])
        trail.facts, trail.in_doubt = facts.facts, facts.in_doubt
        raise furthest

    async def _try(self, job: Job, trail: Trail, content: Content, sources: Sequence[Source], target: Target) -> Reply:
        trail.enter(State.BIND)
        smarthost = job.smarthost or self._policy.smarthost
        source = bind.choose(sources, target, self._rng)
        route = Route(source, target, self._policy.tls_towards(smarthost), self._policy.login(smarthost))
        try:
            session = await self._pool.acquire(trail, route)
        except Failure as failure:
            if failure.state is not State.STARTTLS or route.tls is not Tls.OPPORTUNISTIC:
                raise
            if not self._policy.retry_plaintext:
                raise
            trail.forget_connection()
            session = await self._pool.acquire(trail, replace(route, tls=Tls.NONE))
        try:
            mail = mail_from(job.envelope, job.recipient, content, job.dsn, session.offered)
            rcpt = rcpt_to(job.recipient, job.dsn, session.offered)
            return await session.deliver(trail, mail, rcpt, content.content)
        finally:
            self._pool.release(session)

    async def _resolve(self, job: Job, trail: Trail) -> Sequence[Target]:
        """Return the targets in try order, within the time that state dns has."""
        policy = self._policy
        smarthost = job.smarthost or policy.smarthost
        started = monotonic()
        try:
            async with asyncio.timeout(policy.dns_timeout):
                if smarthost:
                    return await dns.host_targets(
                        smarthost.hostname,
                        smarthost.port,
                        self._resolver,
                        rng=self._rng,
                        family=policy.family,
                        max_targets=policy.max_targets,
                    )
                return await dns.targets(
                    job.recipient.domain,
                    self._resolver,
                    rng=self._rng,
                    port=policy.port,
                    family=policy.family,
                    max_targets=policy.max_targets,
                    overrides=policy.overrides,
                )
        except TimeoutError:
            raise Failure(State.DNS, Kind.TIMEOUT) from None
        finally:
            trail.spent(State.DNS, monotonic() - started)
