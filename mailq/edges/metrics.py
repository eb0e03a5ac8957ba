"""Metrics: what worker processes count, for Prometheus to scrape.

The hot path only adds to plain numbers; prometheus_client sees them when a scrape asks
(`Metrics.collect`), because its own counters take a lock for each increment. Everything runs on
one event loop, so plain numbers are safe. Label values come from the enums of `core` and from the
fixed names below, never from a domain, a host or an address: whoever sends or receives mail
cannot grow the number of series.

`Metrics` is one process. Under a supervisor each process hands over a `snapshot` and `Fleet` makes one
page of them: counters, histograms, jobs and sessions are summed; what is true or false of a process
(connected, blocked, stalled, up) keeps a series for each, labelled `process`. What the figures mean
for an operator is decided in `etc/prometheus/alerts.yml`, not here.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mailq.core.ending import End
from mailq.core.job import Job
from mailq.core.journal import JournalStats
from mailq.core.result import Result
from mailq.core.states import Kind, State
from mailq.core.verdict import Outcome, Verdict

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the duration buckets in seconds: from a local answer to the longest SMTP timeout."""

_BOUNDS_MS = tuple(bound * 1000 for bound in BOUNDS)
_LABELS = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")

KEYS = (*Outcome, "delay", "poison", "other")
"""Values of the label `key`: the first word of a routing key, `other` for a queue that a job names itself."""

