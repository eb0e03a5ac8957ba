"""The books of a soak: what was published, what came of it, and whether all accounts of it agree.

Pure: everything is noted before. `troubles` are what does not agree, each in a line; without any the
soak is passed. Memory is judged only where the run is long enough: until each process remembers as many settled
attempts as it ever will (`mailq.worker.attempts.REMEMBERED`), it may grow.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bench import soak_watch
from bench.soak_mix import word_of
from bench.soak_watch import Page, Sample

LONG = 300.0
"""Seconds of load from which on memory is judged."""

WARM = 1 / 3
"""Share of the load after which memory has to stay where it is."""

GROWTH = 0.05
"""By which share memory may grow from then to the end of the load: settled jobs are remembered, up to a bound."""

SHOWN = 3
"""Ids named in a trouble."""


@dataclass(frozen=True, slots=True)
class Books:
    """One soak.

    `finals` says of each id how often it ended delivered (True) or not, `taken` how often a receiver took
    it; `idle` are samples before the load and after everything.
    """

    seconds: float
    made: tuple[str, ...]
    finals: Mapping[str, Counter[bool]]
    taken: Counter[str]
    depths: Mapping[str, int]
    page: Page
    fallen: tuple[str, ...]
    samples: tuple[Sample, ...]
    idle: tuple[Sample, Sample]
    statuses: Mapping[str, int]

    @property
    def success(self) -> int:
        """Final results that say delivered."""
        return sum(ends[True] for ends in self.finals.values())

    @property
    def failure(self) -> int:
        """Final results that say not delivered."""
        return sum(ends[False] for ends in self.finals.values())

    @property
    def missing(self) -> list[str]:
        """Jobs without a final result."""
        return [each for each in self.made if each not in self.finals]

    @property
    def doubled(self) -> list[str]:
        """Jobs with more than one final result."""
        return [each for each, ends in self.finals.items() if ends.total() > 1]

    @property
    def growth_mb(self) -> float:
        """By how much memory grew after warming up, by the line through all samples from then on."""
        warm = self._warm
        return soak_watch.slope(warm) * (warm[-1].moment - warm[0].moment) if warm else 0.0

    @property
    def troubles(self) -> list[str]:
        """What does not agree; empty if all does."""
        return [*self._jobs(), *self._queues(), *self._counters(), *self._processes()]

    def record(self) -> dict[str, object]:
        """Return the figures, ready for JSON."""
        verdicts = {outcome: self._verdicts(outcome) for outcome in ("success", "failure", "retry")}
        return {
            "seconds": self.seconds,
            "jobs": len(self.made),
            "success": self.success,
            "failure": self.failure,
            "missing": len(self.missing),
            "doubled": len(self.doubled),
            "attempts": round(sum(verdicts.values())),
            "delayed": round(self._delayed),
            "taken": self.taken.total(),
            "rss_start_mb": round(self.samples[0].rss_mb, 1),
            "rss_warm_mb": round(self._warm[0].rss_mb, 1),
            "rss_end_mb": round(self.samples[-1].rss_mb, 1),
            "rss_peak_mb": round(max(each.rss_mb for each in self.samples), 1),
            "rss_growth_mb": round(self.growth_mb, 2),
            "fds_idle_start": self.idle[0].descriptors,
            "fds_idle_end": self.idle[1].descriptors,
            "fds_peak": max(each.descriptors for each in self.samples),
            "ok": not self.troubles,
        }

    @property
    def _warm(self) -> tuple[Sample, ...]:
        warm = tuple(each for each in self.samples if each.moment >= self.seconds * WARM)
        return warm or self.samples[-1:]

    def _jobs(self) -> Iterator[str]:
        """Each job has one end, the right one, and was taken as often as that end says."""
        strange = self.finals.keys() - set(self.made)
        wrong = [each for each, ends in self.finals.items() if ends[not word_of(each).delivered]]
        unheard = [each for each, ends in self.finals.items() if ends[True] and not self.taken[each]]
        often = [each for each, times in self.taken.items() if times > word_of(each).most_taken]
        yield from _named("jobs without a result", self.missing)
        yield from _named("jobs with more than one result", self.doubled)
        yield from _named("results of no job", strange)
        yield from _named("results that should be others", wrong)
        yield from _named("jobs said to be delivered that no receiver took", unheard)
        yield from _named("jobs that receivers took too often", often)

    def _queues(self) -> Iterator[str]:
        expected = {
            "success": self.success,
            "failures": self.failure,
            "retry": round(self._verdicts("retry")),
            "poison": 0,
        }
        for name, count in expected.items():
            if self.depths[name] != count:
                yield f"queue {name} holds {self.depths[name]:,} messages, not {count:,}"

    @property
    def _delayed(self) -> float:
        return sum(value for name, value in self.page.items() if name.startswith("mailq_delayed_total{"))

    def _counters(self) -> Iterator[str]:
        """Metrics say what the queues hold."""
        retries = self._verdicts("retry")
        attempts = sum(self._verdicts(outcome) for outcome in ("success", "failure", "retry"))
        expected = {
            'mailq_verdicts_total{outcome="success"}': self.success,
            'mailq_verdicts_total{outcome="failure"}': self.failure,
            'mailq_attempts_total{result="accepted",state="message"}': self.success,
            'mailq_published_total{key="success"}': self.success,
            'mailq_published_total{key="failure"}': self.failure,
            'mailq_published_total{key="retry"}': 2 * retries,  # the copy, and the job on its way back
            'mailq_published_total{key="delay"}': self._delayed,
            **dict.fromkeys(("mailq_poisoned_total", "mailq_bugs_total", "mailq_broker_reconnects_total"), 0),
            **dict.fromkeys(("mailq_limits_overflows_total", "mailq_in_flight", "mailq_sessions"), 0),
            **{f'mailq_process_restarts_total{{process="{index}"}}': 0 for index in (0, 1)},
        }
        for name, count in expected.items():
            if self.page.get(name) != count:
                yield f"{name} is {self.page.get(name)}, not {count}"
        ended = sum(value for name, value in self.page.items() if name.startswith("mailq_attempts_total{"))
        if ended != attempts:
            yield f"{ended} attempts have {attempts} verdicts"
        for name in self.fallen:
            yield f"{name} fell"

    def _processes(self) -> Iterator[str]:
        before, after = self.idle
        if after.descriptors > before.descriptors:
            yield f"{after.descriptors} descriptors are open, {before.descriptors} were before"
        allowed = self._warm[0].rss_mb * GROWTH
        if self.seconds >= LONG and self.growth_mb > allowed:
            yield f"memory grew by {self.growth_mb:.1f} MB after warming up"
        for name, status in self.statuses.items():
            if status:
                yield f"{name} ended with status {status}"

    def _verdicts(self, outcome: str) -> float:
        return self.page.get(f'mailq_verdicts_total{{outcome="{outcome}"}}', 0.0)


def _named(what: str, ids: Iterable[str]) -> Iterator[str]:
    found = list(ids)
    if found:
        yield f"{len(found):,} {what}: {', '.join(found[:SHOWN])}{', …' if len(found) > SHOWN else ''}"
