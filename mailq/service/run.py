"""The run of one worker process, alone or under the supervisor, until SIGTERM."""

import asyncio
import gc
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing, closing, contextmanager

from mailq.config import Config
from mailq.config.load import ConfigError
from mailq.core.answers.interpreter import Interpreter
from mailq.edges.control import Order, Place, Status, WorkerEnd
from mailq.edges.http_server import HttpServer
from mailq.edges.log import Logger, configure
from mailq.edges.metrics import Metrics
from mailq.edges.observers import Observers
from mailq.edges.watchdog import watching
from mailq.service.build import build, journal_of, limits_of
from mailq.service.reload import Reload, describe, meaning_of
from mailq.worker.worker import Worker


async def run(config: Config, read: Callable[[], Config]) -> int:
    """Run one worker until SIGTERM or SIGINT and return the exit status; on SIGHUP `read` the configuration anew."""
    tune_process()
    with configure(config.log) as log:
        caution(config, log.logger)
        metrics = Metrics()
        reload, meaning = Reload(config, read, log.logger), meaning_of(config)

        def reread() -> None:
            if (newest := reload.again()) is not None:
                meaning.replace(newest)

        async with AsyncExitStack() as stack:
            limits = stack.enter_context(closing(limits_of(config)))
            worker = build(config, Observers(metrics, log), limits, journal_of(config), meaning)
            if config.http.enabled:

                def page() -> tuple[str, bytes]:
                    metrics.overflows = limits.overflows
                    return metrics.page()

                server = HttpServer(
                    config.http, metrics=page, alive=metrics.heartbeat.problem, ready=lambda: worker.not_ready
                )
                await stack.enter_async_context(server)
            stack.enter_context(watching(_WatchdogReport(metrics, log.logger)))
            with _signals(worker, reread):
                await worker.run()
    return 0


class _WatchdogReport:
    """Reports the findings of the event loop's watchdog to metrics and log."""

    def __init__(self, metrics: Metrics, logger: Logger) -> None:
        self.lagged = metrics.lagged
        self._metrics = metrics
        self._logger = logger

    def held(self, seconds: float, place: str) -> None:
        """Log the code that blocked the event loop."""
        self._logger.warning("loop_held", seconds=round(seconds, 3), place=place)

    def stood_still(self, seconds: float) -> None:
        """Count and log a standstill of the process."""
        self._metrics.stood_still(seconds)
        self._logger.warning(
            "stood_still", seconds=round(seconds, 3), detail="the process was stopped, or had no processor"
        )


def caution(config: Config, logger: Logger) -> None:
    """Log a weakness of the configuration once, with its remedy."""
    if config.rabbitmq.weakness is not None:
        logger.warning("configuration", detail=f"{config.rabbitmq.weakness}; set {config.rabbitmq.remedy}")


async def run_child(place: Place) -> int:
    """Run one worker of several, which obeys the supervisor, and return the exit status."""
    async with aclosing(await WorkerEnd.open(place.line)) as line, AsyncExitStack() as stack:
        configuration = await line.configuration()
        if not configuration:
            return 1
        config = Config.model_validate_json(configuration)
        tune_process()
        log = stack.enter_context(configure(config.log, process=place.index))
        limits = stack.enter_context(closing(limits_of(config)))
        metrics = Metrics()
        meaning = meaning_of(config)
        worker = build(config, Observers(metrics, log), limits, journal_of(config, place.index), meaning)
        stack.enter_context(_signals(worker, None))
        stack.enter_context(watching(_WatchdogReport(metrics, log.logger)))

        def status() -> Status:
            metrics.overflows = limits.overflows
            return Status(metrics.heartbeat.problem(), worker.not_ready, metrics.snapshot())

        obedience = asyncio.create_task(_obey(line, worker, status, meaning, log.logger))
        await worker.run()
        obedience.cancel()
    return 0


async def _obey(
    line: WorkerEnd, worker: Worker, status: Callable[[], Status], meaning: Interpreter, logger: Logger
) -> None:
    """Obey the orders of the supervisor; drain when the supervisor is gone."""
    try:
        async for order in line.orders():
            match order:
                case Order.STATUS:
                    line.answer(status())
                case Order.RELOAD:
                    _reload(await line.configuration(), meaning, logger)
                case Order.DRAIN:
                    worker.stop()
                case Order.STOP_NOW:
                    worker.stop()
                    worker.stop_now()
    finally:
        worker.stop()


def _reload(configuration: bytes, meaning: Interpreter, logger: Logger) -> None:
    """Apply the configuration that the supervisor has read and checked; this process reads the rule files again."""
    if not configuration:  # the supervisor died while it sent the configuration
        return
    try:
        meaning.replace(meaning_of(Config.model_validate_json(configuration)))
    except ConfigError as error:
        logger.warning("reload", change="refused", detail=str(error))
    else:
        logger.info("reload", change="taken", **describe(meaning))


def tune_process() -> None:
    """Keep imported objects out of garbage collection, make collections rarer, and allow the most sockets."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _signals(worker: Worker, reread: Callable[[], None] | None) -> Iterator[None]:
    """Drain on SIGTERM and SIGINT, stop now on a second one, and call `reread` on SIGHUP.

    Without `reread` the supervisor orders `stop_now` and reloads, so the process ignores a second signal and SIGHUP.
    Such signals may reach the whole process group, and the supervisor passes them on.
    """
    loop = asyncio.get_running_loop()

    def drain() -> None:
        if reread is not None and worker.stopping:
            worker.stop_now()
        worker.stop()

    handlers = {signal.SIGTERM: drain, signal.SIGINT: drain, signal.SIGHUP: reread or (lambda: None)}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
