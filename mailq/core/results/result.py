"""The result: the JSON object that tells what one attempt came to.

A `Trail` collects what is learnt during an attempt; `accepted` and `failed` make the one
`Result` of it. Absent means not known: a property exists only if its state was reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

import orjson

from mailq.core.content.mime import extract, normalize, without_mark
from mailq.core.jobs.job import Job
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.smtp.transcript import MAX_TRANSCRIPT, Said, cut, lines, without
from mailq.core.states import NAMES, Kind, State
from mailq.core.times import format_time

Certificates = Literal["full", "summary", "none"]
"""How much of the servers' certificates results tell."""

_ACCEPTED = Kind.ACCEPTED  # each look at a member of an Enum takes as long as ten at a name


@dataclass(slots=True)
class Trail:
    """The facts learnt so far in one attempt; all of them land in the result, however it ends.

    `state` is where it stands; `facts` holds JSON-ready result properties (`mta`, `from`, `to`, `cipher`, ...);
    `timing` the milliseconds spent in each state, over all targets of the attempt; `said` what was said on the last
    connection; `warnings` what was mended in the job.
    """

    state: State = State.PROCESS
    facts: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    extracted: dict[str, Any] | None = None
    in_doubt: bool = False
    hosts: tuple[str, ...] = ()
    pool: str | None = None
    said: list[Said] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    """The secrets that no result may tell; the longest first."""

    def warn(self, sentence: str, *, here: bool = False) -> None:
        """Note in one short plain sentence what was mended: in the job, or `here`, for this connection alone."""
        if here:
            self.facts["warnings"] = [*self.facts.get("warnings", ()), sentence]
        else:
            self.warnings = (*self.warnings, sentence)

    def conceal(self, secrets: Sequence[str]) -> None:
        """Keep secrets out of whatever will be told of the attempt, whoever says them."""
        self.secrets = tuple(sorted({*self.secrets, *secrets}, key=len, reverse=True))

    def spent(self, state: State, seconds: float) -> None:
        """Add the time that an exchange in `state` took."""
        name = NAMES[state]
        self.timing[name] = self.timing.get(name, 0.0) + seconds * 1000

    def heard(self, reply: Reply) -> None:
        """Note what the server said, as it may be told."""
        if self.secrets:
            reply = reply._replace(text=without(self.secrets, reply.text))
        self.said.append(reply if len(reply.text) <= MAX_TRANSCRIPT else cut(reply))

    def forget_connection(self) -> None:
        """Drop the facts of a connection that was given up for the next target; timing stays."""
        self.facts = {}
        self.said = []
        self.in_doubt = False


MAX_PACKED = 8000
"""Characters of a description that the journal keeps, whose records are bounded."""


class Result(NamedTuple):
    """What one attempt came to; `as_json` is its published form.

    Everything in it may be told, but for `heard`: the description as it came, where a secret stands in it. Who
    judges the result reads `words`; who tells it reads `description`.
    """

    state: State
    kind: Kind
    time: datetime
    attempt: int
    code: int
    status: str
    description: str
    facts: dict[str, Any]
    timing: dict[str, float]
    extracted: dict[str, Any] | None = None
    pointer: str | None = None
    in_doubt: bool = False
    from_peer: bool = False
    hosts: tuple[str, ...] = ()
    pool: str | None = None
    redelivered: bool = False
    bug: str | None = None
    transcript: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    heard: str | None = None
    reply: str | None = None

    @property
    def words(self) -> str:
        """Return the description as it came, to be understood and not to be told."""
        return self.description if self.heard is None else self.heard

    @property
    def accepted(self) -> bool:
        """Tell whether the receiver took what it was offered: the message, or in a dry run the recipient."""
        return self.kind is _ACCEPTED

    @property
    def delivered(self) -> bool:
        """Tell whether the receiver took the message: `message` and `accepted`, nothing else."""
        return self.state is State.MESSAGE and self.kind is _ACCEPTED

    def as_json(self, certificates: Certificates = "full") -> dict[str, Any]:
        """Return the object to append to `results`, properties in the documented order."""
        facts = self.facts
        if certificates != "full" and "certificate" in facts:
            facts = _shortened(facts, certificates)
        record: dict[str, Any] = {
            "state": str(self.state),
            "result": str(self.kind),
            "time": format_time(self.time),
            "attempt": self.attempt,
            **facts,
            "code": self.code,
            "status": self.status,
            "description": self.description,
        }
        if self.reply is not None:
            record["reply"] = self.reply
        if self.pointer is not None:
            record["pointer"] = self.pointer
        if self.in_doubt:
            record["in_doubt"] = True
        if self.redelivered:
            record["redelivered"] = True
        if self.warnings:
            record["warnings"] = [*self.warnings, *facts.get("warnings", ())]
        if self.bug is not None:
            record["bug"] = self.bug
        if self.timing:
            # In whole microseconds: round() to digits goes by way of a text, and takes ten times as long.
            record["timing"] = {state: round(spent * 1000) / 1000 for state, spent in self.timing.items()}
        if self.transcript:
            record["transcript"] = list(self.transcript)
        return record


