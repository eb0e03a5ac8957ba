"""What the torture prints: a line for each disaster, one for each kind in the end, what is wrong, and JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mailq.torture.books import Books, Tally

_COLUMNS = {
    "disasters": "disasters",
    "jobs": "jobs",
    "lost": "lost",
    "doubled": "doubled",
    "doubled_unmarked": "unmarked",
    "doubled_undue": "undue",
    "in_doubt": "in doubt",
    "results_missing": "res. missing",
    "results_doubled": "res. doubled",
    "poisoned": "poisoned",
}
"""Figures of a tally, and the words above them."""

_WIDTHS = {key: max(len(word), len("100,000")) + 2 for key, word in _COLUMNS.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for: all that is needed to repeat it."""

    seed: int
    disasters: int
    kinds: tuple[str, ...]
    processes: int
    jobs: int
    unnamed: bool = False

    def command(self, all_kinds: tuple[str, ...]) -> str:
        """Return the command line that repeats the run."""
        words = f"mailq torture --seed {self.seed} --disasters {self.disasters} --processes {self.processes}"
        kinds = "" if self.kinds == all_kinds else f" --kinds {','.join(self.kinds)}"
        return f"{words} --jobs-per-disaster {self.jobs}{kinds}{' --unnamed' if self.unnamed else ''}"


def head(text: str) -> str:
    """Return the line above rows."""
    return f"{text:<28}" + "".join(f"{word:>{_WIDTHS[key]}}" for key, word in _COLUMNS.items())


def row(name: str, tally: Tally) -> str:
    """Return the figures of a tally under their words."""
    return f"{name:<28}" + "".join(f"{getattr(tally, key):{_WIDTHS[key]},}" for key in _COLUMNS)


def lines(books: Books, settings: Settings, all_kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the report for people."""
    yield head("in the end, by kind")
    for name, tally in books.by_kind().items():
        yield row(name, tally)
    yield row("all", books.total())
    for disaster in books.disasters:
        tally = books.tally(disaster)
        if not tally.holds:
            jobs = ", ".join(books.suspects(disaster))
            yield f"disaster {disaster.number}, {disaster.kind.name}: {_troubles(tally)} ({jobs})"
    if books.unsure:
        yield f"{len(books.unsure)} jobs left out: the broker never confirmed them"
    verdict = "holds: nothing lost, nothing missing, every double marked" if books.total().holds else "DOES NOT HOLD"
    yield f"{verdict}; seed {settings.seed}"
    yield f"once more: {settings.command(all_kinds)}"


def record(books: Books, settings: Settings, seconds: float) -> dict[str, Any]:
    """Return the figures, ready for JSON."""
    total = books.total()
    return {
        **asdict(total),
        "seed": settings.seed,
        "unsure": len(books.unsure),
        "seconds": round(seconds, 1),
        "kinds": {name: asdict(tally) for name, tally in books.by_kind().items()},
        "ok": total.holds,
    }


def _troubles(tally: Tally) -> str:
    keys = ("lost", "poisoned", "results_missing", "doubled_unmarked", "doubled_undue")
    return ", ".join(f"{getattr(tally, key)} {key.replace('_', ' ')}" for key in keys if getattr(tally, key))
