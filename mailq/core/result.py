"""The result: the JSON object that tells what one attempt came to.

A `Trail` collects what is learnt during an attempt; `accepted` and `failed` make the one
`Result` of it. Absent means not known: a property exists only if its state was reached.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from mailq.core.failure import Failure
from mailq.core.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.times import format_time


@dataclass(slots=True)
class Trail:
    """The facts learnt so far in one attempt; all of them land in the result, however it ends.

    `facts` holds JSON-ready result properties (`mta`, `from`, `to`, `cipher`, ...); `timing` the
    milliseconds spent in each state, over all targets of the attempt.
    """

    state: State = State.PROCESS
    facts: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    extracted: dict[str, Any] | None = None
    in_doubt: bool = False

    def enter(self, state: State) -> None:
        """Note that the attempt now stands in `state`."""
        self.state = state

    def spent(self, state: State, seconds: float) -> None:
        """Add the time that an exchange in `state` took."""
        name = str(state)
        self.timing[name] = self.timing.get(name, 0.0) + seconds * 1000

    def forget_connection(self) -> None:
        """Drop the facts of a connection that was given up for the next target; timing stays."""
        self.facts = {}
        self.in_doubt = False


class Result(NamedTuple):
    """What one attempt came to; `as_json` is its published form."""

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

    @property
    def delivered(self) -> bool:
        """Tell whether the receiver took the message: `message` and `accepted`, nothing else."""
        return self.state is State.MESSAGE and self.kind is Kind.ACCEPTED

    def as_json(self) -> dict[str, Any]:
        """Return the object to append to `results`, properties in the documented order."""
        record: dict[str, Any] = {
            "state": str(self.state),
            "result": str(self.kind),
            "time": format_time(self.time),
            "attempt": self.attempt,
            **self.facts,
            "code": self.code,
            "status": self.status,
            "description": self.description,
        }
        if self.pointer is not None:
            record["pointer"] = self.pointer
        if self.in_doubt:
            record["in_doubt"] = True
        if self.timing:
            record["timing"] = {state: round(spent, 3) for state, spent in self.timing.items()}
        return record


def accepted(trail: Trail, reply: Reply, *, time: datetime, attempt: int) -> Result:
    """Return the result of a message that the receiver took with `reply`."""
    return Result(
        State.MESSAGE,
        Kind.ACCEPTED,
        time,
        attempt,
        reply.code,
        reply.status or f"{reply.code // 100}.0.0",
        reply.text,
        trail.facts,
        trail.timing,
        trail.extracted,
        from_peer=True,
    )


def failed(trail: Trail, failure: Failure, *, time: datetime, attempt: int) -> Result:
    """Return the result of an attempt that ended with `failure`."""
    return Result(
        failure.state,
        failure.kind,
        time,
        attempt,
        failure.code,
        failure.status,
        failure.text,
        trail.facts,
        trail.timing,
        trail.extracted,
        pointer=failure.pointer,
        in_doubt=trail.in_doubt and failure.reply is None,
        from_peer=failure.reply is not None,
    )
