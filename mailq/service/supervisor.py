"""The supervisor: N worker processes with one HTTP port and one way to stop.

The supervisor starts `mailq run --child` processes, each with a control socket (`edges.control`), and restarts those
that die. The HTTP server answers /metrics, /healthz and /readyz for all of them. The supervisor consumes no jobs,
delivers none and decides nothing about mail; a worker works as it does alone (`worker`). If the supervisor dies, its
control sockets close, and the workers drain.

On SIGTERM or SIGINT the supervisor orders every process to drain, and on a second one to stop now. On SIGHUP the
supervisor reads the configuration again and sends it to every process, and to those it starts later. Child processes
have sessions of their own, so that a terminal's Ctrl-C reaches only the supervisor.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from pydantic import SecretStr

from mailq.config import Config
from mailq.edges.control import Order, Place, Status, SupervisorEnd, pair
from mailq.edges.http_server import HttpServer
from mailq.edges.log import Logger, configure
from mailq.edges.metrics import Fleet
from mailq.edges.observers import Observers
from mailq.service.build import build, limits_of
from mailq.service.reload import Reload
from mailq.service.run import caution

PATIENCE = 1.0
"""Seconds that a process has to answer."""

STARTING = 30.0
"""Seconds that a new process has to start before it must answer."""

FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between a death and a new process; doubled from one death to the next."""

STABLE = 60.0
"""Seconds of life after which a process is restarted with the first pause again."""

GRACE = 10.0
"""Seconds beyond the drain time until a process that does not end is killed."""


async def supervise(config: Config, read: Callable[[], Config], processes: int) -> int:
    """Run so many worker processes until SIGTERM or SIGINT; return 0 if all of them drained cleanly, else 1.

    On SIGHUP the supervisor calls `read` for the newest configuration.

    Raises:
        ListenError: the HTTP port is not free; no process was started.
        ConfigError: no worker can be built from the configuration; no process was started.
    """
    with configure(config.log) as log:
        # An invalid configuration ends the supervisor here, and not each process again and again.
        build(config, Observers(), limits_of(config))
        caution(config, log.logger)
        supervisor = Supervisor(Reload(config, read, log.logger), processes, log.logger)
        async with AsyncExitStack() as stack:
            if config.http.enabled:
                server = HttpServer(
                    config.http, metrics=supervisor.metrics, alive=supervisor.dead, ready=supervisor.unready
                )
                await stack.enter_async_context(server)
            with _signals(supervisor):
                return await supervisor.run()


@dataclass(slots=True)
class Child:
    """A running process, its control socket, its start (monotonic clock), and whether it has ever answered."""

    process: Process
    line: SupervisorEnd
    born: float
    answered: bool = False


