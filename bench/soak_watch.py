"""What a soak sees of the processes while they work: memory, descriptors, the metrics page.

Memory is resident memory in units of 1,000,000 octets, that of the largest worker process; descriptors are the
open files and sockets of all worker processes together, but for journals, of which each has one or two and reads those
of all others once it has a reason to. Both come from /proc (proc(5): `statm`, `fd`).
"""

import asyncio
import os
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench import BenchError
from bench.usage import tree
from mailq.edges.journal.segment import ENDING

Page = Mapping[str, float]
"""The value of each series by its name with its labels, as it stands on the page."""

_PROC = Path("/proc")
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError)
_GROWING = ("_total", "_count", "_bucket", "_sum")


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes at one moment, in seconds since the load began."""

    moment: float
    rss_mb: float
    descriptors: int


def sample(supervisor: int, moment: float) -> Sample:
    """Look at the worker processes under a supervisor."""
    workers = [pid for pid in tree(supervisor) if pid != supervisor]
    return Sample(moment, max(map(rss_mb, workers), default=0.0), sum(map(descriptors, workers)))


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 if it is gone."""
    with suppress(*_GONE):
        return int((_PROC / str(pid) / "statm").read_text("ascii").split()[1]) * _PAGE_SIZE / 1e6
    return 0.0


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open that are no journals; 0 if it is gone."""
    with suppress(*_GONE):
        return sum(map(_counts, (_PROC / str(pid) / "fd").iterdir()))
    return 0


def _counts(descriptor: Path) -> bool:
    """Tell whether a descriptor is open still, and of no journal."""
    with suppress(FileNotFoundError):
        return not str(descriptor.readlink()).removesuffix(" (deleted)").endswith(ENDING)
    return False


def slope(samples: Sequence[Sample]) -> float:
    """Return by how much memory grows, in MB a second (least squares); 0 of fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    moment, rss = fmean(each.moment for each in samples), fmean(each.rss_mb for each in samples)
    spread = sum((each.moment - moment) ** 2 for each in samples)
    return sum((each.moment - moment) * (each.rss_mb - rss) for each in samples) / spread


async def page(port: int) -> Page:
    """Return what /metrics says.

    Raises:
        BenchError: it cannot be had.
    """
    try:
        return await asyncio.to_thread(_page, f"http://127.0.0.1:{port}/metrics")
    except OSError as trouble:
        raise BenchError(f"the metrics page cannot be had: {trouble}") from None


def fallen(before: Page, after: Page) -> list[str]:
    """Return the counters that fell, which no counter may."""
    return [
        name
        for name, value in before.items()
        if name.partition("{")[0].endswith(_GROWING) and after.get(name, 0.0) < value
    ]


def _page(url: str) -> Page:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own loopback address
        lines = answer.read().decode().splitlines()
    series = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in series}
