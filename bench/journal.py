"""`python -m bench.journal`: what the journal costs a message, in microseconds of this machine.

One message is its key, a hand-over, an answer of 700 octets and its settlement; 100 are open at a
time, as in a worker. The best of several rounds counts, since whatever else runs only adds; it is
CPU time, but elapsed time where the disk is waited for. `--dir` says where the journal is to be.
"""

import argparse
import time
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

from mailq.config.journal import JournalConfig
from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import Outbox
from mailq.core.journal.records import EntryId, EntryState, JobKey
from mailq.edges.journal import FileJournal

RECORD = b"r" * 700
UNDERWAY = 100
"""Messages that are open at a time."""

ROUNDS = {"never": (7, 20_000), "always": (3, 200)}
"""Rounds and messages of each."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.journal", description=__doc__)
    parser.add_argument("--dir", type=Path, help="directory to make the journal in; it is removed afterwards")
    home = parser.parse_args().dir
    print(f"key of a job of 1 kB            {_key_cost():8.2f} us")  # noqa: T201 - it is what it is for
    for sync, (rounds, messages) in ROUNDS.items():
        with TemporaryDirectory(dir=home) as directory:
            journal = FileJournal(directory, JournalConfig(sync=sync), 0)  # type: ignore[arg-type] # one of the two
            best = min(_round(journal, messages, start * messages, elapsed=sync == "always") for start in range(rounds))
            print(f"message, journal.sync = {sync:7} {best:8.2f} us")  # noqa: T201
            journal.close()
    with TemporaryDirectory(dir=home) as directory:
        full, again, contested = _look_ups(directory)
    print(f"first look-up, a full file      {full / 1000:8.2f} ms")  # noqa: T201
    print(f"next look-up                    {again:8.2f} us")  # noqa: T201
    print(f"contested message               {contested:8.2f} us")  # noqa: T201


def _key_cost() -> float:
    clock = time.process_time
    outbox, job = Outbox("/", "outbox", "secret"), Consumed(b"x" * 1000, 1, message_id="m" * 36)
    started = clock()
    for _ in range(20_000):
        outbox.key(outbox.read(job), 1)
    return (clock() - started) / 20_000 * 1e6


def _round(journal: FileJournal, messages: int, first: int, *, elapsed: bool = False) -> float:
    """Return the microseconds of one message."""
    clock = time.perf_counter if elapsed else time.process_time
    keys = [JobKey(number.to_bytes(16), marked=True) for number in range(first, first + messages)]
    handed: deque[EntryId] = deque()
    started = clock()
    for key in keys:
        handed.append(journal.hand_over(key, contested=False))
        if len(handed) == UNDERWAY:
            entry = handed.popleft()
            journal.answered(entry, RECORD)
            journal.settled(entry)
    for entry in handed:
        journal.answered(entry, RECORD)
        journal.settled(entry)
    spent = clock() - started
    journal.housekeep()
    return spent / messages * 1e6


def _look_ups(directory: str) -> tuple[float, float, float]:
    """Return the microseconds of the first look-up in another process's file, of the next, of a contested message."""
    clock = time.process_time
    one, other = (FileJournal(directory, JournalConfig(), index) for index in range(2))
    _round(one, 60_000, 0)
    started = clock()
    assert other.take(JobKey((59_999).to_bytes(16), marked=True)).state is EntryState.SETTLED
    full = clock() - started
    started = clock()
    for number in range(2000):
        other.take(JobKey((1_000_000 + number).to_bytes(16), marked=True))
    again = clock() - started
    started = clock()
    for number in range(2000):
        entry = other.hand_over(JobKey((2_000_000 + number).to_bytes(16), marked=True), contested=True)
        other.answered(entry, RECORD)
        other.settled(entry)
    contested = clock() - started
    one.close()
    other.close()
    return full * 1e6, again / 2000 * 1e6, contested / 2000 * 1e6


if __name__ == "__main__":
    main()
