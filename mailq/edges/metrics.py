"""Metrics: what one worker process counts, for Prometheus to scrape.

The hot path only adds to plain numbers; prometheus_client sees them when a scrape asks
(`Metrics.collect`), because its own counters take a lock for each increment. Everything runs on
one event loop, so plain numbers are safe. Label values come from the enums of `core` and from the
fixed names below, never from a domain, a host or an address: whoever sends or receives mail
cannot grow the number of series. What the figures mean for an operator is decided in
`etc/prometheus/alerts.yml`, not here.
"""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mailq.core.job import Job
from mailq.core.result import Result
from mailq.core.states import Kind, State
from mailq.core.verdict import Outcome, Verdict

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the duration buckets in seconds: from a local answer to the longest SMTP timeout."""

_BOUNDS_MS = tuple(bound * 1000 for bound in BOUNDS)
_LABELS = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")

KEYS = (*Outcome, "delay", "poison", "other")
"""Values of the label `key`: the first word of a routing key, `other` for a queue that a job names itself."""


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
    """Counts everything that an `Observer` sees; each instance has a registry of its own."""

    def __init__(self) -> None:
        self._attempts = {(state, kind): 0 for state in State for kind in Kind if _possible(state, kind)}
        self._durations = {state: _Durations() for state in State}
        self._verdicts = dict.fromkeys(Outcome, 0)
        self._published = dict.fromkeys(map(str, KEYS), 0)
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
        """Follow the connection; a reconnect is a `connected` after a `lost`."""
        match event:
            case "connected":
                self._reconnects += self._lost
                self._connected, self._lost, self._blocked = True, False, False
            case "lost":
                self._connected, self._lost, self._blocked = False, True, False
            case "retrying":
                self._connected, self._blocked = False, False
            case "blocked" | "unblocked":
                self._blocked = event == "blocked"

    def flight(self, jobs: int, sessions: int) -> None:
        """Note the jobs being worked on and the SMTP connections open."""
        self._jobs, self._sessions = jobs, sessions

    def stalled(self, *, stalled: bool) -> None:
        """Note whether the consumer is stalled."""
        self._stalled = stalled

    def page(self) -> tuple[str, bytes]:
        """Return the Prometheus text format: content type and body."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family as it stands now; called by the registry for each scrape."""
        yield self._attempts_family()
        yield self._durations_family()
        yield _labelled("verdicts", "Results by what they mean.", "outcome", self._verdicts)
        yield _labelled("published", "Publications that the broker confirmed.", "key", self._published)
        yield _counter("expired", "Jobs given up because their time or their attempts ran out.", self._expired)
        yield _counter("parked", "Jobs that were not due and went back without an attempt.", self._parked)
        yield _counter("poisoned", "Messages that are no job, moved to the poison queue.", self._poisoned)
        yield _counter("bugs", "Things that the code does not foresee; each has a log line `bug`.", self._bugs)
        yield _gauge("in_flight", "Jobs being worked on.", self._jobs)
        yield _gauge("sessions", "SMTP connections open.", self._sessions)
        yield _gauge("broker_connected", "1 while the broker is connected.", self._connected)
        yield _gauge("broker_blocked", "1 while the broker accepts no publications (alarm).", self._blocked)
        yield _counter("broker_reconnects", "Connections made after one was lost.", self._reconnects)
        yield _gauge("consumer_stalled", "1 while jobs wait but none is delivered to this worker.", self._stalled)

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
    """Tell whether an attempt can end so: only `message` is ever accepted."""
    return kind is not Kind.ACCEPTED or state is State.MESSAGE


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"mailq_{name}", text, value=value)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(f"mailq_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: dict[str, int] | dict[Outcome, int]) -> Metric:
    family = CounterMetricFamily(f"mailq_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([str(value)], count)
    return family
