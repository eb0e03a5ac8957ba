"""What one worker process counts, for Prometheus to scrape.

The hot path only adds to plain numbers; prometheus_client sees them when a scrape asks
(`Metrics.collect`), because its own counters take a lock for each increment. Everything runs on
one event loop, so plain numbers are safe. Label values come from the enums of `core` and from the
fixed names below, never from a domain, a host or an address: whoever sends or receives mail
cannot grow the number of series. Under a supervisor each process hands over a `snapshot` (see
`fleet`). What the figures mean for an operator is decided in `etc/prometheus/alerts.yml`, not here.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import datetime
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mailq.core.answers.actions import FLAGS
from mailq.core.answers.flags import NO_FLAGS
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.states import Kind, State
from mailq.edges.metrics.families import amounts, counter, gauge, histogram, labelled

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the duration buckets in seconds: from a local answer to the longest SMTP timeout."""

_BOUNDS_MS = tuple(bound * 1000 for bound in BOUNDS)
_LABELS = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")

KEYS = (*Outcome, "delay", "poison", "other")
"""Values of the label `key`: the first word of a routing key, `other` for a queue that a job names itself."""

EVENTS = (
    *("connected", "lost", "retrying", "blocked", "unblocked", "unsettled"),
    *("returned", "rerouted", "dropped", "nacked", "taken", "unconfirmed", "cancelled", "refused"),
)
"""Values of the label `event`: what happens to the connection, and trouble that has a name of its own."""

SILENCE = 30.0
"""Seconds without a beat after which a process does not count as alive."""

Snapshot = dict[str, Any]
"""What a process has counted, ready for JSON; made by `Metrics.snapshot`."""


class Heartbeat:
    """Tells whether the loop of a worker still goes round: somebody in it beats every second."""

    def __init__(self) -> None:
        self._last = monotonic()

    def beat(self) -> None:
        """Note a sign of life."""
        self._last = monotonic()

    def problem(self) -> str | None:
        """Return why the worker does not count as alive, None if it does."""
        silent = monotonic() - self._last
        return f"the worker has given no sign of life for {silent:.0f} s" if silent > SILENCE else None


STATES = (
    ("broker_connected", "1 while the broker is connected."),
    ("broker_blocked", "1 while the broker accepts no publications (alarm)."),
    ("consumer_stalled", "1 while jobs wait but none is delivered to this worker."),
    ("journal_writable", "1 while what is handed over can be recorded; while it cannot, nothing is consumed."),
)
"""What is true or false of a process, in the order of a snapshot."""


class _Durations:
    """A histogram of milliseconds: one count per bucket, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_LABELS)
        self.total = 0.0

    def add(self, milliseconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(_BOUNDS_MS, milliseconds)] += 1
        self.total += milliseconds

    def merge(self, counts: Sequence[int], total: float) -> None:
        """Add those of another process."""
        self.counts = [mine + other for mine, other in zip(self.counts, counts, strict=True)]
        self.total += total

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulated counts by upper bound, as Prometheus has them."""
        running = 0
        cumulated: list[tuple[str, float]] = []
        for label, count in zip(_LABELS, self.counts, strict=True):
            running += count
            cumulated.append((label, running))
        return cumulated


