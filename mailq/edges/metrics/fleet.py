"""One page of metrics for all worker processes of a supervisor.

Counters, histograms, jobs and sessions are summed; what is true or false of a process (connected,
blocked, stalled, up) keeps a series for each, labelled `process`.
"""

from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailq.edges.metrics.families import amounts
from mailq.edges.metrics.process import STATES, Metrics, Snapshot


class Fleet(Collector):
    """The page of all worker processes of a supervisor, by their index from 0.

    What a process has counted stays in the sums when it does not answer, and when it is gone: a
    counter that falls would look like a restart of everything. What it counted between its last
    answer and its death is lost.
    """

    def __init__(self, processes: int) -> None:
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

    def died(self, index: int) -> None:
        """Note that a process is gone: what it counted stays, what it had in flight is the broker's again."""
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
        for snapshot in (self._gone.snapshot(), *self._last.values()):
            total.merge(snapshot)
        yield from total.counters()
        jobs, sessions, drift = (sum(each["amounts"][place] for each in self._now.values()) for place in range(3))
        yield from amounts(jobs, sessions, drift)
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


def _each(name: str, text: str, values: Mapping[int, bool]) -> Metric:
    family = GaugeMetricFamily(f"mailq_{name}", text, labels=["process"])
    for index, value in values.items():
        family.add_metric([str(index)], value)
    return family
