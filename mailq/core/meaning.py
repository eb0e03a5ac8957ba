"""What an ending says to those who know the field: its class, what to do about it, and who says so. Pure.

Three readings of the same facts, each with its own source: the bounce classification (`core.classify`, rule
files), the flags that any ending infers (`core.hints`), and the operator's response patterns
(`core.patterns`). What they come to for the job is for `core.verdict`. Rules and patterns may be
replaced while the worker runs; whoever reads takes them as they stand.
"""

from typing import NamedTuple

from mailq.core.classify import Classification, Ruleset
from mailq.core.effects import Effects
from mailq.core.failure import Failure
from mailq.core.hints import Flags, infer
from mailq.core.job import Job
from mailq.core.patterns import Facts, Patterns
from mailq.core.result import Result, Trail


class Reading(NamedTuple):
    """What was made of an ending, and by which version of the rules."""

    classification: Classification
    ruleset: str
    flags: Flags
    effects: Effects


class Meaning:
    """The rules and patterns of a worker."""

    def __init__(self, ruleset: Ruleset, patterns: Patterns) -> None:
        self.ruleset = ruleset
        self.patterns = patterns

    def replace(self, other: "Meaning") -> None:
        """Read endings by the rules and patterns of another one from now on."""
        self.ruleset = other.ruleset
        self.patterns = other.patterns

    def of(self, job: Job, result: Result) -> Reading:
        """Return what an unsuccessful result means."""
        ruleset = self.ruleset
        classification = ruleset.classify(
            state=result.state,
            kind=result.kind,
            code=result.code,
            status=result.status,
            text=result.description,
            hosts=_names(result.hosts, result.facts.get("mta")),
            from_peer=result.from_peer,
        )
        facts = Facts(
            result.state,
            result.kind,
            result.code,
            result.status,
            result.description,
            classification.number,
            result.facts.get("from"),
            result.pool,
            job.recipient.domain,
            result.hosts,
            job.tags,
        )
        flags = infer(facts.state, facts.kind, facts.code, facts.status, facts.text, facts.number)
        return Reading(classification, ruleset.version, flags, self.patterns.match(facts))

    def falls_back(self, job: Job, failure: Failure, trail: Trail) -> bool:
        """Tell whether the next target may take what this one did not; never what may have been taken."""
        if trail.in_doubt and failure.reply is None:
            return False
        facts = Facts(
            failure.state,
            failure.kind,
            failure.code,
            failure.status,
            failure.text,
            None,
            trail.facts.get("from"),
            trail.pool,
            job.recipient.domain,
            trail.hosts,
            job.tags,
        )
        flags = infer(facts.state, facts.kind, facts.code, facts.status, facts.text)
        return self.patterns.match(facts).over(flags).fallback


def _names(hosts: tuple[str, ...], mta: object) -> tuple[str, ...]:
    return (*hosts, mta) if isinstance(mta, str) else hosts
