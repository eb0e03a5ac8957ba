"""Settlement: judge a result and publish what the verdict says; only then may the handler acknowledge the job.

The module also settles messages without an attempt: jobs that are not due, documents that are no jobs, and messages
that are no documents.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from random import Random

from mailq.core.answers.deadline import RetryPolicy, back_at, expiry
from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.verdict import Outcome, Verdict, judge
from mailq.core.broker import publications
from mailq.core.broker.application_headers import MOST_ROUNDS, rounds
from mailq.core.broker.job_queues import forbidden
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.broker.provenance import Outbox, Provenance
from mailq.core.broker.publications import Names
from mailq.core.broker.shrink import shrink
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.results.result import Certificates, Result, Trail, failed
from mailq.core.smtp.failure import Cause, Delayed, Failure
from mailq.core.states import Kind, State
from mailq.core.times import format_time
from mailq.delivery.offload import offloaded
from mailq.ports.broker import OversizedError, Publisher
from mailq.ports.host import Now
from mailq.ports.observer import Observer

LONGEST_ABSENCE = 31_536_000.0
"""Seconds for which a job is delayed at most, a year: a rate limit may compute a moment beyond all calendars."""


class Settlement:
    """Turns results into confirmed publications; nothing here speaks SMTP."""

    def __init__(
        self,
        names: Names,
        policy: RetryPolicy,
        meaning: Interpreter,
        observer: Observer,
        now: Now,
        rng: Random,
        outbox: Outbox,
        sources: Sequence[str] = (),
        certificates: Certificates = "full",
    ) -> None:
        self._names = names
        self._outbox = outbox
        self._policy = policy
        self._meaning = meaning
        self._sources = sources
        self._certificates = certificates
        self._observer = observer
        self._now = now
        self._rng = rng

    def loop(self, consumed: Consumed) -> str | None:
        """Return why a message is poison if results came back as jobs too often; None if the message is handled."""
        count = rounds(consumed.headers)
        if count <= MOST_ROUNDS:
            return None
        return (
            f"a result came back as a job (rounds: {count}): look for a binding or a dead-letter policy that leads from"
            f" exchange {self._names.exchange!r} or a result queue to {self._names.outbox!r}, and remove it"
        )

    def barred(self, job: Job) -> InvalidJobError | None:
        """Return why a job is refused if it names a queue that jobs may not name."""
        found = forbidden(job.queues, self._names) if job.queues else None
        return None if found is None else InvalidJobError(found.reason, f"/queues/{found.name}", job.document)

    def judge(self, job: Job, result: Result) -> Verdict:
        """Return the verdict on the result of the job's attempt, and report both to the observer."""
        if result.accepted:
            verdict = judge(job, result, self._policy, result.time, self._rng)
        else:
            classification, ruleset, flags, effects = self._meaning.of(job, result)
            verdict = judge(job, result, self._policy, result.time, self._rng, effects, flags)
            verdict = replace(verdict, classification=classification, ruleset=ruleset)
        self._observer.attempted(job, result, verdict)
        return verdict

    async def settle(
        self,
        publisher: Publisher,
        consumed: Consumed,
        job: Job,
        result: Result,
        verdict: Verdict,
        provenance: Provenance,
    ) -> None:
        """Publish a judged result and, for a retry, the delayed job; return when the broker has confirmed all.

        Raises:
            OversizedError: the job has become larger than the broker accepts, and nothing was published.
            BrokerError: the broker did not confirm everything; the job must not be acknowledged.
        """
        work = partial(publications.settle, job, result, verdict, self._names, consumed, self._now())
        outgoing = await offloaded(consumed.octets, partial(work, provenance, self._sources, self._certificates))
        await self._publish(publisher, str(verdict.outcome), outgoing)

    def expire(self, job: Job) -> tuple[Result, Verdict]:
        """Return result and verdict of a job that has expired, or will have before its next attempt."""
        result = failed(Trail(warnings=job.warnings), expiry(job), time=self._now(), attempt=job.attempt)
        return result, self.judge(job, result)

    def duplicate(self, job: Job, first: datetime) -> tuple[Result, Verdict]:
        """Return result and verdict, a failure, for a second publication of an id; `first` was consumed before."""
        text = f"another publication of this id was consumed at {format_time(first)} UTC; see delivery.unique_for"
        failure = Failure(State.PROCESS, Kind.ERROR, text, code=554, status="5.3.0")
        facts = {"duplicate": True, "duplicate_of": job.identity, "first_consumed": format_time(first)}
        result = failed(Trail(facts=facts), failure, time=self._now(), attempt=job.attempt)
        verdict = self._final(result)
        self._observer.attempted(job, result, verdict)
        return result, verdict

    async def delay(
        self, publisher: Publisher, consumed: Consumed, job: Job, later: Delayed | None, provenance: Provenance
    ) -> bool:
        """Delay a job without an attempt for the cause in `later`, or until it is due; the attempt count stays.

        Return False, and publish nothing, if the job would expire before its next attempt. A job that another process
        has is always delayed: that process publishes its result.

        Raises:
            BrokerError: the job must not be acknowledged.
        """
        now = self._now()
        due = job.due if later is None else now + timedelta(seconds=min(later.wait, LONGEST_ABSENCE))
        assert due is not None
        elsewhere = later is not None and later.cause is Cause.ELSEWHERE
        until = due if elsewhere else back_at(job, self._policy, due, now)
        if until is None:
            return False
        if later is None:
            self._observer.delayed(job, until, Cause.DUE, "not due yet")
            work = partial(publications.until_due, job, job.document, until, self._names, consumed, now, provenance)
        else:
            self._observer.delayed(job, until, later.cause, later.reason)
            work = partial(publications.delay, job, until, self._names, consumed, now, provenance)
        outgoing = [await offloaded(consumed.octets, work)]
        if later is not None and self._names.delays and not provenance.returned and later.cause in publications.HELD:
            outgoing += publications.held_back(job, until, later, self._names, consumed, now)
        await self._publish(publisher, "delay", outgoing)
        return True

    async def refuse(self, publisher: Publisher, consumed: Consumed, error: InvalidJobError) -> None:
        """Publish a failure for a document that is no job; publish a message that is no document as poison.

        Raises:
            BrokerError: the message must not be acknowledged.
        """
        if error.document is None:
            await self.poison(publisher, consumed, error.reason, self._outbox.read(consumed))
            return
        failure = Failure(
            State.PROCESS, Kind.INVALID, error.reason, code=error.code, status=error.status, pointer=error.pointer
        )
        earlier = error.document.get("results")
        attempt = len(earlier) + 1 if isinstance(earlier, list) else 1
        result = failed(Trail(), failure, time=self._now(), attempt=attempt)
        verdict = self._final(result)
        document = publications.with_result(error.document, result, verdict)
        work = partial(publications.report, document, verdict, self._names, consumed, None, extracted=None)
        report = await offloaded(consumed.octets, lambda: list(work(message_id=consumed.message_id)))
        await self._publish(publisher, str(Outcome.FAILURE), report)
        self._observer.refused(result)

    def _final(self, result: Result) -> Verdict:
        """Return the verdict on a result without a reply, which no pattern may change."""
        ruleset = self._meaning.ruleset
        classification = ruleset.classify(
            state=result.state, kind=result.kind, code=result.code, status=result.status, text="", from_peer=False
        )
        return Verdict(Outcome.FAILURE, classification=classification, ruleset=ruleset.version)

    async def poison(
        self,
        publisher: Publisher,
        consumed: Consumed,
        reason: str,
        provenance: Provenance,
        *,
        exception: str | None = None,
        state: str = State.PROCESS,
    ) -> None:
        """Publish a message to the poison queue, for an operator to inspect.

        Raises:
            BrokerError: the message must not be acknowledged.
        """
        now = self._now()
        publication = publications.poison(
            consumed, reason, self._names, now, state=state, exception=exception, provenance=provenance
        )
        outgoing = [publication]
        if self._names.events:
            outgoing.append(publications.poison_event(consumed, reason, self._names, now, exception=exception))
        await self._publish(publisher, "poison", outgoing)
        self._observer.poisoned(reason)

    async def _publish(self, publisher: Publisher, key: str, publications: Sequence[Publication]) -> None:
        try:
            await publisher.publish([self._outbox.signed(each) for each in publications])
        except OversizedError as refusal:
            shrunk = await asyncio.to_thread(self._shrink, publications, refusal.most)
            await publisher.publish([self._outbox.signed(each) for each in shrunk])
        self._observer.published(key, len(publications))

    def _shrink(self, publications: Sequence[Publication], most: int) -> Sequence[Publication]:
        return [shrink(publication, self._names, most) for publication in publications]
