"""What an ending says to those who know the field: its class, what to do about it, and who says so. Pure.

Three readings of the same facts, each with its own source: the bounce classification (`core.answers.classify`, rule
files), the flags that any ending infers (`core.answers.flags`), and the operator's response patterns
(`core.answers.patterns`). What they come to for the job is for `core.answers.verdict`. Rules and patterns may be
replaced while the worker runs; whoever reads takes them as they stand.
"""

from typing import Any, NamedTuple

from mailq.core.answers.actions import Actions
from mailq.core.answers.classify import Classification, Ruleset
from mailq.core.answers.flags import Flags, infer
from mailq.core.answers.patterns import Facts, Patterns
from mailq.core.answers.previous import Classified, last_class
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result, Trail
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State


class Reading(NamedTuple):
    """What was made of an ending, and by which version of the rules."""

    classification: Classification
    ruleset: str
    flags: Flags
    effects: Actions


class _Known(NamedTuple):
    """What is known of an ending, be it a result or only a failure so far."""

    state: State
    kind: Kind
    code: int
    status: str
    text: str
    from_peer: bool
    facts: dict[str, Any]
    hosts: tuple[str, ...]
    pool: str | None


class Interpreter:
    """The rules and patterns of a worker."""

    def __init__(self, ruleset: Ruleset, patterns: Patterns) -> None:
        self.ruleset = ruleset
        self.patterns = patterns

    def replace(self, other: "Interpreter") -> None:
        """Read endings by the rules and patterns of another one from now on."""
        self.ruleset = other.ruleset
        self.patterns = other.patterns

    def of(self, job: Job, result: Result) -> Reading:
        """Return what an unsuccessful result means; that of an expired job what the one before it meant."""
        ruleset = self.ruleset
        known = _Known(
            result.state,
            result.kind,
            result.code,
            result.status,
            result.words,
            result.from_peer,
            result.facts,
            result.hosts,
            result.pool,
        )
        expired = known.state is State.PROCESS and known.kind is Kind.TIMEOUT and job.results
        last = last_class(job.results[-1], ruleset) if expired else None
        classification, version = last or Classified(_classified(ruleset, known), ruleset.version)
        flags = infer(
            known.state,
            known.kind,
            known.code,
            known.status,
            classification.number,
            greylisting=classification.greylisting,
        )
        effects = self.patterns.match(_facts(job, known, classification.number))
        return Reading(classification, version, flags, effects)

    def falls_back(self, job: Job, failure: Failure, trail: Trail) -> bool:
        """Tell whether the next target may take what this one did not; never what may have been taken."""
        if trail.in_doubt and failure.reply is None:
            return False
        if failure.unable:
            return True
        known = _Known(
            failure.state,
            failure.kind,
            failure.code,
            failure.status,
            failure.text,
            failure.reply is not None,
            trail.facts,
            trail.hosts,
            trail.pool,
        )
        number = _classified(self.ruleset, known).number if self.patterns.fall_back_by_class else None
        flags = infer(known.state, known.kind, known.code, known.status)
        return self.patterns.match(_facts(job, known, number)).over(flags).fallback


def _classified(ruleset: Ruleset, known: _Known) -> Classification:
    mta = known.facts.get("mta")
    return ruleset.classify(
        state=known.state,
        kind=known.kind,
        code=known.code,
        status=known.status,
        text=known.text,
        hosts=(*known.hosts, mta) if isinstance(mta, str) else known.hosts,
        from_peer=known.from_peer,
    )


def _facts(job: Job, known: _Known, number: int | None) -> Facts:
    return Facts(
        known.state,
        known.kind,
        known.code,
        known.status,
        known.text,
        number,
        known.facts.get("from"),
        known.pool,
        job.recipient.domain,
        known.hosts,
        job.tags,
    )
