"""The DNS server of the tests: it starts, it ends, and it says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.private_knot import PrivateKnot

from mailq.testbed.rabbitmq import LabError

ZONE = "@ 60 SOA ns.x.test. root.x.test. 1 60 60 60 60\n@ 60 NS ns.x.test.\nns 60 A 127.0.0.1\n"

ORPHAN = """
import sys, time
from pathlib import Path
from support.private_knot import PrivateKnot
server = PrivateKnot(Path(sys.argv[1]), {"x.test": sys.argv[2]})
server.start()
print(server.port, flush=True)
time.sleep(60)
"""


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_listens_while_it_runs_however_long_its_directory(tmp_path):
    with PrivateKnot(tmp_path / ("long" * 30), {"x.test": ZONE}) as server:
        assert server.running
        assert server.server == f"127.0.0.1:{server.port}"
        assert listening(server.port)
    assert not server.running
    assert not listening(server.port)


def test_it_is_started_again_on_the_same_port(tmp_path):
    server = PrivateKnot(tmp_path, {"x.test": ZONE})
    for _ in range(2):
        server.start()
        assert listening(server.port)
        server.stop()
    server.stop()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path), ZONE], stdout=subprocess.PIPE, cwd=root / "tests", text=True
    ) as starter:
        port = int(starter.stdout.readline())
        assert listening(port)
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while listening(port):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_keeps_it_from_starting_is_shown(tmp_path):
    with pytest.raises(LabError, match="ended while starting") as caught:
        PrivateKnot(tmp_path, {"x" * 64 + ".test": ZONE}).start()
    assert "knot.conf" in str(caught.value)


def test_without_knot_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LabError, match="apt-get install knot"):
        PrivateKnot(tmp_path, {"x.test": ZONE}).start()
