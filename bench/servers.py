"""The processes around the broker: Postfix's smtp-sink, the relay before it, and the worker.

Each is a child of the bench on a free loopback port, writes to a log in the run's directory, and is
ended by its own process id. smtp-sink is the cheapest receiver there is (0.05 ms of CPU a message); it
knows no TLS, so with --tls the relay ends it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from bench import BenchError
from bench.options import Options
from mailq.testbed.free_port import free_port

START_SECONDS = 20.0
STOP_SECONDS = 40.0

_SBIN = "/usr/sbin:/usr/local/sbin"
"""Where Debian has smtp-sink; a normal user's PATH does not lead there."""


class Server:
    """A child process from `with` to its end."""

    def __init__(self, name: str, command: Sequence[str], home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = command
        self._environ = environ
        self._log = home / f"{name}.log"
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - commands of our own making, no shell
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it if it still runs."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            BenchError: it has ended; the text has its last words.
        """
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self._process.returncode}:\n{self.words()}")

    def listening(self, port: int) -> None:
        """Return when its port takes connections.

        Raises:
            BenchError: it did not within `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.name} does not listen:\n{self.words()}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> int:
        """End it with SIGTERM, or by force when that takes longer than `STOP_SECONDS`; returns its status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def words(self) -> str:
        """Return the last lines that it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def program(name: str, package: str) -> str:
    """Return the path of a program.

    Raises:
        BenchError: it is not installed; says which package has it.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if found is None:
        raise BenchError(f"{name} is not installed; on Debian and Ubuntu: apt-get install {package}")
    return found


def smtp_sink(home: Path, port: int) -> Server:
    """Return Postfix's smtp-sink on a port: takes every message and forgets it."""
    user = ["-u", "nobody"] if os.getuid() == 0 else []  # root has to become somebody else
    return Server("sink", [program("smtp-sink", "postfix"), *user, "-m", "4000", f"127.0.0.1:{port}", "1024"], home)


def relay(home: Path, options: Options, port: int, sink_port: int) -> Server:
    """Return the relay that delays, counts round trips and ends TLS before the sink."""
    command = [sys.executable, "-m", "bench.relay", str(port), str(sink_port), str(options.latency or 0)]
    certificates = [str(home / "certificates")] if options.tls else []
    return Server("relay", [*command, *certificates], home)


def receiver(stack: ExitStack, home: Path, options: Options) -> tuple[int, dict[str, int]]:
    """Start sink and, if asked for, relay; returns the port to send to, and their process ids by name."""
    port, relay_port = free_port(), free_port()
    sink = stack.enter_context(smtp_sink(home, port))
    sink.listening(port)
    if not options.relayed:
        return port, {"sink": sink.pid}
    before = stack.enter_context(relay(home, options, relay_port, port))
    before.listening(relay_port)
    return relay_port, {"sink": sink.pid, "relay": before.pid}


def worker(home: Path, options: Options, url: str, port: int) -> Server:
    """Return `mailq run` with everything on as in production: metrics, health, one log line per attempt."""
    tables: dict[str, dict[str, object]] = {
        "worker": {"prefetch": options.prefetch, "journal_dir": str(home / "journal")},
        "[limits]": {"connections": options.sessions, "messages_per_session": 1000},
        "delivery": {"ehlo": "worker.bench.test"},
        "http": {"port": free_port()},
        "dns.overrides": {"*": [f"127.0.0.1:{port}"]},
    }
    file = home / "mailq.toml"
    file.write_text("\n".join(f"[{name}]\n{_lines(keys)}" for name, keys in tables.items()))
    profiled = ["-m", "cProfile", "-o", str(profile_file(home))] if options.profile else []
    command = [sys.executable, *profiled, "-m", "mailq", "run", "--config", str(file)]
    command += ["--processes", str(options.processes)]
    # The URL may hold a password: it goes by the environment, and nothing else of ours does.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
    return Server("worker", command, home, environ | {"MAILQ_RABBITMQ__URL": url})


def profile_file(home: Path) -> Path:
    """Return where the worker's profile goes."""
    return home / "worker.prof"


def _lines(keys: Mapping[str, object]) -> str:
    """Return lines of TOML; JSON strings, numbers and lists are TOML too."""
    return "".join(f'"{key}" = {orjson.dumps(value).decode()}\n' for key, value in keys.items())
