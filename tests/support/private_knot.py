"""An authoritative DNS server of one's own: Debian's Knot with given zones, on a free loopback port.

It runs knotd as the current user, UDP and TCP on the same port of 127.0.0.1, with configuration,
zones and databases below one directory. As with `testbed.rabbitmq`, a guard holds its standard input and
ends it when whoever started it is gone. It is not recursive: a name outside of its zones is refused.
A zone whose text does not parse is served as SERVFAIL, which tests make use of.
"""

import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from mailq.testbed.free_port import free_port
from mailq.testbed.rabbitmq import LabError

START_SECONDS = 20.0
STOP_SECONDS = 10.0

_GUARD = """
exec 3<&0 </dev/null
"$@" 3<&- & server=$!
{ read -r _ <&3; kill -TERM $server; } 2>/dev/null & guard=$!
wait $server; status=$?
kill $guard 2>/dev/null
exit $status
"""

_CONFIG = """\
server:
    rundir: "."
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    version: ""
    identity: ""
log:
  - target: stderr
    any: info
database:
    storage: "db"
    journal-db-max-size: 16M
    kasp-db-max-size: 5M
    timer-db-max-size: 1M
control:
    listen: "/proc/self/cwd/knot.sock"
template:
  - id: default
    storage: "zones"
    file: "%s.zone"
    journal-content: none
    zonefile-sync: -1
zone:
{zones}"""

_SOA = 6
_IN = 1


class PrivateKnot:
    """One knotd serving `zones` (name to zone-file text); as a context manager it starts and stops."""

    def __init__(self, directory: Path, zones: Mapping[str, str]) -> None:
        self.directory = directory.resolve()
        self.port = _free_port()
        self._zones = dict(zones)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the server."""
        self.stop()

    @property
    def server(self) -> str:
        """Return `ip:port`, as `dns.servers` of the configuration has it."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Tell whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers for every zone.

        Raises:
            LabError: Knot is not installed, or was not ready within `START_SECONDS`.
        """
        if self.running:
            return
        program = shutil.which("knotd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if program is None:
            raise LabError("knotd is not installed; on Debian and Ubuntu: apt-get install knot")
        self._write_files()
        with (self.directory / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", program, "-c", "knot.conf"],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                cwd=self.directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not all(self._answers(zone) for zone in self._zones):
            if not self.running or time.monotonic() > deadline:
                why = "did not become ready in time" if self.running else "ended while starting"
                log = (self.directory / "console.log").read_text(errors="replace").splitlines()[-25:]
                self.stop()
                raise LabError("\n".join([f"knotd in {self.directory} {why}:", *log]))
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server in good order, or by force when that takes longer than `STOP_SECONDS`."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _write_files(self) -> None:
        """Write configuration and zones; a long path would not do for the control socket, thus /proc/self/cwd."""
        for name in ("zones", "db"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for zone, text in self._zones.items():
            (self.directory / "zones" / f"{zone}.zone").write_text(text)
        zones = "".join(f"  - domain: {zone}\n" for zone in self._zones)
        (self.directory / "knot.conf").write_text(_CONFIG.format(port=self.port, zones=zones))

    def _answers(self, zone: str) -> bool:
        """Tell whether the server says anything about a zone."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in zone.rstrip(".").split("."))
        number = secrets.token_bytes(2)
        query = number + struct.pack("!5H", 0, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, _SOA, _IN)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.5)
            try:
                probe.connect(("127.0.0.1", self.port))
                probe.send(query)
                return probe.recv(4096)[:2] == number
            except OSError:
                return False


def _free_port() -> int:
    """Return a port that is free for TCP and UDP alike."""
    while True:
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