EVENTS = (
    *("connected", "lost", "retrying", "blocked", "unblocked", "unsettled"),
    *("returned", "nacked", "unconfirmed", "cancelled", "refused"),
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

    def trouble(self) -> str | None:
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
        self.counts[bisect_left(_BOUNDS_MS, milliseconds)] += 1
        self.total += milliseconds

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

    `overflows` is set by whoever makes the page: how often `Limits` could not keep a limit.
    """

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()
        self.overflows = 0
        self._attempts = {(state, kind): 0 for state in State for kind in Kind if _possible(state, kind)}
        self._durations = {state: _Durations() for state in State}
        self._verdicts = dict.fromkeys(Outcome, 0)
        self._published = dict.fromkeys(map(str, KEYS), 0)
        self._events = dict.fromkeys(EVENTS, 0)
        self._ends = dict.fromkeys(End, 0)
        self._consumed = 0
        self._journal = JournalStats()
        self._writable = True
        self._expired = 0
        self._parked = 0
        self._poisoned = 0
        self._bugs = 0
        self._jobs = 0
        self._sessions = 0
        self._connected = False
        self._blocked = False
        self._lost = False
        self._reconnects = 0
        self._stalled = False
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:  # noqa: ARG002 - the Observer port
        """Count the attempt, its verdict and the time it spent in each state."""
        self._attempts[result.state, result.kind] += 1
        self._verdicts[verdict.outcome] += 1
        if verdict.expired or (result.state is State.PROCESS and result.kind is Kind.TIMEOUT):
            self._expired += 1
        durations = self._durations
        for state, milliseconds in result.timing.items():
            durations[state].add(milliseconds)  # type: ignore[index]  # timing is keyed by State, which is a str

    def refused(self, result: Result) -> None:
        """Count a document that is no job: it has a result, and that is a failure."""
        self._attempts[result.state, result.kind] += 1
        self._verdicts[Outcome.FAILURE] += 1

    def consumed(self) -> None:
        """Count a message that came."""
        self._consumed += 1

    def ended(self, end: End) -> None:
        """Count how a message ended."""
        self._ends[end] += 1

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:  # noqa: ARG002
        """Note how the journal is."""
        self._writable, self._journal = trouble is None, stats

    @property
    def drift(self) -> int:
        """Messages consumed that have neither ended nor are in flight; anything but 0 is a bug."""
        return self._consumed - sum(self._ends.values()) - self._jobs

    def died(self) -> None:
        """Note that the process is gone: what it had in flight is the broker's again."""
        self._ends[End.RETURNED] += self._consumed - sum(self._ends.values())

    def parked(self, job: Job, until: datetime) -> None:  # noqa: ARG002 - the Observer port
        """Count a job that went back without an attempt."""
        self._parked += 1

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

    def flight(self, jobs: int, sessions: int) -> None:
        """Note the jobs being worked on and the SMTP connections open; the worker tells it every second."""
        self._jobs, self._sessions = jobs, sessions
        self.heartbeat.beat()

    def stalled(self, *, stalled: bool) -> None:
        """Note whether the consumer is stalled."""
        self._stalled = stalled

    def page(self) -> tuple[str, bytes]:
        """Return the Prometheus text format: content type and body."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def snapshot(self) -> Snapshot:
        """Return everything counted so far."""
        return {
            "counters": [list(table.values()) for table in self._tables],
            "singles": [self._expired, self._parked, self._poisoned, self._bugs, self._reconnects, self._consumed],
            "journal": [self._journal.octets, self._journal.records, self._journal.corrupt],
            "durations": [[*durations.counts, durations.total] for durations in self._durations.values()],
            "amounts": [self._jobs, self._sessions],
            "states": [self._connected, self._blocked, self._stalled, self._writable],
        }

    def merge(self, snapshot: Snapshot) -> None:
        """Add the counters and histograms of another process, which runs the same version of the code."""
        for table, counts in zip(self._tables, snapshot["counters"], strict=True):
            for key, count in zip(table, counts, strict=True):
                table[key] += count
        for durations, (*counts, total) in zip(self._durations.values(), snapshot["durations"], strict=True):
            durations.counts = [mine + other for mine, other in zip(durations.counts, counts, strict=True)]
            durations.total += total
        expired, parked, poisoned, bugs, reconnects, consumed = snapshot["singles"]
        self._consumed += consumed
        mine = (self._journal.octets, self._journal.records, self._journal.corrupt)
        self._journal = JournalStats(*(one + other for one, other in zip(mine, snapshot["journal"], strict=True)))
        self._expired += expired
        self._parked += parked
        self._poisoned += poisoned
        self._bugs += bugs
        self._reconnects += reconnects

    def collect(self) -> Iterator[Metric]:
        """Yield every family as it stands now; called by the registry for each scrape."""
        yield from self.counters()
        yield from _amounts(self._jobs, self._sessions, self.drift)
        for (name, text), value in zip(
            STATES, (self._connected, self._blocked, self._stalled, self._writable), strict=True
        ):
            yield _gauge(name, text, value)

    def counters(self) -> Iterator[Metric]:
        """Yield the families that only grow."""
        yield self._attempts_family()
        yield self._durations_family()
        yield _labelled("verdicts", "Results by what they mean.", "outcome", self._verdicts)
        yield _labelled("published", "Publications that the broker confirmed.", "key", self._published)
        yield _labelled("broker_events", "What happened to the connection to the broker.", "event", self._events)
        yield _counter("expired", "Jobs given up because their time or their attempts ran out.", self._expired)
        yield _counter("parked", "Jobs that were not due and went back without an attempt.", self._parked)
        yield _counter("poisoned", "Messages that are no job, moved to the poison queue.", self._poisoned)
        yield _counter("consumed", "Messages that came from the outbox.", self._consumed)
        yield _labelled("ended", "Messages that came, by what became of them.", "end", self._ends)
        yield _counter("journal_octets", "Octets written to the journal.", self._journal.octets)
        yield _counter("journal_records", "Records written to the journal.", self._journal.records)
        yield _counter("journal_corrupt", "Damaged journal files that were found.", self._journal.corrupt)
        yield _counter("bugs", "Things that the code does not foresee; each has a log line `bug`.", self._bugs)
        yield _counter("broker_reconnects", "Connections made after one was lost.", self._reconnects)
        yield _counter(
            "limits_overflows", "Times that a limit was not kept because the table of limits is full.", self.overflows
        )

    @property
    def _tables(self) -> tuple[dict[Any, int], ...]:
        """The counters by label, in the order of a snapshot."""
        return self._attempts, self._verdicts, self._published, self._events, self._ends

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


class Fleet(Collector):
    """The page of all worker processes of a supervisor, by their index from 0.

    What a process has counted stays in the sums when it does not answer, and when it is gone: a
    counter that falls would look like a restart of everything. What it counted between its last
    answer and its death is lost.
    """

    def __init__(self, processes: int) -> None:
        self.overflows = 0
        self._gone = Metrics()
        self._last: dict[int, Snapshot] = {}
        self._now: Mapping[int, Snapshot] = {}
        self._restarts = dict.fromkeys(range(processes), 0)
        self._processes: dict[str, ProcessCollector] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def restarted(self, index: int) -> None:
        """Note that a new process begins in the place of one that is gone."""
        self._restarts[index] += 1
        if (last := self._last.pop(index, None)) is not None:
            self._gone.merge(last)
            self._gone.died()

    def page(self, answers: Mapping[int, Snapshot], pids: Mapping[str, int]) -> tuple[str, bytes]:
        """Return the Prometheus text format: content type and body.

        `answers` are the snapshots of the processes that gave one, `pids` the processes to show the
        memory, time and descriptors of.
        """
        self._now = answers
        self._last.update(answers)
        self._processes = {name: ProcessCollector(pid=partial(int, pid), registry=None) for name, pid in pids.items()}
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family as it stands now; called by the registry for each scrape."""
        total = Metrics()
        total.overflows = self.overflows
        for snapshot in (self._gone.snapshot(), *self._last.values()):
            total.merge(snapshot)
        yield from total.counters()
        jobs, sessions = (sum(each["amounts"][place] for each in self._now.values()) for place in (0, 1))
        yield from _amounts(jobs, sessions, sum(_drift(each) for each in self._now.values()))
        for place, (name, text) in enumerate(STATES):
            yield _each(name, text, {index: each["states"][place] for index, each in self._now.items()})
        up = {index: index in self._now for index in self._restarts}
        yield _each("process_up", "1 while the worker process answers.", up)
        restarts = CounterMetricFamily("mailq_process_restarts", "Worker processes begun anew.", labels=["process"])
        for index, count in self._restarts.items():
            restarts.add_metric([str(index)], count)
        yield restarts
        yield from _resources(self._processes)


def _resources(processes: Mapping[str, ProcessCollector]) -> Iterator[Metric]:
    """Yield memory, time and descriptors of processes in one family each, labelled `process`."""
    families: dict[str, Metric] = {}
    for process, collector in processes.items():
        for family in collector.collect():
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {"process": process}, sample.value)
    yield from families.values()


def _drift(snapshot: Snapshot) -> int:
    """Return the drift of one process."""
    process = Metrics()
    process.merge(snapshot)
    process.flight(*snapshot["amounts"])
    return process.drift


def _amounts(jobs: int, sessions: int, drift: int) -> Iterator[Metric]:
    yield _gauge("drift", "Messages consumed that neither ended nor are in flight; anything but 0 is a bug.", drift)
    yield _gauge("in_flight", "Jobs being worked on.", jobs)
    yield _gauge("sessions", "SMTP connections open.", sessions)


def _each(name: str, text: str, values: Mapping[int, bool]) -> Metric:
    family = GaugeMetricFamily(f"mailq_{name}", text, labels=["process"])
    for index, value in values.items():
        family.add_metric([str(index)], value)
    return family


def _possible(state: State, kind: Kind) -> bool:
    """Tell whether an attempt can end so: only a `message` is ever accepted, or the recipient of a dry run."""
    return kind is not Kind.ACCEPTED or state in {State.MESSAGE, State.RCPTTO}


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"mailq_{name}", text, value=value)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(f"mailq_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(f"mailq_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([str(value)], count)
    return family