class Metrics(Collector):
    """Counts everything that an `Observer` sees; each instance has a registry of its own.

    `overflows` is set by whoever asks for what is counted: how often `Limits` could not keep a limit.
    """

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()
        self.overflows = 0
        self._attempts = {(state, kind): 0 for state in State for kind in Kind if _possible(state, kind)}
        self._durations = {state: _Durations() for state in State}
        self._lag = _Durations()
        self._stood_still = 0.0
        self._verdicts = dict.fromkeys(Outcome, 0)
        self._published = dict.fromkeys(map(str, KEYS), 0)
        self._events = dict.fromkeys(EVENTS, 0)
        self._ends = dict.fromkeys(Disposition, 0)
        self._flags = dict.fromkeys(FLAGS, 0)
        self._consumed = 0
        self._journal = JournalStats()
        self._writable = True
        self._expired = 0
        self._delayed = dict.fromkeys(Cause, 0)
        self._poisoned = 0
        self._bugs = 0
        self._jobs = 0
        self._sessions = 0
        self._drift = 0
        self._connected = False
        self._blocked = False
        self._lost = False
        self._reconnects = 0
        self._stalled = False
        self._session_limits = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:  # noqa: ARG002 - the Observer port
        """Count the attempt, its verdict with the flags, and the time it spent in each state."""
        self._attempts[result.state, result.kind] += 1
        self._verdicts[verdict.outcome] += 1
        if verdict.flags is not NO_FLAGS:
            for flag in FLAGS:
                self._flags[flag] += getattr(verdict.flags, flag)
        if verdict.expired or (result.state is State.PROCESS and result.kind is Kind.TIMEOUT):
            self._expired += 1
        for state, milliseconds in result.timing.items():
            durations = self._durations[state]  # type: ignore[index]  # timing is keyed by State, which is a str
            durations.counts[bisect_left(_BOUNDS_MS, milliseconds)] += 1
            durations.total += milliseconds

    def refused(self, result: Result) -> None:
        """Count a document that is no job: it has a result, and that is a failure."""
        self._attempts[result.state, result.kind] += 1
        self._verdicts[Outcome.FAILURE] += 1

    def consumed(self) -> None:
        """Count a message that came."""
        self._consumed += 1

    def ended(self, end: Disposition) -> None:
        """Count how a message ended."""
        self._ends[end] += 1

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:  # noqa: ARG002
        """Note how the journal is."""
        self._writable, self._journal = trouble is None, stats

    def died(self) -> None:
        """Note that the process is gone: what it had in flight is the broker's again."""
        self._ends[Disposition.RETURNED] += self._consumed - sum(self._ends.values())

    def delayed(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:  # noqa: ARG002 - the Observer port
        """Count a job that went back without an attempt."""
        self._delayed[cause] += 1

    def poisoned(self, reason: str) -> None:  # noqa: ARG002 - the Observer port
        """Count a message that is no job."""
        self._poisoned += 1

    def published(self, routing_key: str, count: int) -> None:
        """Count confirmed publications by the first word of their routing key."""
        key = routing_key.partition(".")[0]
        self._published[key if key in self._published else "other"] += count

    def bug(self, where: str, error: BaseException) -> None:  # noqa: ARG002 - the Observer port
        """Count something unforeseen."""
        self._bugs += 1

    def broker(self, event: str, detail: str) -> None:  # noqa: ARG002 - the Observer port
        """Count what happens to the connection, and follow it; a reconnect is a `connected` after a `lost`."""
        if event in self._events:
            self._events[event] += 1
        match event:
            case "connected":
                self._reconnects += self._lost
                self._connected, self._lost = True, False
            case "lost":
                self._connected, self._lost, self._blocked = False, True, False
            case "retrying":
                self._connected, self._blocked = False, False
            case "blocked" | "unblocked":
                self._blocked = event == "blocked"

    def in_flight(self, jobs: int, sessions: int) -> None:
        """Note the jobs being worked on and the SMTP connections open; the worker tells it every second."""
        self._jobs, self._sessions = jobs, sessions
        self._drift = self._consumed - sum(self._ends.values()) - jobs
        self.heartbeat.beat()

    def session_limit(self, host: str, messages: int) -> None:  # noqa: ARG002 - the Observer port
        """Count a limit of messages per session that was learnt."""
        self._session_limits += 1

    def stalled(self, *, stalled: bool) -> None:
        """Note whether the consumer is stalled."""
        self._stalled = stalled

    def lagged(self, seconds: float) -> None:
        """Count by how much a round of the event loop was late."""
        self._lag.add(seconds * 1000)

    def stood_still(self, seconds: float) -> None:
        """Count the time in which the whole process did not run: stopped, or without a processor."""
        self._stood_still += seconds

    def page(self) -> tuple[str, bytes]:
        """Return the Prometheus text format: content type and body."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def snapshot(self) -> Snapshot:
        """Return everything counted so far."""
        return {
            "counters": [list(table.values()) for table in self._tables],
            "singles": [
                *(self._expired, self._poisoned, self._bugs, self._reconnects, self._consumed, self.overflows),
                self._session_limits,
            ],
            "journal": [self._journal.octets, self._journal.records, self._journal.corrupt],
            "durations": [[*durations.counts, durations.total] for durations in self._durations.values()],
            "lag": [*self._lag.counts, self._lag.total, self._stood_still],
            "amounts": [self._jobs, self._sessions, self._drift],
            "states": [self._connected, self._blocked, self._stalled, self._writable],
        }

    def merge(self, snapshot: Snapshot) -> None:
        """Add the counters and histograms of another process, which runs the same version of the code."""
        for table, counts in zip(self._tables, snapshot["counters"], strict=True):
            for key, count in zip(table, counts, strict=True):
                table[key] += count
        for durations, (*counts, total) in zip(self._durations.values(), snapshot["durations"], strict=True):
            durations.merge(counts, total)
        *counts, total, still = snapshot["lag"]
        self._lag.merge(counts, total)
        self._stood_still += still
        expired, poisoned, bugs, reconnects, consumed, overflows, session_limits = snapshot["singles"]
        self._consumed += consumed
        mine = (self._journal.octets, self._journal.records, self._journal.corrupt)
        self._journal = JournalStats(*(one + other for one, other in zip(mine, snapshot["journal"], strict=True)))
        self._expired += expired
        self._poisoned += poisoned
        self._bugs += bugs
        self._reconnects += reconnects
        self.overflows += overflows
        self._session_limits += session_limits

    def collect(self) -> Iterator[Metric]:
        """Yield every family as it stands now; called by the registry for each scrape."""
        yield from self.counters()
        yield from amounts(self._jobs, self._sessions, self._drift)
        for (name, text), value in zip(
            STATES, (self._connected, self._blocked, self._stalled, self._writable), strict=True
        ):
            yield gauge(name, text, value)

    def counters(self) -> Iterator[Metric]:
        """Yield the families that only grow."""
        yield self._attempts_family()
        yield self._durations_family()
        yield histogram(
            "loop_lag_seconds",
            "Time by which a round of the event loop was late; ten rounds a second are looked at.",
            self._lag.buckets(),
            self._lag.total / 1000,
        )
        yield counter(
            "stood_still_seconds", "Time in which the process was stopped or had no processor.", self._stood_still
        )
        yield labelled("verdicts", "Results by what they mean.", "outcome", self._verdicts)
        yield labelled("flags", "Results by their flags, inferred or set by a response pattern.", "flag", self._flags)
        yield labelled("published", "Publications that the broker confirmed.", "key", self._published)
        yield labelled("broker_events", "What happened to the connection to the broker.", "event", self._events)
        yield counter("expired", "Jobs given up because their time or their attempts ran out.", self._expired)
        yield labelled("delayed", "Jobs that went back without an attempt.", "cause", self._delayed)
        yield counter("poisoned", "Messages put aside in the poison queue.", self._poisoned)
        yield counter("consumed", "Messages that came from the outbox.", self._consumed)
        yield labelled("ended", "Messages that came, by what became of them.", "end", self._ends)
        yield counter("journal_octets", "Octets written to the journal.", self._journal.octets)
        yield counter("journal_records", "Records written to the journal.", self._journal.records)
        yield counter("journal_corrupt", "Damaged journal files that were found.", self._journal.corrupt)
        yield counter("bugs", "Things that the code does not foresee; each has a log line `bug`.", self._bugs)
        yield counter("broker_reconnects", "Connections made after one was lost.", self._reconnects)
        yield counter(
            "limits_overflows", "Times that a limit was not kept because the table of limits is full.", self.overflows
        )
        yield counter(
            "session_limits_learnt",
            "Times that an MX host was found to take fewer messages in one session; each has a log line.",
            self._session_limits,
        )

    @property
    def _tables(self) -> tuple[dict[Any, int], ...]:
        """The counters by label, in the order of a snapshot."""
        return self._attempts, self._verdicts, self._published, self._events, self._ends, self._flags, self._delayed

    def _attempts_family(self) -> Metric:
        family = CounterMetricFamily(
            "mailq_attempts", "Results by the state in which the attempt ended, and how.", labels=["state", "result"]
        )
        for (state, kind), count in self._attempts.items():
            family.add_metric([state.value, kind.value], count)
        return family

    def _durations_family(self) -> Metric:
        family = HistogramMetricFamily(
            "mailq_state_seconds", "Time that one attempt spent in a state, all its targets together.", labels=["state"]
        )
        for state, durations in self._durations.items():
            family.add_metric([state.value], durations.buckets(), durations.total / 1000)
        return family


def _possible(state: State, kind: Kind) -> bool:
    """Tell whether an attempt can end so: only a `message` is ever accepted, or the recipient of a dry run."""
    return kind is not Kind.ACCEPTED or state in {State.MESSAGE, State.RCPTTO}
