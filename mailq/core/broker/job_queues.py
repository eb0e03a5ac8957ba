"""Which queues a job may name in its `queues`: other people's, not mailq's. Pure.

A result on a queue that mailq consumes would be a job or an event again, and one on a delay queue a job later. The
configured result queues take what mailq itself publishes there. Names compare as RabbitMQ compares them, by every
letter.
"""

from dataclasses import dataclass

from mailq.core.answers.verdict import Outcome
from mailq.core.broker.publications import Names
from mailq.core.delay_queues import STEPS
from mailq.core.jobs.job import Queues

OUTCOMES: dict[str, tuple[Outcome, ...]] = {
    "results": (Outcome.SUCCESS, Outcome.FAILURE),
    "success": (Outcome.SUCCESS,),
    "failure": (Outcome.FAILURE,),
    "retry": (Outcome.RETRY,),
}
"""Properties of `queues`, and the results that go there."""

_DELAYS = tuple(f".delay.{step}" for step in STEPS)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A queue that a job may not name: the property, and the reason with the remedy."""

    name: str
    reason: str


def forbidden(queues: Queues, names: Names) -> Forbidden | None:
    """Return the first queue that a job may not name, None if it may name all of them."""
    for name, outcomes in OUTCOMES.items():
        queue = getattr(queues, name)
        if queue is not None and (why := _reserved(queue, outcomes, names)):
            return Forbidden(name, f"queue {queue!r} {why}; name another one, or leave the property out")
    return None


def _reserved(queue: str, outcomes: tuple[Outcome, ...], names: Names) -> str | None:
    """Return what a queue is instead of a queue for these results of a job."""
    if all(queue in names.queues_of(outcome).values() for outcome in outcomes):
        return None
    if queue in (names.outbox, names.poison) or queue.startswith(f"{names.outbox}.delay.") or queue.endswith(_DELAYS):
        return "is mailq's own"
    if queue == names.webhooks or queue.startswith(f"{names.webhooks}."):
        return "is for webhooks"
    if queue in (names.results, names.success, names.failures, names.retry):
        return "is for other results than these"
    if queue.startswith("amq.") and not queue.startswith("amq.gen-"):
        return "is RabbitMQ's own"
    held = not names.job_queues or queue.startswith(names.job_queues)
    return None if held else f"begins with none of {', '.join(names.job_queues)} (rabbitmq.job_queues)"
