"""What is printed: tables for people on standard output, and the figures as one JSON object, last."""

import io
import pstats
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from bench.measure import Figures, Phase
from bench.options import Options
from bench.postfix import Variant

TOP = 25
"""Functions shown of a profile."""

_ROLES = ("worker", "postfix", "broker", "sink", "relay", "bench")

Peers = Mapping[Variant, Phase]

Rounds = Sequence[tuple[Figures, Peers]]
"""What was measured in turns: mailq, and its peer; of several rounds the best of each count."""


def show(options: Options, rounds: Rounds, rules: Mapping[str, float]) -> None:
    """Print the tables."""
    figures, peers = _best(rounds)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 132)
    phases = list(_phases(figures, peers))
    roles = [role for role in _ROLES if any(role in phase.cpu for _, phase in phases)]
    table = Table("phase", caption="CPU seconds per 1,000 messages; others: cores kept busy by what has no part in it")
    for name in ("messages", "seconds", "messages/s", *roles, "others"):
        table.add_column(name, justify="right")
    for name, phase in phases:
        cpu = [f"{phase.cpu_per_1000(role):.3f}" if role in phase.cpu else "" for role in roles]
        counts = (f"{phase.jobs:,}", f"{phase.seconds:.2f}", f"{phase.rate:,.0f}")
        table.add_row(name, *counts, *cpu, f"{phase.elsewhere:.2f}")
    console.print(table)
    latency = ", ".join(f"p{share * 100:g} {figures.percentile(share):.1f} ms" for share in (0.5, 0.9, 0.99, 1))
    console.print(f"latency from publication to result at {figures.pace:,.0f}/s: {latency}")
    console.print(f"peak memory of the largest worker process: {figures.peak_rss_mb:.0f} MB")
    console.print(
        f"classification of a failed attempt: {rules['known_us']:.0f} µs for a kind of reply seen before,"
        f" {rules['unlike_us']:.0f} µs for another"
    )
    if figures.round_trips_per_message is not None:
        console.print(f"round trips per message: {figures.round_trips_per_message:.2f}")
    if peers:
        console.print(f"mailq drains {_ratio(figures, peers):.2f} times as fast as Postfix at its best")
    for name, rates in _rates(rounds).items() if len(rounds) > 1 else ():
        console.print(f"{name}, round by round: {', '.join(f'{rate:,.0f}' for rate in rates)} messages/s")
    if not figures.complete:
        console.print(f"not all of {options.jobs:,} jobs were delivered within {options.limit:g} s (--limit)")


def show_profile(file: Path) -> None:
    """Print where the worker spent its time, by own time."""
    text = io.StringIO()
    pstats.Stats(str(file), stream=text).strip_dirs().sort_stats("tottime").print_stats(TOP)
    sys.stdout.write(text.getvalue())


def print_json(options: Options, rounds: Rounds, rules: Mapping[str, float]) -> None:
    """Print the last line; what was not measured is absent."""
    figures, peers = _best(rounds)
    drain, live = figures.drain, figures.live
    record: dict[str, object] = {
        "rate": round(drain.rate, 1),
        **{f"{role}_cpu_per_1000": round(drain.cpu_per_1000(role), 4) for role in drain.cpu if role != "bench"},
        "p50_ms": round(figures.percentile(0.5), 2),
        "p99_ms": round(figures.percentile(0.99), 2),
        "peak_rss_mb": round(figures.peak_rss_mb, 1),
        "classify_known_us": rules["known_us"],
        "classify_unlike_us": rules["unlike_us"],
        "jobs": options.jobs,
        "delivered": drain.jobs,
        "processes": options.processes,
        "domains": options.domains,
        "tls": options.tls,
        "profile": options.profile,
        "others_cores": round(drain.elsewhere, 2),
    }
    if options.latency is not None:
        record["latency_ms"] = options.latency
    if figures.round_trips_per_message is not None:
        record["round_trips_per_message"] = round(figures.round_trips_per_message, 3)
    if live:
        record["live_rate"] = round(live.rate, 1)
    if peers:
        record["postfix_rate"] = round(max(phase.rate for phase in peers.values()), 1)
        record["ratio"] = round(_ratio(figures, peers), 3)
    if len(rounds) > 1:
        record["rounds"] = {name: [round(rate, 1) for rate in rates] for name, rates in _rates(rounds).items()}
    sys.stdout.flush()
    sys.stdout.write(orjson.dumps(record).decode() + "\n")
    sys.stdout.flush()


def _best(rounds: Rounds) -> tuple[Figures, Peers]:
    """Return the figures of mailq's fastest round, and the fastest phase of each variant of its peer."""
    figures = max((figures for figures, _ in rounds), key=lambda each: each.drain.rate)
    variants = rounds[0][1]
    return figures, {each: max((peers[each] for _, peers in rounds), key=lambda phase: phase.rate) for each in variants}


def _rates(rounds: Rounds) -> dict[str, list[float]]:
    """Return how fast each was in each round, Postfix at its best there."""
    rates = {"mailq": [figures.drain.rate for figures, _ in rounds]}
    if rounds[0][1]:
        rates["Postfix"] = [max(phase.rate for phase in peers.values()) for _, peers in rounds]
    return rates


def _phases(figures: Figures, peers: Peers) -> Iterator[tuple[str, Phase]]:
    yield "mailq, drain", figures.drain
    if figures.live:
        yield "mailq, live", figures.live
    for variant, phase in peers.items():
        yield f"Postfix, {variant}", phase


def _ratio(figures: Figures, peers: Peers) -> float:
    return figures.drain.rate / max(phase.rate for phase in peers.values())
