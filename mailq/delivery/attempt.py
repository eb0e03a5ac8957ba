"""The pipeline: one job in, exactly one result out. Read `_walk`, `_aim`, `_reach`, `_converse`: that is a job's way.

`attempt` returns, it never reports: a function returns once, and that is the whole proof of
"exactly one result". Every expected ending is a `Failure`; a bug costs one attempt and is counted. No
attempt at all (`Delayed`) is made when the traffic limits say later, or while the destination is left
alone. What the result means is for `core.verdict`, what becomes of the job for `settlement`.
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
"""Seconds for which a job goes away whose handing over could not be recorded."""

# What each message needs of the vocabulary: in Python 3.11 a member of an `Enum` costs a call.
_PROCESS, _STORAGE, _DNS, _MESSAGE = State.PROCESS, State.STORAGE, State.DNS, State.MESSAGE
_OPPORTUNISTIC = Tls.OPPORTUNISTIC


class _Ending(NamedTuple):
    """How it ended at one target: what was known by then, and from which source, if it came to that."""

    failure: Failure
    trail: Trail
    source: Source | None = None

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The more, the more it is to be told: first of all that the message may have been taken.

        A server that cannot take the message is told last: another one, out of reach for now, may take it.
        """
        doubt = self.trail.in_doubt and self.failure.reply is None
        return doubt, not self.failure.unable, ORDER[self.failure.state]


class _Spent(NamedTuple):
    """How a used session ended that had carried so many messages `before`; `open`: the receiver left it open."""

    failure: Failure
    before: int
    open: bool


