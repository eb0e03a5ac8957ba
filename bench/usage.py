"""What processes cost, read from /proc: CPU seconds of a process tree, and its largest peak of memory.

CPU is the kernel's own account in clock ticks (10 ms on Linux), good to a percent over a second; see
proc(5) for the fields of `stat` and `status`. A child that ended counts once its parent waited for it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)


def tree(pid: int) -> list[int]:
    """Return the process and all its living descendants; empty if it is gone."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(*_GONE):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [pid] if pid in parents else []
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time of the whole tree, its ended children included, in seconds."""
    return sum(_ticks(tree(pid))) / _TICKS


def cpu_snapshot(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU seconds of each named tree."""
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has been busy since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, (_PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def peak_rss_mb(pid: int) -> float:
    """Return the peak resident memory of the largest process of the tree, in units of 1,000,000 octets."""
    peaks = [0]
    for each in tree(pid):
        with suppress(*_GONE):
            lines = (_PROC / str(each) / "status").read_text().splitlines()
            peaks += [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return max(peaks) * 1024 / 1e6


def _ticks(pids: list[int]) -> Iterator[int]:
    for pid in pids:
        with suppress(*_GONE):
            yield sum(map(int, _stat(pid)[11:15]))


def _stat(pid: int) -> list[str]:
    """Return the fields of `stat` after the command name, which may hold anything; the first is the state."""
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
