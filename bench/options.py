"""What can be asked of the bench on its command line, and the bounds of each figure."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mailq.service.supervisor import cores


@dataclass(frozen=True, slots=True)
class Options:
    """One run; sizes in octets, times in seconds but for `latency`, which is in milliseconds.

    Unless told otherwise there are as many processes as `mailq run` starts; a profile sees one only.
    """

    jobs: int
    size: int
    domains: int
    processes: int
    sessions: int
    prefetch: int
    tls: bool
    latency: float | None
    live: bool
    versus: str | None
    rounds: int
    profile: bool
    pace: int
    pace_seconds: float
    limit: float
    soak: float | None
    soak_rate: int
    directory: Path
    keep: bool

    @property
    def relayed(self) -> bool:
        """Tell whether the relay stands between worker and sink."""
        return self.tls or self.latency is not None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return the options, or end the program with status 2 and what is wrong with them."""
    parser = argparse.ArgumentParser(prog="make bench", description="See bench/README.md.", allow_abbrev=False)
    add = parser.add_argument
    add("--jobs", type=_within(int, 1, 1_000_000), default=20_000, help="jobs to deliver (20000)")
    add("--size", type=_within(int, 1000, 10_000_000), default=10_240, help="octets of a message (10240)")
    add("--domains", type=_within(int, 1, 1_000_000), default=1, help="domains of the recipients (1)")
    add("--processes", type=_within(int, 0, 64), default=0, help="worker processes; 0: one for each core (0)")
    add("--sessions", type=_within(int, 1, 1000), default=50, help="SMTP sessions (50)")
    add("--prefetch", type=_within(int, 1, 65_535), default=500, help="jobs a worker process holds (500)")
    add("--tls", action="store_true", help="the receiver offers STARTTLS")
    add("--latency", type=_within(float, 0, 10_000), metavar="MS", help="round trip time to the receiver")
    add("--live", action="store_true", help="also inject and deliver at once")
    add("--vs", dest="versus", choices=["postfix"], help="the same messages through Postfix, and the ratio")
    add(
        "--rounds", type=_within(int, 1, 20), default=1, help="all of it so often, in turns; the best of each count (1)"
    )
    add("--profile", action="store_true", help="run the worker under cProfile; rates are far lower then")
    add("--pace", type=_within(int, 1, 100_000), default=500, help="jobs a second where latency is taken (500)")
    add("--pace-seconds", type=_within(float, 0.1, 600), default=10, metavar="S", help="and for how long (10)")
    add("--limit", type=_within(float, 1, 3600), default=60, metavar="S", help="end of a phase not done by then (60)")
    add("--soak", type=_within(float, 5, 604_800), metavar="S", help="instead: a mixed load with bad receivers for S s")
    add("--soak-rate", type=_within(int, 1, 1000), default=150, metavar="N", help="jobs a second of that load (150)")
    add("--dir", dest="directory", type=Path, default=Path(".run/bench"), help="where files go (.run/bench)")
    add("--keep", action="store_true", help="leave the files of the run")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.processes:
        return options
    return replace(options, processes=1 if options.profile else cores())


def _within(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:,} and {most:,}")
        return number

    read.__name__ = "number"
    return read
