"""What `mailq webhooks` counts, for Prometheus, and what it logs: the one observer of webhooks.

Labels are the names of endpoints, which come from the configuration, and fixed words. Log lines say
what an operator has to know: troubles, pauses, what is given up. Texts of strangers are escaped by the log.
"""

import traceback
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailq.core.webhooks.endpoint import Answer, AnswerMeaning

NOBODY = "-"
"""Stands for an endpoint where a message was meant for none."""


class Logger(Protocol):
    """The part of a structlog logger that is used."""

    def debug(self, event: str, **facts: Any) -> object:  # noqa: ANN401 - whatever can be logged
        """Write a line."""

    def info(self, event: str, **facts: Any) -> object:  # noqa: ANN401 - the same
        """Write a line."""

    def warning(self, event: str, **facts: Any) -> object:  # noqa: ANN401 - the same
        """Write a line."""

    def error(self, event: str, **facts: Any) -> object:  # noqa: ANN401 - the same
        """Write a line."""


class HookMetrics(Collector):
    """Counts and logs what becomes of events; `endpoints` are the names that are configured."""

    def __init__(self, endpoints: tuple[str, ...], logger: Logger) -> None:
        self._logger = logger
        self._requests = {(name, meaning): 0 for name in endpoints for meaning in AnswerMeaning}
        self._events = {(name, meaning): 0 for name in endpoints for meaning in AnswerMeaning}
        self._seconds = dict.fromkeys(endpoints, 0.0)
        self._dead = dict.fromkeys((*endpoints, NOBODY), 0)
        self._paused = dict.fromkeys(endpoints, 0)
        self._gone = dict.fromkeys(endpoints, 0)
        self._bugs = dict.fromkeys((*endpoints, NOBODY), 0)
        self._reconnects = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def answered(self, endpoint: str, answer: Answer, events: int, seconds: float) -> None:
        """Count a request, its events and its time."""
        self._requests[endpoint, answer.meaning] += 1
        self._events[endpoint, answer.meaning] += events
        self._seconds[endpoint] += seconds
        if answer.meaning is AnswerMeaning.REFUSED:
            self._logger.warning("webhook_refused", endpoint=endpoint, events=events, answer=str(answer))
        else:
            ms = round(seconds * 1000, 1)
            self._logger.debug("webhook", endpoint=endpoint, events=events, answer=str(answer), ms=ms)

    def paused(self, endpoint: str, seconds: float, answer: Answer) -> None:
        """Note that an endpoint is left alone."""
        self._paused[endpoint] = 1
        self._logger.warning("webhook_paused", endpoint=endpoint, seconds=round(seconds, 1), answer=str(answer))

    def resumed(self, endpoint: str) -> None:
        """Note that an endpoint takes events again."""
        self._paused[endpoint] = 0
        self._logger.info("webhook_resumed", endpoint=endpoint)

    def gone(self, endpoint: str) -> None:
        """Note that an endpoint wants no more events."""
        self._gone[endpoint] = 1
        detail = "it answered 410: its events stay in its queue until mailq webhooks starts again or they are too old"
        self._logger.error("webhook_gone", endpoint=endpoint, detail=detail)

    def dead(self, endpoint: str, reason: str) -> None:
        """Count a message that is given up."""
        self._dead[endpoint or NOBODY] += 1
        self._logger.error("webhook_dead", endpoint=endpoint or NOBODY, reason=reason[:500])

    def bug(self, endpoint: str, error: BaseException) -> None:
        """Count and log an exception that the code does not foresee."""
        self._bugs[endpoint or NOBODY] += 1
        # Without the exception's own text, which may hold the URL.
        trace = "".join(traceback.format_tb(error.__traceback__))[-2000:]
        kind = type(error).__name__
        self._logger.error("webhook_bug", endpoint=endpoint or NOBODY, exception=kind, traceback=trace)

    def hooks_broker(self, queue: str, event: str, detail: str) -> None:
        """Note a change of a connection to the broker."""
        self._reconnects += event == "lost"
        write = self._logger.info if event == "connected" else self._logger.warning
        write("broker", queue=queue, change=event, detail=detail[:500])

    def page(self) -> tuple[str, bytes]:
        """Return the Prometheus text format: content type and body."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family as it stands now; called by the registry for each scrape."""
        about = {"requests": "Requests to endpoints, by what the answer means.", "events": "Events in these requests."}
        for what, table in (("requests", self._requests), ("events", self._events)):
            family = CounterMetricFamily(f"mailq_webhook_{what}", about[what], labels=["endpoint", "answer"])
            for (name, meaning), count in table.items():
                family.add_metric([name, meaning.value], count)
            yield family
        yield _counters("seconds", "Seconds that endpoints took to answer.", self._seconds)
        yield _counters("dead", "Messages given up.", self._dead)
        yield _counters("bugs", "Exceptions that mailq does not foresee.", self._bugs)
        yield _gauges("paused", "1 while an endpoint in trouble is left alone.", self._paused)
        yield _gauges("gone", "1 after an endpoint has answered 410.", self._gone)
        yield CounterMetricFamily("mailq_webhook_broker_losses", "Connections lost.", value=self._reconnects)


def _counters(name: str, text: str, values: dict[str, float] | dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"mailq_webhook_{name}", text, labels=["endpoint"])
    for endpoint, value in values.items():
        family.add_metric([endpoint], value)
    return family


def _gauges(name: str, text: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"mailq_webhook_{name}", text, labels=["endpoint"])
    for endpoint, value in values.items():
        family.add_metric([endpoint], value)
    return family
