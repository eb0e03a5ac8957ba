"""The watchdog of the loop: it names the code that held it, and a process that did not run is no such code."""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailq.edges import watchdog
from mailq.edges.watchdog import LONG, TICK, watching


class Told:
    """Keeps what the watchdog tells."""

    def __init__(self):
        self.lags, self.places, self.still = [], [], []

    def lagged(self, seconds):
        self.lags.append(seconds)

    def held(self, seconds, place):
        self.places.append(place)

    def stood_still(self, seconds):
        self.still.append(seconds)


def spin(seconds):
    """Use the processor, and give the interpreter's lock away now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def watched(work, monkeypatch):
    """Return what is told of work in the loop, as if it were code of mailq."""
    monkeypatch.setattr(watchdog, "_PACKAGE", f"{Path(__file__).parent}/")
    told = Told()
    with watching(told):
        await asyncio.sleep(2 * TICK)
        work()
        for _ in range(100):
            await asyncio.sleep(TICK)
            if told.places or told.still:
                break
    return told


@pytest.mark.alone
async def test_code_that_holds_the_loop_is_named(monkeypatch):
    told = await watched(lambda: spin(0.6), monkeypatch)
    assert any(re.match(r"test_watchdog\.py:\d+ spin", place) for place in told.places)
    assert max(told.lags) >= LONG


@pytest.mark.alone
async def test_so_is_code_that_waits_in_the_loop(monkeypatch):
    told = await watched(lambda: time.sleep(0.6), monkeypatch)
    assert any("test_so_is_code_that_waits_in_the_loop" in place for place in told.places)
    assert told.still == []


@pytest.mark.alone
async def test_so_is_one_call_that_keeps_the_lock(monkeypatch):
    def count():
        sum(itertools.repeat(1, 200_000_000))

    told = await watched(count, monkeypatch)
    assert any("count" in place for place in told.places), told.places


@pytest.mark.alone
async def test_an_idle_loop_is_not_late():
    told = Told()
    with watching(told):
        await asyncio.sleep(5 * TICK)
    assert told.places == []
    assert len(told.lags) >= 3


async def test_the_thread_ends_with_the_watch():
    with watching(Told()):
        assert "watchdog" in {thread.name for thread in threading.enumerate()}
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


STOPPED = """
import asyncio
from mailq.edges.watchdog import watching

class Told:
    def lagged(self, seconds): pass
    def held(self, seconds, place): print("held", place, flush=True)
    def stood_still(self, seconds): print("still", round(seconds, 1), flush=True)

async def main():
    with watching(Told()):
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.alone
@pytest.mark.timeout(60)
def test_a_stopped_process_held_nothing_up():
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.3)
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            time.sleep(1.5)
            child.send_signal(signal.SIGCONT)
            word, seconds = child.stdout.readline().split()
            assert word == "still"
            assert float(seconds) >= 1
        finally:
            child.kill()
