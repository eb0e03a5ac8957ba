"""A RabbitMQ of one's own: started in a directory, ended without a trace outside of it.

It runs Debian's server as the current user on free loopback ports, with data, log, cookie and
configuration below one directory and an epmd of its own, so it never meets another broker of the
machine. Server and epmd live in one process group under a small guard (`_GUARD`), whose standard
input is held open by whoever started it: when that process is gone, however it ended, the input
ends and the guard stops the broker. Demo, tests and benchmarks use it; nothing in production does.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from mailq.testbed.free_port import free_port

START_SECONDS = 60.0
STOP_SECONDS = 30.0

_BIN = Path("/usr/lib/rabbitmq/bin")
"""Debian's scripts proper; those in /usr/sbin change the user and insist on /var/lib/rabbitmq."""

BIN_VARIABLE = "MAILQ_RABBITMQ_BIN"
"""Environment variable that names another directory with `rabbitmq-server`, `rabbitmqctl` and `epmd`."""

_NODE = "mailq@localhost"
"""May be the same everywhere: names are unique per epmd, and each broker has its own."""

_GUARD = """
exec 3<&0 </dev/null
"$1" 3<&- & epmd=$!
"$2" 3<&- & server=$!
{ read -r _ <&3; kill -TERM $server; } 2>/dev/null & guard=$!
wait $server; status=$?
kill $epmd $guard 2>/dev/null
wait
exit $status
"""

_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_CONNECTION_START = b"\x00\x0a\x00\x0a"


class LabError(Exception):
    """A server of the lab could not be started or told something; the text says why."""


class PrivateRabbit:
    """One RabbitMQ node; ports are chosen at construction and kept across restarts.

    `settings` are further lines of rabbitmq.conf. With `management`, its HTTP API listens on
    `management_port`. As a context manager it starts and stops.
    """

    def __init__(self, directory: Path, *, management: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.resolve()
        self.management = management
        self.port = free_port()
        self.management_port = free_port()
        self._dist_port = free_port()
        self._epmd_port = free_port()
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def url(self) -> str:
        """Return the AMQP URL of the default virtual host, with the default user."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """Return the process id of the node itself, the Erlang machine, once it has started.

        Raises:
            LabError: it is not running.
        """
        if not self.running:
            raise LabError("RabbitMQ is not running")
        return int((self.directory / "data" / f"{_NODE}.pid").read_text("ascii"))

    @property
    def running(self) -> bool:
        """Tell whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it speaks AMQP.

        Raises:
            LabError: RabbitMQ is not installed, or was not ready within `START_SECONDS`.
        """
        if self.running:
            return
        server, epmd = _executable("rabbitmq-server"), _executable("epmd")
        self._write_files()
        with (self.directory / "console.log").open("ab") as console:
            self._process = subprocess.Popen(  # noqa: S603 - our own script and paths of our own finding
                ["/bin/sh", "-c", _GUARD, "guard", epmd, server],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                why = "did not become ready in time" if self.running else "ended while starting"
                self.kill()
                raise LabError(f"RabbitMQ in {self.directory} {why}:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End server and epmd in good order, or by force when that takes longer than `STOP_SECONDS`."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server as a power cut would (SIGKILL); its files stay."""
        if self._process is None:
            return
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start on the same ports with the same data."""
        self.stop()
        self.start()

    def ctl(self, *arguments: str, timeout: float = 60) -> str:
        """Run rabbitmqctl against this node and return what it printed (it takes a second or two).

        Raises:
            LabError: the command failed; the text has its output.
        """
        done = subprocess.run(  # noqa: S603 - a path of our own finding, no shell
            [_executable("rabbitmqctl"), "--quiet", "--node", _NODE, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self._environment(),
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise LabError(f"rabbitmqctl {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        plugins = "rabbitmq_management" if self.management else ""
        (self.directory / "enabled_plugins").write_text(f"[{plugins}].\n")
        settings = {
            "listeners.tcp.default": f"127.0.0.1:{self.port}",
            "disk_free_limit.absolute": "50MB",
            # The default log of quorum queues is 512 MiB, held in memory as well.
            "raft.wal_max_size_bytes": "67108864",
        }
        if self.management:
            settings |= {"management.tcp.ip": "127.0.0.1", "management.tcp.port": str(self.management_port)}
        settings |= self._settings
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.directory / "rabbitmq.conf").write_text(text)

    def _environment(self) -> dict[str, str]:
        """Return the server's whole environment: nothing of the machine's own RabbitMQ gets in."""
        here = str(self.directory)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        other, path = os.environ.get(BIN_VARIABLE), os.environ.get("PATH", os.defpath)
        return {
            "PATH": f"{other}:{path}" if other else path,
            "LANG": "C.UTF-8",
            "HOME": here,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{here}/data",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_CONF_ENV_FILE": f"{here}/rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{here}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{here}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/enabled_plugins",
            # Two schedulers are plenty here, on a machine of any size.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} +S 2:2 +SDcpu 2:2",
            "RABBITMQ_CTL_ERL_ARGS": f"{loopback} +S 1:1",
        }

    def _ready(self) -> bool:
        """Tell whether the server answers the protocol header with connection.start."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(_AMQP_HEADER)
                answer = probe.recv(11, socket.MSG_WAITALL)
        except OSError:
            return False
        return answer[:1] == b"\x01" and answer[7:] == _CONNECTION_START

    def _log_tail(self) -> str:
        """Return the last lines that the server wrote."""
        files = [self.directory / "console.log", *sorted((self.directory / "log").glob("*.log"))]
        lines = [line for file in files if file.exists() for line in file.read_text(errors="replace").splitlines()]
        return "\n".join(lines[-60:])


def _executable(name: str) -> str:
    """Return the path of one of RabbitMQ's programs or of epmd.

    Raises:
        LabError: it is not there.
    """
    if (other := os.environ.get(BIN_VARIABLE)) is not None:
        found = shutil.which(name, path=other)
        if found is None:
            raise LabError(f"{BIN_VARIABLE} names {other}, where there is no {name}")
        return found
    debian = _BIN / name
    found = str(debian) if debian.exists() else shutil.which(name)
    if found is None:
        raise LabError(f"{name} is not installed; on Debian and Ubuntu: apt-get install rabbitmq-server")
    return found