class Supervisor:
    """Keeps the processes running, and answers HTTP requests for all of them."""

    def __init__(self, reload: Reload, processes: int, logger: Logger) -> None:
        self._reload = reload
        self._configuration = dump(reload.config)
        self._drain_timeout = reload.config.worker.drain_timeout
        self._logger = logger
        self._fleet = Fleet(processes)
        self._children: dict[int, Child | None] = dict.fromkeys(range(processes))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Order all processes to drain; at a second call, to stop now."""
        order = Order.STOP_NOW if self._stopping.is_set() else Order.DRAIN
        self._logger.info("supervisor", change=order)
        self._stopping.set()
        for child in self._children.values():
            if child is not None:
                child.line.order(order)

    def reload(self) -> None:
        """Read the configuration again, and send all processes the tables that apply."""
        if self._reload.again() is None:
            return
        self._configuration = dump(self._reload.config)
        for child in self._children.values():
            if child is not None:
                child.line.reload(self._configuration)

    async def run(self) -> int:
        """Keep all processes running until `stop`, and return the exit status."""
        self._logger.info("supervisor", change="started", processes=len(self._children))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(index)) for index in self._children]
        return 0 if all(task.result() for task in tasks) else 1

    async def metrics(self) -> tuple[str, bytes]:
        """Return the metrics page of all processes."""
        answers = {index: status.metrics for index, status in (await self._ask()).items() if status is not None}
        pids = {str(index): child.process.pid for index, child in self._children.items() if child is not None}
        return self._fleet.page(answers, pids | {"supervisor": os.getpid()})

    async def dead(self) -> str | None:
        """Return the processes that do not work, None if all do; a process that is starting counts as working."""
        return _list({index: self._why_dead(index, status) for index, status in (await self._ask()).items()})

    async def unready(self) -> str | None:
        """Return the processes that do not consume, None if all do."""
        if self._stopping.is_set():
            return "draining"
        return _list(
            {
                index: status.unready if status is not None else "does not answer"
                for index, status in (await self._ask()).items()
            }
        )

    async def _ask(self) -> dict[int, Status | None]:
        statuses = await asyncio.gather(*map(self._status, self._children.values()))
        return dict(zip(self._children, statuses, strict=True))

    async def _status(self, child: Child | None) -> Status | None:
        if child is None:
            return None
        status = await child.line.status(PATIENCE)
        child.answered = child.answered or status is not None
        return status

    def _why_dead(self, index: int, status: Status | None) -> str | None:
        if status is not None:
            return status.dead
        child = self._children[index]
        if child is None:
            return None if self._stopping.is_set() else "is not running"
        starting = not child.answered and monotonic() - child.born < STARTING
        return None if starting else "does not answer"

    async def _keep(self, index: int) -> bool:
        """Keep a process running in this place until `stop`; return whether the last one drained cleanly."""
        pause = FIRST_PAUSE
        while True:
            born = monotonic()
            try:
                clean = await self._live(index)
            except OSError as error:  # no memory, no process number, no interpreter: a later start may succeed
                self._logger.warning("process", change="failed", process=index, detail=str(error))
                clean = False
            if self._stopping.is_set():
                return clean
            pause = FIRST_PAUSE if monotonic() - born >= STABLE else pause
            self._logger.warning("process", change="restarting", process=index, seconds=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return True
            self._fleet.restarted(index)
            pause = min(pause * 2, LAST_PAUSE)

    async def _live(self, index: int) -> bool:
        """Start a process, wait for its end, and return whether that was requested and clean."""
        child = self._children[index] = await self._start(index)
        code = await self._end_of(child)
        self._children[index] = None
        await child.line.aclose()
        self._fleet.died(index)
        clean = self._stopping.is_set() and code == 0
        self._logger.log(
            logging.INFO if clean else logging.WARNING,
            "process",
            change="ended" if clean else "died",
            process=index,
            pid=child.process.pid,
            status=describe(code),
            seconds=round(monotonic() - child.born, 1),
        )
        return clean

    async def _start(self, index: int) -> Child:
        ours, theirs = pair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            place = Place(index, theirs.fileno())
            # -P: Python does not import a folder `mailq` in the working directory.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "mailq", "run", "--child", str(place),
                stdin=DEVNULL, pass_fds=(place.line,), start_new_session=True,
            )  # fmt: skip
            undo.pop_all()
        configuration = self._configuration
        child = Child(process, await SupervisorEnd.open(ours, configuration), monotonic())
        self._logger.info("process", change="started", process=index, pid=process.pid)
        if configuration is not self._configuration:  # the supervisor read it again meanwhile
            child.line.reload(self._configuration)
        if self._stopping.is_set():
            child.line.order(Order.DRAIN)
        return child

    async def _end_of(self, child: Child) -> int:
        """Return the exit status of a process; kill it if it does not end in time after the order to drain."""
        ended = asyncio.create_task(child.process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait({ended}, timeout=self._drain_timeout + GRACE)
        if not ended.done():
            self._logger.error(
                "process", change="killed", pid=child.process.pid, detail="did not end in its drain time"
            )
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
        return await ended


def cores() -> int:
    """Return how many cores this process may use: by affinity, and by the quota of its container (cgroup v2)."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split())
        usable = min(usable, math.ceil(quota / period))
    return max(1, usable)


def dump(config: Config) -> bytes:
    """Return the configuration as one line of JSON, secrets included, for `Config.model_validate_json`."""
    return json.dumps(config.model_dump(), default=_reveal).encode()


def describe(code: int) -> str:
    """Return an exit status in words; a negative one is a signal."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _reveal(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _list(reasons: dict[int, str | None]) -> str | None:
    """Return the reasons in one line, None if there are none."""
    return "; ".join(f"process {index}: {reason}" for index, reason in reasons.items() if reason) or None


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGTERM: supervisor.stop, signal.SIGINT: supervisor.stop, signal.SIGHUP: supervisor.reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
