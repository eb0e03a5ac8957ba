"""The pipeline: one job in, exactly one result out. `_walk`, `_aim`, `_reach` and `_converse` are its steps.

`attempt` returns its result. A function returns once, which is the whole proof of "exactly one result". Every expected
ending is a `Failure`; a bug costs one attempt and is counted. The job is `Delayed` without an attempt while the traffic
limits do not allow one, or while the destination is paused. `core.answers.verdict` decides what the result means.
`worker.settlement` publishes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import NamedTuple

from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.verdict import judge
from mailq.core.bounded import BoundedDict
from mailq.core.content.mime import Content, extract
from mailq.core.jobs.job import Job, Smarthost
from mailq.core.journal.records import JournalError
from mailq.core.results.result import Result, Trail, accepted, failed
from mailq.core.smtp.failure import Cause, Delayed, Failure, bare
from mailq.core.smtp.reply import Reply
from mailq.core.smtp.session_limit import about_session, names_limit
from mailq.core.states import ORDER, Kind, State
from mailq.core.traffic.limits import Allowance
from mailq.core.traffic.routes import Route, Source, Target, Tls
from mailq.delivery.attempt_timeout import SharedTimeout
from mailq.delivery.destinations import Destinations
from mailq.delivery.governor import Governor
from mailq.delivery.offload import offloaded
from mailq.delivery.openings import Openings
from mailq.delivery.policy import Policy
from mailq.delivery.smtp.auth import Unfinished
from mailq.delivery.smtp.session import Session
from mailq.delivery.smtp.session_pool import Held, SessionPool
from mailq.delivery.stages import bind, process, storage
from mailq.ports.host import STOPS, Now, Resolver, Sources
from mailq.ports.journal import HandoverGuard
from mailq.ports.observer import Observer

UNRECORDED = 5.0
"""Seconds for which a job is delayed whose hand-over could not be recorded."""

# States that each message needs: in Python 3.11 a member of an `Enum` costs a call.
_PROCESS, _STORAGE, _DNS, _MESSAGE = State.PROCESS, State.STORAGE, State.DNS, State.MESSAGE
_OPPORTUNISTIC = Tls.OPPORTUNISTIC


class _Ending(NamedTuple):
    """The failure at one target, the trail until then, and the source, if one was chosen."""

    failure: Failure
    trail: Trail
    source: Source | None = None

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The greatest rank is reported: first of all an ending after which the receiver may have the message.

        The ending at a server that is unable to take the message ranks last: an unreachable one may be able to.
        """
        doubt = self.trail.in_doubt and self.failure.reply is None
        return doubt, not self.failure.unable, ORDER[self.failure.state]


class _Spent(NamedTuple):
    """The failure of a used session after `before` messages; `open`: the receiver did not close it."""

    failure: Failure
    before: int
    open: bool


@dataclass(slots=True)
class _Errand:
    """The job of one attempt with the values prepared for the wire.

    `destination` is the domain by which limits are looked up: the recipient's, or the smarthost. `source` is the source
    in use. `earlier` are the endings before the attempt fell back to the smarthost. `departed` says that the message
    has had its turn in a limited rate.
    """

    job: Job
    trail: Trail
    claim: HandoverGuard
    sources: Sequence[Source]
    content: Content
    returned: bool
    smarthost: Smarthost | None = None
    destination: str = ""
    hosts: tuple[str, ...] = ()
    targets: Sequence[Target] = ()
    departed: bool = False
    source: Source | None = None
    earlier: tuple[_Ending, ...] = ()


