"""The guard that ends a process with whoever started it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mailq.testbed.guard import guarded

# With a handler, a signal right before the sleep would be seen after it.
SAY_AND_WAIT = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print(flush=True)
sys.exit(7 if signal.sigtimedwait({signal.SIGTERM}, 60) else 1)
"""
ABANDON = """
import os, signal, subprocess, sys
from mailq.testbed.guard import guarded
guard = subprocess.Popen(guarded(sys.executable, "-c", sys.argv[1]), stdin=subprocess.PIPE, start_new_session=True)
input()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("status", [0, 3])
def test_it_ends_with_the_command_and_has_its_status(status):
    command = guarded(sys.executable, "-c", f"raise SystemExit({status})")
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        assert guard.wait(20) == status


def test_the_command_gets_sigterm_when_the_pipe_is_closed():
    command = guarded(sys.executable, "-c", SAY_AND_WAIT)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as guard:
        assert guard.stdout.readline() == b"\n"
        guard.stdin.close()
        assert guard.wait(20) == 7


def test_the_command_ends_when_the_starter_is_killed():
    starter = subprocess.Popen(
        [sys.executable, "-c", ABANDON, SAY_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with starter:
        assert starter.stdout.readline() == b"\n"  # the command's, which has the same output
        starter.stdin.write(b"\n")
        starter.stdin.flush()
        assert starter.wait(20) == -signal.SIGKILL
        os.set_blocking(starter.stdout.fileno(), False)
        deadline = time.monotonic() + 20
        while starter.stdout.read() != b"":  # its end comes when nobody is left that could write
            assert time.monotonic() < deadline
            time.sleep(0.02)
