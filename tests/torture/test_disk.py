"""The disk that can be filled: seen by nobody else, full when filled, and usable again."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = """
import errno, os, sys, threading
from pathlib import Path
from mailq.torture import disk

if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))

# A thread that was there before does not see what is mounted: it must not fill the disk of the machine.
begin = threading.Event()
early = threading.Thread(target=lambda: begin.wait() and made.fill())
early.start()
made = disk.make(Path(sys.argv[1]))
begin.set()
if made.fills:
    early.join()
    try:
        (made.directory / "one").write_bytes(b"x")
    except OSError as trouble:
        assert trouble.errno == (errno.ENOSPC if made.mounted else errno.EACCES), trouble
    else:
        raise SystemExit("it is not full")
    made.free()
(made.directory / "one").write_bytes(b"x")
made.close()
print(made.mounted, made.fills)
"""
NOBODY = 65534


@pytest.fixture
def home():
    """A directory that belongs to nobody, where anybody gets to."""
    made = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(made, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("drop", [False, True])
def test_it_is_full_and_free_again_and_seen_by_nobody_else(home, drop):
    drop = drop and os.geteuid() == 0  # who is nobody already has no more to drop
    command = [sys.executable, "-c", SCRIPT, str(home / "journal"), *([str(NOBODY)] if drop else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    mounted, fills = (word == "True" for word in done.stdout.split())
    assert fills or (os.geteuid() == 0 and not drop)
    assert not (drop and mounted)
    # Where it could be mounted it is gone with its process; else it is a plain directory.
    assert [each.name for each in (home / "journal").iterdir()] == ([] if mounted else ["one"])
