"""What now: judge a result, publish what the verdict says, and only then may the job be acknowledged.

Also the endings of what never was attempted: jobs that are not due, documents that are no jobs,
messages that are no documents.
"""

from collections.abc import Sequence
from datetime import timedelta
from random import Random

from mailq.core import letters
from mailq.core.failure import Failure, Postponed
from mailq.core.job import InvalidJobError, Job
from mailq.core.letters import Names
from mailq.core.publication import Consumed, Publication
from mailq.core.result import Result, Trail, failed
from mailq.core.states import Kind, State
from mailq.core.verdict import Outcome, RetryPolicy, Verdict, judge
from mailq.ports import Now, Observer, Publisher


class Settlement:
    """Turns results into confirmed publications; nothing here speaks SMTP."""

    def __init__(self, names: Names, policy: RetryPolicy, observer: Observer, now: Now, rng: Random) -> None:
        self._names = names
        self._policy = policy
        self._observer = observer
        self._now = now
        self._rng = rng

    def judge(self, job: Job, result: Result) -> Verdict:
        """Return what the result of the job's attempt means, and let it be seen."""
        verdict = judge(job, result, self._policy, result.time, self._rng)
        self._observer.attempted(job, result, verdict)
        return verdict

    async def settle(
        self, publisher: Publisher, consumed: Consumed, job: Job, result: Result, verdict: Verdict
    ) -> None:
        """Publish a judged result and, for a retry, the job's way back; returns when all is confirmed.

        Raises:
            BrokerError: nothing may be taken as done; the job must not be acknowledged.
        """
        publications = letters.settle(job, result, verdict, self._names, consumed, self._now())
        await self._publish(publisher, verdict.outcome.value, publications)

    async def park(self, publisher: Publisher, consumed: Consumed, job: Job) -> None:
        """Send a job that is not due back without an attempt.

        Raises:
            BrokerError: the job must not be acknowledged.
        """
        assert job.due is not None
        self._observer.parked(job, job.due)
        publication = letters.park(job, job.document, job.due, self._names, consumed, self._now())
        await self._publish(publisher, "delay", [publication])

    async def postpone(self, publisher: Publisher, consumed: Consumed, job: Job, later: Postponed) -> None:
        """Send a job away for which the traffic limits have no room; it costs no attempt.

        Raises:
            BrokerError: the job must not be acknowledged.
        """
        until = self._now() + timedelta(seconds=later.wait)
        self._observer.parked(job, until)
        publication = letters.postpone(job, until, self._names, consumed, self._now())
        await self._publish(publisher, "delay", [publication])

    async def refuse(self, publisher: Publisher, consumed: Consumed, error: InvalidJobError) -> None:
        """Tell that a message cannot be processed: as a result where it is a document, else to the poison queue.

        Raises:
            BrokerError: the message must not be acknowledged.
        """
        if error.document is None:
            self._observer.poisoned(error.reason)
            await self._publish(publisher, "poison", [letters.poison(consumed, error.reason, self._names)])
            return
        failure = Failure(State.PROCESS, Kind.INVALID, error.reason, pointer=error.pointer)
        earlier = error.document.get("results")
        attempt = len(earlier) + 1 if isinstance(earlier, list) else 1
        result = failed(Trail(), failure, time=self._now(), attempt=attempt)
        verdict = Verdict(Outcome.FAILURE)
        document = letters.with_result(error.document, result, verdict)
        report = letters.report(document, Outcome.FAILURE, self._names, consumed, None, extracted=None)
        await self._publish(publisher, Outcome.FAILURE.value, list(report))
        self._observer.refused(result)

    async def _publish(self, publisher: Publisher, key: str, publications: Sequence[Publication]) -> None:
        await publisher.publish(publications)
        self._observer.published(key, len(publications))
