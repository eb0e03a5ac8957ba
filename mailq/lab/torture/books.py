"""The books of a torture: jobs published, messages taken, results told, and what does not agree. Pure.

`lost` was neither taken by the receiver nor reported as failed, or was reported as failed though nothing was
wrong with it. `doubled` was taken more than once; it is `unmarked` if no result of the job says `in_doubt`, and
`undue` if its disaster can leave nothing in doubt, or aimed at it after the worker had the answer. A job without
a final result is `missing`, one with several has results doubled. One that was put aside as the death of workers,
though it was only near, is `poisoned` and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from mailq.lab.torture.plan import Disaster


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
    """All accounts of one run.

    `taken` says how often the receiver took each job, `finals` which final results it has (True: delivered),
    `doubted` which jobs have a result that is in doubt. `unsure` jobs were perhaps never published: the broker
    did not confirm them, so they prove nothing and are left out. `poisoned` jobs are in the poison queue.
    """

    disasters: Sequence[Disaster]
    taken: Counter[str] = field(default_factory=Counter)
    finals: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    doubted: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    poisoned: frozenset[str] = frozenset()

    def tally(self, disaster: Disaster) -> Tally:
        """Return the counts of one disaster."""
        mine = [job.identity for job in disaster.jobs if job.identity not in self.unsure]
        doubled = [each for each in mine if self.taken[each] > 1]
        aimed_at = disaster.jobs[0].identity
        return Tally(
            disasters=1,
            jobs=len(mine),
            lost=sum(self._lost(each) for each in mine),
            doubled=len(doubled),
            doubled_unmarked=sum(each not in self.doubted for each in doubled),
            doubled_undue=sum(disaster.kind.calm or (disaster.kind.strict and each == aimed_at) for each in doubled),
            in_doubt=sum(each in self.doubted for each in mine),
            results_missing=sum(not (self.finals.get(each) or each in self.poisoned) for each in mine),
            results_doubled=sum(len(self.finals.get(each, ())) > 1 for each in mine),
            poisoned=sum(each in self.poisoned for each in mine),
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

    def _lost(self, identity: str) -> bool:
        ends = self.finals.get(identity, ())
        if any(not delivered for delivered in ends):
            return True  # nothing was wrong with it
        return not self.taken[identity] and identity not in self.poisoned


def add(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    total = Tally()
    for each in tallies:
        total += each
    return total