def _shortened(facts: dict[str, Any], certificates: Certificates) -> dict[str, Any]:
    """Return the facts with a certificate told by its fingerprint and what matters most of it, or without."""
    whole = facts["certificate"]
    if certificates == "none":
        return {name: value for name, value in facts.items() if name != "certificate"}
    short = {name: whole[name] for name in ("notafter", "verified", "result") if name in whole}
    short |= {
        name: {"common": whole[name]["common"]} for name in ("subject", "issuer") if "common" in whole.get(name, {})
    }
    short |= {name: whole[name] for name in ("fingerprint",) if name in whole}
    return {**facts, "certificate": short}


def accepted(trail: Trail, reply: Reply, *, time: datetime, attempt: int, state: State = State.MESSAGE) -> Result:
    """Return the result of a message that the receiver took with `reply`; of a dry run, that it took the recipient."""
    return Result(
        state,
        _ACCEPTED,
        time,
        attempt,
        reply.code,
        reply.status or f"{reply.code // 100}.0.0",
        without(trail.secrets, reply.text) if trail.secrets else reply.text,
        trail.facts,
        trail.timing,
        trail.extracted,
        from_peer=True,
        hosts=trail.hosts,
        pool=trail.pool,
        warnings=trail.warnings,
        reply=_raw(reply),
    )


def failed(trail: Trail, failure: Failure, *, time: datetime, attempt: int, bug: str | None = None) -> Result:
    """Return the result of an attempt that ended with `failure`, which was a `bug` if it is said of what type."""
    ending = () if failure.reply else (_event(failure),)
    text = without(trail.secrets, failure.text)
    said = (*trail.said, *ending)
    return Result(
        failure.state,
        failure.kind,
        time,
        attempt,
        failure.code,
        failure.status,
        text,
        trail.facts,
        trail.timing,
        trail.extracted,
        pointer=failure.pointer,
        in_doubt=trail.in_doubt and failure.reply is None,
        from_peer=failure.reply is not None,
        hosts=trail.hosts,
        pool=trail.pool,
        bug=bug,
        transcript=lines([_concealed(each, trail.secrets) for each in said]) if trail.said else (),
        warnings=trail.warnings,
        heard=None if text == failure.text else failure.text,
        reply=_raw(failure.reply._replace(text=text)) if failure.reply else None,
    )


def _concealed(said: Said, secrets: Sequence[str]) -> Said:
    """Return an event without secrets; commands are noted masked, and replies as they are heard."""
    return without(secrets, said) if isinstance(said, str) else said


def _raw(reply: Reply) -> str | None:
    """Return an answer as the server wrote it, where that is not just code, status and description.

    Each line has the status, as RFC 2034 section 4 demands of servers.
    """
    if reply.status is not None and "\n" not in reply.text:
        return None
    status = f"{reply.status} " if reply.status else ""
    *first, last = reply.text.split("\n")
    return "\n".join([*(f"{reply.code}-{status}{line}" for line in first), f"{reply.code} {status}{last}".rstrip()])


def _event(failure: Failure) -> str:
    """Return a line for the end of a conversation that no server has worded."""
    return f"{failure.kind} in state {failure.state}: {failure.text}"


def vanished(job: Job, time: datetime) -> Result:
    """Return the result of an attempt whose process ended between the final dot and its answer."""
    text = "the worker ended before the answer to the final dot; the message may have arrived"
    failure = Failure(State.MESSAGE, Kind.LOST, text)
    trail = Trail(State.MESSAGE, in_doubt=True, warnings=job.warnings)
    return failed(trail, failure, time=time, attempt=job.attempt)._replace(redelivered=True)


def pack(result: Result) -> bytes:
    """Return what the journal keeps of a result: all but what can be had from the job again, and no secret."""
    if len(result.description) > MAX_PACKED:
        result = result._replace(description=result.description[:MAX_PACKED], reply=None)
    return orjson.dumps(tuple(result._replace(extracted=None, heard=None)))


def unpack(record: bytes | None, job: Job, now: datetime) -> Result:
    """Return the result that `pack` made, marked as redelivered; a record without words, as an answer in doubt."""
    if not record:
        return vanished(job, now)
    state, kind, time, *rest = orjson.loads(record)
    packed = Result(State(state), Kind(kind), datetime.fromisoformat(time), *rest)
    extracted = extract(normalize(without_mark(job.mime))) if isinstance(job.mime, str) else None
    return packed._replace(
        hosts=tuple(packed.hosts),
        extracted=extracted,
        redelivered=True,
        transcript=tuple(packed.transcript),
        warnings=tuple(packed.warnings),
    )
