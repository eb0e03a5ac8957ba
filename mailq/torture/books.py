"""The books of a torture: jobs published, messages taken, results told, and what does not agree. Pure.

Publications are counted, not ids: a producer may publish one id several times, and each is a job. `lost` was neither
taken by the receiver nor reported as failed, or was reported as failed though nothing was wrong with it. `doubled` are
the mails that the receiver took beyond one for each publication. One is `unmarked` unless a result `in_doubt` answers
for it, and `undue` if its disaster can leave nothing in doubt, or aimed at it after the worker had the answer. A
publication without a final result is `missing`, one with several has results doubled. One that was put aside as the
death of workers, though it was only near, is `poisoned` and nothing else. Hostile jobs may fail or be put aside, but
neither in silence nor twice.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from mailq.torture.plan import Disaster, Job


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over some disasters; they add up."""

    disasters: int = 0
    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    doubled_unmarked: int = 0
    doubled_undue: int = 0
    in_doubt: int = 0
    results_missing: int = 0
    results_doubled: int = 0
    poisoned: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        """Return the sum."""
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def holds(self) -> bool:
        """Tell whether nothing was lost or poisoned, nothing is missing, and every double is marked and due."""
        broken = self.lost or self.poisoned or self.results_missing or self.doubled_unmarked or self.doubled_undue
        return not broken


@dataclass(frozen=True, slots=True)
class Books:
    """All accounts of one run, by publication where nothing else is said.

    `taken` says how often the receiver took each job, all its copies together; `finals` which final results each
    publication has (True: delivered), `doubts` how many of its attempts are in doubt. What is not in `published` was
    never published. `unsure` publications were perhaps never published: the broker did not confirm them, so they and
    their copies prove nothing and are left out. `poisoned` ones are in the poison queue.
    """

    disasters: Sequence[Disaster]
    taken: Counter[str] = field(default_factory=Counter)
    published: frozenset[str] = frozenset()
    finals: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    doubts: Mapping[str, int] = field(default_factory=dict)
    unsure: frozenset[str] = frozenset()
    poisoned: frozenset[str] = frozenset()

    def tally(self, disaster: Disaster) -> Tally:
        """Return the counts of one disaster."""
        counts = add(self._tally(disaster, job) for job in disaster.jobs)
        return replace(counts, disasters=1)

    def _tally(self, disaster: Disaster, job: Job) -> Tally:
        """Return the counts of one job with all its copies."""
        names = [name for name in job.publications if name in self.published]
        if not self.unsure.isdisjoint(names):
            return Tally()
        taken = self.taken[job.identity]
        extra = max(0, taken - len(names))
        marks = sum(self.doubts.get(name, 0) for name in names)
        aimed_at = job is disaster.jobs[0]
        poisoned = sum(name in self.poisoned for name in names)
        # Nothing was wrong with those that were given up; the others that are not in poison were to be taken.
        given_up = sum(not all(self.finals.get(name, ())) for name in names)
        lost = given_up + max(0, len(names) - given_up - poisoned - taken)
        return Tally(
            jobs=len(names),
            lost=0 if job.hostile else lost,
            doubled=extra,
            doubled_unmarked=max(0, extra - marks),
            doubled_undue=extra if disaster.kind.calm or (disaster.kind.strict and aimed_at) else 0,
            in_doubt=sum(self.doubts.get(name, 0) > 0 for name in names),
            results_missing=sum(not (self.finals.get(name) or name in self.poisoned) for name in names),
            results_doubled=sum(len(self.finals.get(name, ())) > 1 for name in names),
            poisoned=0 if job.hostile else poisoned,
        )

    def by_kind(self) -> dict[str, Tally]:
        """Return the sums of each kind, by name."""
        sums: dict[str, Tally] = {}
        for disaster in self.disasters:
            name = disaster.kind.name
            sums[name] = sums.get(name, Tally()) + self.tally(disaster)
        return dict(sorted(sums.items()))

    def total(self) -> Tally:
        """Return the sums of all."""
        return add(self.by_kind().values())

    def suspects(self, disaster: Disaster) -> list[str]:
        """Return the jobs of a disaster for which a bar does not hold."""
        alone = [Disaster(disaster.number, disaster.kind, (job,), 0) for job in disaster.jobs[1:]]
        first = Disaster(disaster.number, disaster.kind, disaster.jobs[:1], 0)
        others = [each for each in alone if not self._holds_beside(each)]
        return [each.jobs[0].identity for each in ([] if self.tally(first).holds else [first]) + others]

    def _holds_beside(self, alone: Disaster) -> bool:
        """Tell whether all is well with one job that was not aimed at."""
        tally = self.tally(alone)
        due = not alone.kind.calm or not tally.doubled
        return due and not (tally.lost or tally.poisoned or tally.results_missing or tally.doubled_unmarked)


def add(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    total = Tally()
    for each in tallies:
        total += each
    return total
