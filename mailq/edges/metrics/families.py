"""The metric families that pages are made of, in the few forms that there are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric


def amounts(jobs: int, sessions: int, drift: int) -> Iterator[Metric]:
    """Yield the gauges of what is going on."""
    yield gauge("drift", "Messages consumed that neither ended nor are in flight; anything but 0 is a bug.", drift)
    yield gauge("in_flight", "Jobs being worked on.", jobs)
    yield gauge("sessions", "SMTP connections open.", sessions)


def counter(name: str, text: str, value: float) -> Metric:
    """Return a counter without labels."""
    return CounterMetricFamily(f"mailq_{name}", text, value=value)


def gauge(name: str, text: str, value: int) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(f"mailq_{name}", text, value=value)


def histogram(name: str, text: str, buckets: Sequence[tuple[str, float]], total: float) -> Metric:
    """Return a histogram without labels; counts are cumulated."""
    return HistogramMetricFamily(f"mailq_{name}", text, buckets=buckets, sum_value=total)


def labelled(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    """Return a counter with one label, and its value for each of the label's."""
    family = CounterMetricFamily(f"mailq_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([str(value)], count)
    return family