class Delivery:
    """Makes attempts; ports connect it to the world."""

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        sources: Sources,
        governor: Governor,
        pool: SessionPool,
        meaning: Interpreter,
        observer: Observer,
        now: Now,
        rng: Random,
    ) -> None:
        self._policy = policy
        self._meaning = meaning
        self._sources = sources
        self._governor = governor
        self._pool = pool
        self._openings = Openings(pool.most_slow)
        self._observer = observer
        self._now = now
        self._rng = rng
        self._clock = SharedTimeout(policy.attempt_timeout)
        self._routes: BoundedDict[tuple[str | None, str, str, str, int, str], Route] = BoundedDict()
        self._destinations = Destinations(policy, resolver, rng)

    @property
    def pool(self) -> SessionPool:
        """The SMTP sessions, which the worker counts, sweeps and at last closes."""
        return self._pool

    async def attempt(
        self, job: Job, trail: Trail, claim: HandoverGuard, *, returned: bool = False
    ) -> Result | Delayed:
        """Return the result of one attempt to deliver `job`, or its delay; raises only cancellation.

        `claim` permits and records the hand-over. `returned` says that the job was delayed before; such a job goes
        before others.
        """
        try:
            with self._clock:
                reply = await self._walk(job, trail, claim, returned=returned)
            state = State.RCPTTO if job.dryrun else _MESSAGE
            return accepted(trail, reply, time=self._now(), attempt=job.attempt, state=state)
        except Delayed as later:
            return bare(later)
        except JournalError as problem:
            return Delayed(UNRECORDED, Cause.JOURNAL, str(problem))
        except Failure as problem:
            failure = bare(problem)
        except TimeoutError:
            failure = Failure(trail.state, Kind.TIMEOUT, f"the attempt took more than {self._clock.limit:g} s")
        except STOPS:
            raise
        except BaseException as error:  # noqa: BLE001 - a bug, a library's panic too, costs one attempt and never a job
            self._observer.bug(trail.state, error)
            failure = Failure(trail.state, Kind.ERROR, "internal error", code=451, status="4.3.0")
            bug = f"{type(error).__name__}: {error}"[:500]
            return failed(trail, failure, time=self._now(), attempt=job.attempt, bug=bug)
        return failed(trail, failure, time=self._now(), attempt=job.attempt)

    async def _walk(self, job: Job, trail: Trail, claim: HandoverGuard, *, returned: bool) -> Reply:
        trail.state = _PROCESS
        sources = process.sources(job, self._policy, self._sources, self._now())
        trail.state = _STORAGE
        size = len(job.mime) if isinstance(job.mime, str) else 0
        needs = job, trail, self._policy.max_message_size, self._policy.message
        content = await offloaded(size, partial(storage.content, *needs))
        trail.extracted = extract(content.content)
        errand = _Errand(job, trail, claim, sources, content, returned)
        try:
            await self._aim(errand, job.smarthost or self._policy.smarthost)
        except Failure as failure:
            if not self._meaning.falls_back(job, failure, trail):
                raise
            return await self._fall_back(errand, [_Ending(bare(failure), replace(trail))])
        return await self._reach(errand)

    async def _aim(self, errand: _Errand, smarthost: Smarthost | None) -> None:
        """Look up the targets of the message and the sources that may be used now, and wait for its turn."""
        errand.trail.state = _DNS
        errand.smarthost = smarthost
        errand.destination = smarthost.hostname if smarthost else errand.job.recipient.domain
        port = smarthost.port if smarthost else None
        found = self._destinations.known(errand.destination, port, errand.trail)
        errand.hosts, errand.targets = found or await self._destinations.find(errand.destination, port, errand.trail)
        errand.trail.hosts = errand.hosts
        if smarthost and errand.destination not in errand.hosts:  # an alias: patterns may name either
            errand.trail.hosts = (errand.destination, *errand.hosts)
        errand.sources = self._governor.unpaused(errand.sources, errand.trail.hosts, errand.targets)
        if self._governor.paces:
            await self._pace(errand)

    async def _reach(self, errand: _Errand) -> Reply:
        """Try target after target, and after the last one the fallback smarthost, if one is configured."""
        endings = list(errand.earlier)
        silence: Delayed | None = None
        for target in errand.targets:
            errand.trail.forget_connection()
            try:
                return await self._converse(errand, target)
            except Delayed as later:
                if later.cause is Cause.LOGIN and endings:
                    break  # a refused login must not hide the reply of another server
                if later.cause is not Cause.SILENCE:
                    raise
                silence = bare(later)
            except Failure as failure:
                # A smarthost that refuses before MAIL FROM says nothing about the message.
                if not errand.earlier or ORDER[failure.state] >= ORDER[State.MAILFROM]:
                    endings.append(_Ending(bare(failure), replace(errand.trail), errand.source))
                if not self._meaning.falls_back(errand.job, failure, errand.trail):
                    break
        else:
            if silence is not None and not endings:
                raise silence
            return await self._fall_back(errand, endings)
        raise self._reported(errand, endings)

    async def _fall_back(self, errand: _Errand, endings: Sequence[_Ending]) -> Reply:
        """Try the fallback smarthost, or raise the failure of the attempt without it."""
        smarthost = self._policy.fallback
        if smarthost is None or errand.smarthost is not None:
            raise self._reported(errand, endings)
        backup = replace(errand, earlier=tuple(endings))
        try:
            await self._aim(backup, smarthost)
        except (Failure, Delayed):
            raise self._reported(errand, endings) from None
        return await self._reach(backup)

    def _reported(self, errand: _Errand, endings: Sequence[_Ending]) -> Failure:
        """Return the failure of the greatest rank, with its facts in the trail; pause the site if a pattern says so."""
        furthest, known, source = max(endings, key=lambda ending: ending.rank)
        trail = errand.trail
        trail.facts, trail.in_doubt, trail.hosts, trail.pool = known.facts, known.in_doubt, known.hosts, known.pool
        trail.said = known.said
        if source is not None and self._meaning.patterns.pauses:
            self._learn(errand.job, trail, furthest, source)
        return furthest

    def _learn(self, job: Job, trail: Trail, failure: Failure, source: Source) -> None:
        """Pause the destination until the retry of this job, if a pattern says that the failure is not individual."""
        now = self._now()
        result = failed(trail, failure, time=now, attempt=job.attempt)
        reading = self._meaning.of(job, result)
        verdict = judge(job, result, self._policy, now, self._rng, reading.effects, reading.flags)
        if reading.effects.individual is False and verdict.at is not None:
            patterns = ", ".join(reading.effects.patterns)
            seconds = (verdict.at - now).total_seconds()
            self._governor.pause(source, trail.hosts, seconds, f"destination paused by pattern {patterns}")

    async def _converse(self, errand: _Errand, target: Target) -> Reply:
        """Send the message to one target over a session, a used one if the pool has one.

        If a used session has ended, or a refusal may concern only that session, a new session is tried once.
        """
        trail, job = errand.trail, errand.job
        errand.source = None
        source = errand.source = bind.choose(errand.sources, target, self._rng, _pinned(job))
        trail.pool = source.pool
        if source.ip is not None:
            trail.facts["from"] = source.ip
        allowance = self._governor.allowance(source, errand.destination, errand.hosts, target)
        route = self._route(source, target, errand.smarthost, allowance.sharing)
        spent: _Spent | None = None
        while True:
            held = await self._session(trail, route, allowance, fresh=spent is not None)
            session = held.session
            try:
                if allowance.message_rate and not errand.departed:
                    errand.departed = True  # once: a stale session or another target must not cost a second turn
                    await self._pool.depart(allowance.message_rate_key, allowance.message_rate)
                errand.claim.begin()
                if job.dryrun:
                    reply = await session.probe(trail, job, errand.content, self._policy.message)
                else:
                    reply = await session.deliver(trail, job, errand.content, errand.claim, self._policy.message)
            except Failure as failure:
                if spent is None and _about_session(session, failure):
                    spent = _Spent(bare(failure), session.messages - 1, open=session.reusable)
                    session.spent = True
                    trail.forget_connection()
                    continue
                if spent is not None and ORDER[failure.state] > ORDER[spent.failure.state]:
                    self._learn_limit(target, allowance, spent)
                raise
            finally:
                self._pool.release(held)
            if spent is not None:
                self._learn_limit(target, allowance, spent)
            return reply

    def _learn_limit(self, target: Target, allowance: Allowance, spent: _Spent) -> None:
        """Learn how many messages a session may carry, after a new session got further than the used one."""
        reply = spent.failure.reply
        named = reply is not None and names_limit(reply)
        if named or (reply is not None and spent.open):  # without a reply the session may have been idle for too long
            limit = self._pool.session_limits.refused(allowance, spent.before, named=named)
            if limit is not None:
                self._observer.session_limit(target.host, limit)

    def _route(self, source: Source, target: Target, smarthost: Smarthost | None, sharing: str) -> Route:
        """Return the route; a route without a smarthost of the job's own is the same for all messages, and cached."""
        key = (source.ip, source.ehlo, target.host, target.ip, target.port, sharing)
        route = self._routes.get(key) if smarthost is self._policy.smarthost else None
        if route is None:
            policy = self._policy
            tls, login, trust = policy.tls_towards(smarthost), policy.login(smarthost), policy.trust(smarthost)
            falls_back = tls is _OPPORTUNISTIC and policy.retry_plaintext and login is None
            route = Route(source, target, tls, login, sharing, falls_back, trust)
            if smarthost is self._policy.smarthost:
                self._routes.remember(key, route)
        return route

    async def _session(self, trail: Trail, route: Route, allowance: Allowance, *, fresh: bool) -> Held:
        """Return a session on the route, a new one if `fresh`; without TLS if TLS fails and the route falls back.

        TLS works once the server has answered EHLO inside it. With TLS 1.3, a server that wants a client certificate
        closes the connection after the handshake and before that answer.
        """
        if route.falls_back and self._governor.without_tls(route):
            return await self._session(trail, _in_clear(route), allowance, fresh=fresh)
        self._delay_site(trail, route)
        if not self._pool.serving(route):
            await self._openings.admitted(route.ends)
        found = await self._pool.find(route, allowance, fresh=fresh)
        if found is not None:
            return found
        try:
            return await self._open(trail, route, allowance)
        except Failure as failure:
            if not route.falls_back or not (failure.state is State.STARTTLS or failure.tls_unusable):
                raise
        self._governor.handshake_failed(route)
        trail.forget_connection()
        return await self._session(trail, _in_clear(route), allowance, fresh=fresh)

    async def _open(self, trail: Trail, route: Route, allowance: Allowance, *, admitted: bool = False) -> Held:
        """Return a new session in the place that `find` took; `admitted`: it continues the login of the one before."""
        try:
            self._delay_site(trail, route)  # another job may have found that out meanwhile
            if not admitted:
                self._governor.admit(route)
        except (Failure, Delayed):
            self._pool.vacate(allowance)
            raise
        self._governor.probe(route)
        try:
            async with self._openings.opening(route.ends):
                held = await self._pool.open(trail, route, allowance)
        except Unfinished as failure:  # the server closed after one mechanism: the next mechanism gets a new connection
            trail.forget_connection()
            rest = failure.without_refused(route)
            return await self._pool.find(rest, allowance) or await self._open(trail, rest, allowance, admitted=True)
        except Failure as failure:
            self._governor.failed(route, failure)
            if ORDER[failure.state] >= ORDER[State.INTRO] and failure.kind is not Kind.TIMEOUT:
                self._openings.greeted(route.ends)
            raise
        self._governor.connected(route)
        return held

    def _delay_site(self, trail: Trail, route: Route) -> None:
        """Raise the remembered failure of a target that takes no connections, so that the job need not wait for it."""
        remembered = self._governor.spared(route)
        if remembered is not None:
            failure, seconds = remembered
            trail.facts["untried"] = round(seconds, 3)
            trail.said.append(f"not tried again; next probe in {seconds:.0f} s")
            raise failure

    async def _pace(self, errand: _Errand) -> None:
        """Choose the source, and wait for this message's turn if a limit for messages a second applies to it."""
        able = (each for each in errand.targets if any(source.reaches(each) for source in errand.sources))
        if (target := next(able, None)) is None:
            return  # `bind` raises the failure
        source = bind.choose(errand.sources, target, self._rng, _pinned(errand.job))
        # The turn is for this source: other sources serve only targets that this one does not reach.
        errand.sources = [each for each in errand.sources if each is source or not each.reaches(target)]
        allowance = self._governor.allowance(source, errand.destination, errand.hosts, target)
        if allowance.message_rate:
            await self._pool.pace(allowance.message_rate_key, allowance.message_rate, returned=errand.returned)


def _pinned(job: Job) -> str | None:
    """Return the source address that the previous attempt asks for."""
    return job.nextattempt.ip if job.nextattempt else None


def _in_clear(route: Route) -> Route:
    return replace(route, tls=Tls.NONE, falls_back=False)


def _about_session(session: Session, failure: Failure) -> bool:
    """Return whether a failure on a used session may concern the session and not the message.

    A limit of messages a session explains such a refusal. A session that ends in state `mailfrom` is one too: the last
    reply is not always 421, Exchange sends 451.
    """
    if session.messages < 2:
        return False
    if failure.reply is not None and about_session(failure.state, failure.reply):
        return True
    return not session.reusable and failure.state is State.MAILFROM and failure.kind is not Kind.TIMEOUT
