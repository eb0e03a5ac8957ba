"""`mailq torture` as it is run: short runs over all kinds, its errors, and that nothing is left of it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from mailq.torture.plan import KINDS

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}

SLOW = ("broker-close-all", "broker-close-one", "amqp-silence", "drain")
"""Kinds that take seconds and whose like is in the short run; a long run has them too."""

SHORT = tuple(name for name in KINDS if name not in SLOW)


@pytest.fixture
async def start(tmp_path):
    """Start `mailq torture` with its files below tmp_path."""
    started = []

    async def run(*arguments):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "torture", "--keep", str(tmp_path), "--json", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, env=ENVIRON,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def finished(process):
    """Return exit status, the figures of the last line, and everything that was printed."""
    out, err = await asyncio.wait_for(process.communicate(), 240)
    text = out.decode() + err.decode()
    assert out.endswith(b"}\n"), text
    return process.returncode, json.loads(out.splitlines()[-1]), text


def left_over(directory):
    """Return the command lines of processes that have to do with a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(directory).encode() in words and state != "Z":
            found.append(words)
    return found


@pytest.mark.timeout(300)
async def test_nothing_is_lost_and_nothing_doubled_without_a_word(start, tmp_path):
    process = await start("-n", str(len(SHORT)), "--seed", "12", "--kinds", ",".join(SHORT))
    status, figures, text = await finished(process)
    assert status == 0, text
    # Root in a container or chroot may be allowed to mount nothing, and so has no disk to fill.
    played = [name for name in SHORT if not (KINDS[name].fills and f"{name} is left out" in text)]
    assert (figures["disasters"], figures["seed"]) == (len(played), 12)
    assert figures["jobs"] > 5 * len(played)  # some are published several times, some are hostile
    assert figures["lost"] == figures["results_missing"] == figures["poisoned"] == 0
    assert figures["doubled_unmarked"] == figures["doubled_undue"] == 0
    kinds = figures["kinds"]
    assert kinds.keys() == set(played)
    # The worker died, or the receiver crashed or fell silent, after the final dot: that has been seen, and told.
    for kind in ("kill-before-answer", "receiver-crash", "smtp-silence"):
        assert kinds[kind]["in_doubt"] >= kinds[kind]["doubled"] >= 1
    # A result that was published and not yet confirmed is published again.
    assert kinds["kill-confirm"]["results_doubled"] >= 1
    assert f"once more: mailq torture --seed 12 --disasters {len(SHORT)}" in text
    assert left_over(tmp_path) == []


async def test_an_interrupted_run_leaves_nothing_running(start, tmp_path):
    process = await start("-n", "500", "--kinds", "smtp-cut")
    while b"0 smtp-cut " not in await asyncio.wait_for(process.stdout.readline(), 60):
        assert process.returncode is None
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode()) == (130, "mailq: interrupted\n")
    assert left_over(tmp_path) == []


async def test_the_time_limit_says_what_was_being_waited_for(start, tmp_path):
    process = await start("-n", "500", "--kinds", "stop", "--limit", "3")
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert "the time of 3 s is over; it was waiting for" in err.decode()
    assert "once more: mailq torture --seed" in err.decode()
    assert left_over(tmp_path) == []


async def test_there_is_no_such_kind(start):
    process = await start("--kinds", "stop,flood")
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert "flood" in err.decode()