@dataclass(slots=True)
class _Errand:
    """One attempt's job with what was made ready for the wire.

    `destination` is the domain by which limits are looked up: the recipient's, or the smarthost; `source` is the
    one in use; `earlier` are endings without the smarthost that the errand falls back to; `departed` tells that it
    has had its turn to leave where a rate is limited.
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
    """Makes attempts; everything it needs of the world comes in through ports."""

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
        """The SMTP sessions, to be counted, swept and in the end closed."""
        return self._pool

    async def attempt(
        self, job: Job, trail: Trail, claim: HandoverGuard, *, returned: bool = False
    ) -> Result | Delayed:
        """Return what one attempt to deliver `job` came to, or that none is made now; raises only cancellation.

        `claim` is asked for leave before the message is handed over; `returned` tells that the job was
        postponed before and goes ahead of those who were not.
        """
        try:
            with self._clock:
                reply = await self._walk(job, trail, claim, returned=returned)
            state = State.RCPTTO if job.dryrun else _MESSAGE
            return accepted(trail, reply, time=self._now(), attempt=job.attempt, state=state)
        except Delayed as later:
            return bare(later)
        except JournalError as trouble:
            return Delayed(UNRECORDED, Cause.JOURNAL, str(trouble))
        except Failure as trouble:
            failure = bare(trouble)
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
        """Find out where the message is to go, from which sources it may go there now, and wait for its turn."""
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
        """Try target after target, and after the last the smarthost that is there for it, if there is one."""
        endings = list(errand.earlier)
        silence: Delayed | None = None
        for target in errand.targets:
            errand.trail.forget_connection()
            try:
                return await self._converse(errand, target)
            except Delayed as later:
                if later.cause is Cause.LOGIN and endings:
                    break  # a server that lets nobody in does not hide what another one said
                if later.cause is not Cause.SILENCE:
                    raise
                silence = bare(later)
            except Failure as failure:
                # A smarthost that takes no mail at all says nothing about the message.
                if not errand.earlier or ORDER[failure.state] >= ORDER[State.MAILFROM]:
                    endings.append(_Ending(bare(failure), replace(errand.trail), errand.source))
                if not self._meaning.falls_back(errand.job, failure, errand.trail):
                    break
        else:
            if silence is not None and not endings:
                raise silence
            return await self._fall_back(errand, endings)
        raise self._told(errand, endings)

    async def _fall_back(self, errand: _Errand, endings: Sequence[_Ending]) -> Reply:
        """Try the smarthost that is there for what no target could be given, or tell how it ended without it."""
        smarthost = self._policy.fallback
        if smarthost is None or errand.smarthost is not None:
            raise self._told(errand, endings)
        backup = replace(errand, earlier=tuple(endings))
        try:
            await self._aim(backup, smarthost)
        except (Failure, Delayed):
            raise self._told(errand, endings) from None
        return await self._reach(backup)

    def _told(self, errand: _Errand, endings: Sequence[_Ending]) -> Failure:
        """Return the ending that got furthest, its facts in the trail, and learn from it about the destination."""
        furthest, known, source = max(endings, key=lambda ending: ending.rank)
        trail = errand.trail
        trail.facts, trail.in_doubt, trail.hosts, trail.pool = known.facts, known.in_doubt, known.hosts, known.pool
        trail.said = known.said
        if source is not None and self._meaning.patterns.pauses:
            self._learn(errand.job, trail, furthest, source)
        return furthest

    def _learn(self, job: Job, trail: Trail, failure: Failure, source: Source) -> None:
        """Leave a destination alone until this job is tried again, if a pattern says that it is about all of it."""
        now = self._now()
        result = failed(trail, failure, time=now, attempt=job.attempt)
        reading = self._meaning.of(job, result)
        verdict = judge(job, result, self._policy, now, self._rng, reading.effects, reading.flags)
        if reading.effects.individual is False and verdict.at is not None:
            patterns = ", ".join(reading.effects.patterns)
            seconds = (verdict.at - now).total_seconds()
            self._governor.pause(source, trail.hosts, seconds, f"destination paused by pattern {patterns}")

    async def _converse(self, errand: _Errand, target: Target) -> Reply:
        """Send the message to one target over a session, a used one if there is.

        Where a used session is at its end, or is refused for what may be its own, a new one is asked once instead.
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
        """Learn how many messages a session may carry, now that a new one took what the used one refused."""
        reply = spent.failure.reply
        named = reply is not None and names_limit(reply)
        if named or (reply is not None and spent.open):  # else the session may have been idle for too long
            limit = self._pool.session_limits.refused(allowance, spent.before, named=named)
            if limit is not None:
                self._observer.session_limit(target.host, limit)

    def _route(self, source: Source, target: Target, smarthost: Smarthost | None, sharing: str) -> Route:
        """Return the route; one that no job's own smarthost shapes is the same for every message, so it is kept."""
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
        """Return a session on the route, a new one if `fresh`; without TLS where that does not come about and may not.

        TLS came about when EHLO was answered inside it: a server that wants a client certificate closes after the
        handshake of TLS 1.3, before that.
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
        """Return a new session, in the place that there is for it; `admitted`: its login goes on from one before."""
        try:
            self._delay_site(trail, route)  # another one may have found out meanwhile
            if not admitted:
                self._governor.admit(route)
        except (Failure, Delayed):
            self._pool.vacate(allowance)
            raise
        self._governor.probe(route)
        try:
            async with self._openings.opening(route.ends):
                held = await self._pool.open(trail, route, allowance)
        except Unfinished as failure:  # the server hung up over one mechanism: the next one, on a new connection
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
        """Spare the job the wait for a target that takes no connections: it is told what others have found."""
        spared = self._governor.spared(route)
        if spared is not None:
            failure, seconds = spared
            trail.facts["untried"] = round(seconds, 3)
            trail.said.append(f"not tried again; next probe in {seconds:.0f} s")
            raise failure

    async def _pace(self, errand: _Errand) -> None:
        """Choose the source, and wait for this message's turn from it where messages a second are limited."""
        able = (each for each in errand.targets if any(source.reaches(each) for source in errand.sources))
        if (target := next(able, None)) is None:
            return  # which `bind` tells
        source = bind.choose(errand.sources, target, self._rng, _pinned(errand.job))
        # It is the one that the turn is for: others may only be used where it does not reach.
        errand.sources = [each for each in errand.sources if each is source or not each.reaches(target)]
        allowance = self._governor.allowance(source, errand.destination, errand.hosts, target)
        if allowance.message_rate:
            await self._pool.pace(allowance.message_rate_key, allowance.message_rate, returned=errand.returned)


def _pinned(job: Job) -> str | None:
    """Return the source address that the attempt before this one asks for."""
    return job.nextattempt.ip if job.nextattempt else None


def _in_clear(route: Route) -> Route:
    return replace(route, tls=Tls.NONE, falls_back=False)


def _about_session(session: Session, failure: Failure) -> bool:
    """Tell whether a failure on a used session may be about the session: a new one shows what is about the message.

    So are refusals that a limit of messages explains, and whatever ends a session before anything was offered: the
    last words are not always 421, Exchange's are 451.
    """
    if session.messages < 2:
        return False
    if failure.reply is not None and about_session(failure.state, failure.reply):
        return True
    return not session.reusable and failure.state is State.MAILFROM and failure.kind is not Kind.TIMEOUT
