"""One thing that `mailq check` has looked at: how bad it is, what was seen, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was seen, a line for each problem, and what to do about it unless it is well."""

    level: Level
    what: str
    seen: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding as a JSON object; advice is absent if there is none."""
        record = {"level": self.level.value, "what": self.what, "seen": self.seen}
        return record | {"advice": self.advice} if self.advice else record
