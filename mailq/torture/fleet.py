"""The worker as its users run it: some `mailq run` side by side, replaced when they are worn out or dead.

A supervisor waits longer after every death of a child, up to half a minute; so a `mailq run` that lost some
children makes room for a fresh one, which is started first. Each stands under a guard (`testbed.guard`), so that
none outlives the torture.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailq.config.example import toml
from mailq.testbed.free_port import free_port
from mailq.testbed.guard import guarded
from mailq.torture import TortureError
from mailq.torture.processes import MARK, Processes, children, send

MESSAGE_SECONDS = 10
"""How long workers wait for the answer to the final dot: longer than `rabbitmqctl` takes on a busy machine."""

READY_SECONDS = 40.0
END_SECONDS = 40.0
LOOK = 0.05
"""Seconds between looks while something is waited for."""

HEARTBEAT = 4
"""Seconds between heartbeats of the workers' connections to the broker."""

JOURNAL_SIZE = 2 * 1024 * 1024
"""Octets of a journal file: with room for the 30 sessions, and soon full."""

JOURNAL_KEEP = 600
"""Seconds for which the journal of a dead process is kept: longer than any job is under way."""

_UNWRITABLE = re.compile(rb"^mailq_journal_writable(?:\{[^}]*\})? 0", re.MULTILINE)

WORN = 3
"""Deaths per process of a `mailq run` until it is replaced."""


@dataclass(slots=True, eq=False)
class Run:
    """One `mailq run` under its guard, with the port of its health page."""

    guard: asyncio.subprocess.Process
    http: int
    deaths: int = 0
    retiring: bool = False

    @property
    def alive(self) -> bool:
        """Tell whether it has not ended."""
        return self.guard.returncode is None


class Fleet:
    """`size` runs of `processes` each, from one configuration."""

    def __init__(
        self, home: Path, url: str, tables: Mapping[str, Mapping[str, Any]], *, size: int, processes: int
    ) -> None:
        self.processes = Processes(os.urandom(8).hex())
        self._home = home
        self._url = url
        self._tables = tables
        self._size = size
        self._count = processes
        self._runs: list[Run] = []
        self._started = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Start all and return when they consume."""
        await asyncio.gather(*(self.begin() for _ in range(self._size)))

    async def stop(self) -> None:
        """Drain all with SIGTERM and return when they have ended.

        Raises:
            TortureError: one does not end.
        """
        await self._give_up()
        await asyncio.gather(*(self._ended(run, self._signal(run, signal.SIGTERM)) for run in list(self._runs)))

    async def close(self) -> None:
        """End whatever is left, at once."""
        await self._give_up()
        self.processes.kill()
        for run in self._runs:
            if run.alive:
                with suppress(ProcessLookupError):
                    os.killpg(run.guard.pid, signal.SIGKILL)
                await run.guard.wait()

    def kill(self, pid: int) -> bool:
        """Kill a worker as a crash would, and see to it that there is a fresh one in time."""
        run = next((each for each in self._runs if pid in self._supervised(each)), None)
        killed = send(pid, signal.SIGKILL)
        if run is not None and killed:
            run.deaths += 1
            worn = run.deaths >= WORN * self._count or self._count == 1  # alone it is dead
            if worn and not run.retiring:
                run.retiring = True
                self._do(self._replaced(run))
        return killed

    def end(self, port: int, number: signal.Signals) -> bool:
        """End the run of the worker that has this port, now, by a signal to its supervisor; tell whether it was found.

        Call `begin` before, so that as many are left.
        """
        pid = self.processes.owner(port)
        run = next((each for each in self._runs if pid in self._supervised(each)), None)
        if run is None or run.retiring:
            return False
        self._do(self._ended(run, self._signal(run, number)))
        return True

    async def unwritable(self) -> bool:
        """Tell whether a worker says that it cannot write its journal."""
        pages = await asyncio.gather(*(_page(run.http, "/metrics") for run in self._runs))
        return any(_UNWRITABLE.search(page) for page in pages)

    async def settle(self) -> None:
        """Return when no replacement is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def words(self) -> str:
        """Return the last lines that the workers wrote."""
        log = self._home / "workers.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""

    async def _give_up(self) -> None:
        """Begin no more runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = self.failure or task.exception()

    def _do(self, work: Coroutine[None, None, None]) -> None:
        """Do something while the torture goes on; what goes wrong is kept as `failure`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _replaced(self, run: Run) -> None:
        await self.begin()
        await self._ended(run, self._signal(run, signal.SIGTERM))

    async def begin(self) -> None:
        """Start one and return when all its processes consume, or one did until it was killed."""
        self._started += 1
        port = free_port()
        file = self._home / f"mailq-{self._started}.toml"
        file.write_text(_text({**self._tables, "http": {"port": port}}))
        # The URL may hold a password: it goes by the environment, and nothing else of ours does.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
        environ |= {"MAILQ_RABBITMQ__URL": self._url, MARK: self.processes.mark}
        command = (sys.executable, "-m", "mailq", "run", "--config", str(file), "-p", str(self._count))
        with (self._home / "workers.log").open("ab") as log:
            guard = await asyncio.create_subprocess_exec(
                *guarded(*command), stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env=environ, start_new_session=True,
            )  # fmt: skip
        run = Run(guard, port)
        self._runs.append(run)
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not (run.deaths or await _ready(port)):  # one that was killed already was at work
                    if not run.alive:
                        raise TortureError(f"`mailq run` ended with status {guard.returncode}:\n{self.words()}")
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            waited = f"waiting for `mailq run` to consume took more than {READY_SECONDS:g} s"
            raise TortureError(f"{waited}:\n{self.words()}") from None

    def _signal(self, run: Run, number: signal.Signals) -> set[int]:
        """Send a signal to a run's supervisor, and return its workers."""
        run.retiring = True
        workers = self._supervised(run)
        for pid in self._supervisors(run):
            send(pid, number)
        return workers

    async def _ended(self, run: Run, workers: set[int]) -> None:
        """Return when a run that was told to, and its workers, have ended."""
        assert run.guard.stdin is not None
        try:
            async with asyncio.timeout(END_SECONDS):
                await run.guard.wait()
                await self._gone(workers)
        except TimeoutError:
            raise TortureError(f"waiting for `mailq run` to drain took more than {END_SECONDS:g} s") from None
        run.guard.stdin.close()
        self._runs.remove(run)

    async def _gone(self, pids: set[int]) -> None:
        """Return when none of these processes is left; they outlive a supervisor that was killed."""
        left = pids & self.processes.alive().keys()
        while left:
            await asyncio.sleep(LOOK)
            left &= self.processes.alive().keys()

    def _supervisors(self, run: Run) -> list[int]:
        """Return the process under the guard's shell that is mailq."""
        alive = self.processes.alive()
        return [pid for pid in children(run.guard.pid) if b"mailq" in alive.get(pid, [])]

    def _supervised(self, run: Run) -> set[int]:
        """Return the worker processes of a run."""
        supervisors = self._supervisors(run)
        workers = set(self.processes.workers())
        return {pid for each in supervisors for pid in (each, *children(each))} & workers


