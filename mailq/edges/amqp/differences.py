"""Queues and exchanges that differ from what mailq would declare: what that costs, and what is refused.

RabbitMQ names one differing argument at a time, in the text of its refusal. This module reads that
text and holds the table of costs. `edges.amqp.topology` asks the broker.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mailq.core.smtp.reply import printable

TYPE = "x-queue-type"
LIMIT = "x-delivery-limit"
TTL = "x-message-ttl"
DEAD_LETTER = ("x-dead-letter-exchange", "x-dead-letter-routing-key")
NONE = "none"

_DIFFERENT = re.compile(r"inequivalent arg '([^']+)' for (\w+) '(.*)' in vhost '.*': received (.*) but current is (.*)")
_VALUE = re.compile(r"(?:the value )?'(.*?)'(?: of type '(\w+)')?", re.DOTALL)
_NUMBERS = frozenset(
    {LIMIT, TTL, "x-expires", "x-max-length", "x-max-length-bytes", "x-max-priority", "x-quorum-initial-group-size"}
)
_TRUTHS = frozenset({"durable", "auto_delete", "internal", "exclusive", "x-single-active-consumer"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One argument of a queue or exchange that is there: what mailq would declare, and what it has, as text."""

    argument: str
    wanted: str
    found: str

    @property
    def value(self) -> str | int | bool | None:
        """The value that it has, as the argument of a declaration; None: it has none."""
        if self.found == NONE:
            return None
        if self.argument in _TRUTHS:
            return self.found == "true"
        if self.argument in _NUMBERS and self.found.lstrip("-").isdigit():
            return int(self.found)
        return self.found

    def __str__(self) -> str:
        """Return the difference as a clause."""
        return f"{self.argument} is {_shown(self.found)} instead of {_shown(self.wanted)}"


def read(text: str) -> Difference | None:
    """Return what a refusal (406) says that differs, None if it says something else."""
    found = _DIFFERENT.search(text)
    return Difference(found[1], _value(found[4]), _value(found[5])) if found else None


def costs(differences: Sequence[Difference], *, takes_jobs: bool, delays: bool, quorum: bool) -> list[str]:
    """Return what these differences of a queue cost, a clause each, the worst first; one that costs nothing has none.

    `takes_jobs` means the outbox, `delays` a delay queue, `quorum` that mailq would declare a quorum queue.
    """
    by_name = {difference.argument: difference for difference in differences}
    told: list[str] = []
    classic = quorum and TYPE in by_name and by_name[TYPE].found != "quorum"
    if classic:
        told.append("a classic queue has no replica: what waits in it is gone with its node")
    for name, difference in by_name.items():
        if name == LIMIT and takes_jobs and not classic and difference.found == NONE:
            told.append("without x-delivery-limit the broker's own default bounds a job that ends workers")
        elif name == LIMIT and takes_jobs and not classic:
            told.append("the limit of the queue holds, and rabbitmq.delivery_limit has no effect")
        elif name == "x-dead-letter-strategy" and not classic and difference.found != "at-least-once":
            told.append("without at-least-once the broker may lose a job on its way to the next queue")
        elif name in _COSTS:
            told.append(_COSTS[name])
    if takes_jobs and classic:
        told.append("a classic queue counts no deliveries: a job that ends workers comes again for ever")
    if takes_jobs and any(name in by_name for name in DEAD_LETTER):
        told.append("the broker moves nothing to poison: what it drops here is lost, or is where it dead-letters to")
    if delays and TTL in by_name:
        told.append("delays are of another length")
    return told


def refused(differences: Sequence[Difference], *, takes_jobs: bool, delay: bool) -> Difference | None:
    """Return the difference with which mailq cannot work, None if there is none."""
    for difference in differences:
        name = difference.argument
        if name == TYPE and difference.found == "stream" and (takes_jobs or delay):
            return difference
        if name == "auto_delete" and difference.found == "true" and takes_jobs:
            return difference
        if delay and (name in DEAD_LETTER or (name == TTL and difference.found == NONE)):
            return difference
    return None


def lost_exchange(differences: Sequence[Difference]) -> Difference | None:
    """Return the difference of the exchange with which results would not reach their queues, None if there is none."""
    for difference in differences:
        if difference.argument == "type" and not difference.found.startswith("x-"):
            return difference
        if difference.argument == "internal" and difference.found == "true":
            return difference
    return None


_COSTS = {
    "durable": "it is gone when the broker restarts, with everything in it",
    "auto_delete": "the broker deletes it with its last consumer",
    "x-expires": "the broker deletes it when nothing used it for that time",
    "x-max-length": "the broker drops or refuses messages beyond that number",
    "x-max-length-bytes": "the broker drops or refuses messages beyond that size",
    "x-max-priority": "a lower priority waits while a higher one is there",
    "x-single-active-consumer": "one worker alone consumes it",
}


def _value(text: str) -> str:
    found = _VALUE.fullmatch(text.strip())
    return found[1] if found else text.strip()


def _shown(value: str) -> str:
    return value if value == NONE else repr(printable(value.encode()))