def tables(*, smtp_port: int, name_server: str, journal: Path) -> dict[str, dict[str, Any]]:
    """Return the workers' configuration: as in production, only that waiting is shorter."""
    states = ("connect", "intro", "ehlo", "helo", "mailfrom", "rcptto", "data", "message", "quit")
    return {
        # Processes are killed all the time here: that a job was there when some died says nothing about it.
        "worker": {"poison_after": 12, "prefetch": 20, "sessions": 30, "drain_timeout": 5, "journal_dir": str(journal)},
        "journal": {"size": JOURNAL_SIZE, "keep": JOURNAL_KEEP},
        "rabbitmq": {
            "success": "", "failures": "", "heartbeat": HEARTBEAT, "confirm_timeout": 5, "connect_timeout": 3,
            "reconnect_delay": 0.2, "reconnect_max": 1,
        },
        "delivery": {"port": smtp_port, "ehlo": "worker.torture.test", "retries": [1, 2], "retry_jitter": 0,
                     "doubt_attempts": 0},
        "timeouts": {**dict.fromkeys(states, 3), "message": MESSAGE_SECONDS},
        "tls": {"mode": "none"},
        "dns": {
            "servers": [name_server], "timeout": 0.5, "lifetime": 1, "min_ttl": 0, "trouble_ttl": 1,
            "prohibited": [],  # the receivers are on loopback
        },
    }  # fmt: skip


_LIMITS = "limits = [{connections = 20, messages_per_session = 10, idle_timeout = 1}]"


def _text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the configuration as TOML."""
    parts = [_LIMITS]
    for name, keys in tables.items():
        parts.append(f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items()))
    return "\n".join(parts)


async def _ready(port: int) -> bool:
    """Tell whether the health page says that jobs are consumed."""
    return b" 200 " in (await _page(port, "/readyz")).partition(b"\r\n")[0]


async def _page(port: int, path: str) -> bytes:
    """Return what the HTTP port answers, nothing if it does not."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return await reader.read()
    except OSError:
        return b""
    finally:
        writer.transport.abort()
