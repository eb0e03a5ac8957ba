"""Configuration in, a worker out: the only place where the flow meets its edges."""

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import gettempdir

from mailq.config import Config
from mailq.config.delivery import SmarthostConfig
from mailq.config.load import ConfigError
from mailq.core.answers.interpreter import Meaning
from mailq.core.broker.publications import Names
from mailq.core.content.conformance import Rules
from mailq.core.jobs.job import Smarthost
from mailq.core.networks import Networks
from mailq.core.states import AUTH_STATES, State
from mailq.core.traffic.limits import LimitRule
from mailq.core.traffic.routes import Tls
from mailq.delivery.attempt import Delivery
from mailq.delivery.destinations import UNANSWERED
from mailq.delivery.governor import Governor
from mailq.delivery.policy import Policy
from mailq.delivery.smtp.session_pool import Pool
from mailq.delivery.stages.dns import parse_endpoint
from mailq.edges.amqp.address import outbox_of
from mailq.edges.amqp.broker import Broker
from mailq.edges.amqp.max_message_size import Ceiling
from mailq.edges.control import Order, Place, Status, WorkerEnd
from mailq.edges.duplicates import DuplicatesFile
from mailq.edges.http_server import HttpServer
from mailq.edges.journal import FileJournal, NullJournal
from mailq.edges.limits import SharedTable
from mailq.edges.log import Logger, configure
from mailq.edges.metrics import Metrics
from mailq.edges.observers import Observers
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.watchdog import watching
from mailq.edges.wire import TcpDialer
from mailq.ports.broker import BrokerError
from mailq.ports.journal import Journal
from mailq.ports.limits import Limits
from mailq.ports.observer import Observer
from mailq.service.reload import Reload, describe, meaning_of
from mailq.worker.handler import Bounds
from mailq.worker.settlement import Settlement
from mailq.worker.worker import Worker

DNS_PATIENCE = 2.0
"""Seconds that a job waits in memory for the DNS."""

LEAST_STANDSTILL = 2.0
"""Seconds between two turns of the event loop that are no standstill, however short the heartbeat is."""

NO_HEARTBEAT = 15.0
"""Seconds of standstill that count where heartbeats are off: the connection may be lost all the same."""

BODY_FACTOR = 2
"""A job may be so many times larger than its message: JSON escapes and the other properties."""


async def run(config: Config, read: Callable[[], Config]) -> int:
    """Run one worker until SIGTERM or SIGINT and return the exit status; on SIGHUP `read` the configuration anew."""
    _settle_in()
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
                    config.http, metrics=page, alive=metrics.heartbeat.trouble, ready=lambda: worker.not_ready
                )
                await stack.enter_async_context(server)
            stack.enter_context(watching(_Lateness(metrics, log.logger)))
            with _signals(worker, reread):
                await worker.run()
    return 0


class _Lateness:
    """Brings what the watchdog of the loop finds into metrics and log."""

    def __init__(self, metrics: Metrics, logger: Logger) -> None:
        self.lagged = metrics.lagged
        self._metrics = metrics
        self._logger = logger

    def held(self, seconds: float, place: str) -> None:
        """Name the code that held the loop."""
        self._logger.warning("loop_held", seconds=round(seconds, 3), place=place)

    def stood_still(self, seconds: float) -> None:
        """Tell of a process that did not run."""
        self._metrics.stood_still(seconds)
        self._logger.warning(
            "stood_still", seconds=round(seconds, 3), detail="the process was stopped, or had no processor"
        )


def caution(config: Config, logger: Logger) -> None:
    """Say once what the operator should not leave like this."""
    if config.rabbitmq.weakness is not None:
        logger.warning("configuration", detail=f"{config.rabbitmq.weakness}; set {config.rabbitmq.remedy}")


async def run_child(place: Place) -> int:
    """Run one worker of several under the supervisor, which it answers and obeys, and return the exit status."""
    async with aclosing(await WorkerEnd.open(place.line)) as line, AsyncExitStack() as stack:
        configuration = await line.configuration()
        if not configuration:
            return 1
        config = Config.model_validate_json(configuration)
        _settle_in()
        log = stack.enter_context(configure(config.log, process=place.index))
        limits = stack.enter_context(closing(limits_of(config)))
        metrics = Metrics()
        meaning = meaning_of(config)
        worker = build(config, Observers(metrics, log), limits, journal_of(config, place.index), meaning)
        stack.enter_context(_signals(worker, None))
        stack.enter_context(watching(_Lateness(metrics, log.logger)))

        def status() -> Status:
            metrics.overflows = limits.overflows
            return Status(metrics.heartbeat.trouble(), worker.not_ready, metrics.snapshot())

        obedience = asyncio.create_task(_obey(line, worker, status, meaning, log.logger))
        await worker.run()
        obedience.cancel()
    return 0


async def _obey(
    line: WorkerEnd, worker: Worker, status: Callable[[], Status], meaning: Meaning, logger: Logger
) -> None:
    """Do what the supervisor asks; drain when it is gone."""
    try:
        async for order in line.orders():
            match order:
                case Order.STATUS:
                    line.answer(status())
                case Order.RELOAD:
                    _reload(await line.configuration(), meaning, logger)
                case Order.DRAIN:
                    worker.stop()
                case Order.HASTEN:
                    worker.stop()
                    worker.hasten()
    finally:
        worker.stop()


def _reload(configuration: bytes, meaning: Meaning, logger: Logger) -> None:
    """Take over what the supervisor has read; it was right then, but its rule files are read here again."""
    if not configuration:  # the supervisor died over it
        return
    try:
        meaning.replace(meaning_of(Config.model_validate_json(configuration)))
    except ConfigError as trouble:
        logger.warning("reload", change="refused", detail=str(trouble))
    else:
        logger.info("reload", change="taken", **describe(meaning))


def build(
    config: Config, observer: Observer, limits: Limits, journal: Journal | None = None, meaning: Meaning | None = None
) -> Worker:
    """Return a worker with all its edges; `limits` and `journal` (None: none) are what it shares with other processes.

    `meaning` may be replaced while the worker runs; None: it stays as the configuration has it.

    Raises:
        ConfigError: no name server is to be had, or a file of rules cannot be used.
    """
    try:
        resolver = DnsResolver(config.dns, config.delivery.ip_family)
    except ValueError as trouble:
        raise ConfigError(f"dns.servers: {trouble}") from None
    try:
        outbox = outbox_of(config.rabbitmq)
    except BrokerError as trouble:
        raise ConfigError(f"rabbitmq: {trouble}") from None
    rng = Random()  # noqa: S311 - it shuffles hosts and spreads retries
    policy = policy_of(config)
    sink = parse_endpoint(config.delivery.sink, policy.port) if config.delivery.sink else None
    dialer = TcpDialer(Security(config.tls), (sink.host, sink.port) if sink else None)
    pool = Pool(
        dialer, limits, timeouts_of(config), config.timeouts.quit, config.worker.sessions, config.worker.prefetch
    )
    governor = Governor([LimitRule(**rule.model_dump()) for rule in config.limits])
    sources = HostSources(config.sources, config.delivery.ehlo)
    meaning = meaning or meaning_of(config)
    delivery = Delivery(policy, resolver, sources, governor, pool, meaning, observer, _now, rng)
    ips = [source.ip for source in config.sources]
    certificates = config.results.certificates
    settlement = Settlement(names_of(config), policy, meaning, observer, _now, rng, outbox, ips, certificates)
    bounds = Bounds(
        body=BODY_FACTOR * config.delivery.max_message_size,
        values=config.worker.max_values,
        strict=config.delivery.strict,
        in_memory=config.worker.max_bytes,
        drain_timeout=config.worker.drain_timeout,
        stalled_after=config.worker.stalled_after,
        reconnect_delay=config.rabbitmq.reconnect_delay,
        reconnect_max=config.rabbitmq.reconnect_max,
        poison_after=config.worker.poison_after,
        standstill=standstill_of(config.rabbitmq.heartbeat),
    )
    ceiling = Ceiling()

    async def open_broker() -> Broker:
        if (unshared := limits.trouble()) is not None:  # nothing may be begun, so nothing is consumed
            raise BrokerError(unshared)
        return await Broker.open(config.rabbitmq, config.worker.prefetch, observer, ceiling)

    return Worker(
        open_broker,
        delivery,
        settlement,
        journal or NullJournal(),
        outbox,
        observer,
        bounds,
        duplicates_of(config),
    )


def standstill_of(heartbeat: int) -> float:
    """Return after how many seconds of standstill RabbitMQ may have given jobs to others: not before two heartbeats."""
    return max(heartbeat / 2, LEAST_STANDSTILL) if heartbeat else NO_HEARTBEAT


def limits_of(config: Config) -> SharedTable:
    """Return the table of limits that the host shares: with the journals, or else in a directory of this user.

    Raises:
        ConfigError: no journals are kept, and there is no such directory.
    """
    if config.worker.journal_dir:
        return SharedTable(config.worker.journal_dir)
    directory = Path(gettempdir(), f"mailq-{os.geteuid()}")
    with suppress(OSError):
        directory.mkdir(mode=0o700)
    if not directory.is_dir() or directory.lstat().st_uid != os.geteuid():  # anybody may have made it
        raise ConfigError(f"worker.journal_dir: is empty, and {directory}, where limits would be, is not this user's")
    return SharedTable(directory)


def journal_of(config: Config, process: int = 0) -> Journal:
    """Return the journal of a process, which begins at once; one that cannot be written says so itself."""
    directory = config.worker.journal_dir
    return FileJournal(directory, config.journal, process) if directory else NullJournal()


def duplicates_of(config: Config) -> DuplicatesFile | None:
    """Return what remembers ids, None if each publication is to be delivered."""
    seconds = config.delivery.unique_for
    return DuplicatesFile(config.worker.journal_dir, seconds) if seconds else None


def policy_of(config: Config) -> Policy:
    """Return what the flow needs to know of the configuration."""
    delivery, smarthost = config.delivery, config.smarthost
    server = _smarthost_of(smarthost)
    return Policy(
        port=delivery.port,
        family=delivery.ip_family,
        max_targets=delivery.max_targets,
        max_message_size=delivery.max_message_size,
        retries=delivery.retries,
        retry_jitter=delivery.retry_jitter,
        max_deliver_time=delivery.max_deliver_time,
        max_attempts=delivery.max_attempts,
        on_doubt=delivery.on_doubt,
        doubt_attempts=delivery.doubt_attempts,
        greylist_retry=delivery.greylist_retry,
        hint_min=delivery.hint_min,
        hint_max=delivery.hint_max,
        attempt_timeout=delivery.attempt_timeout,
        dns_timeout=config.timeouts.dns,
        # Who comes back must find the answer, silence too; where that is hardly remembered, all wait for it.
        dns_patience=DNS_PATIENCE if config.dns.trouble_ttl > UNANSWERED + DNS_PATIENCE else config.timeouts.dns,
        tls=Tls(config.tls.mode),
        retry_plaintext=config.tls.retry_plaintext,
        plaintext_auth=smarthost.plaintext_auth,
        verify=smarthost.verify,
        fingerprints=smarthost.fingerprints,
        smarthost=None if smarthost.fallback else server,
        fallback=server if smarthost.fallback else None,
        message=Rules(**config.message.model_dump()),
        overrides=config.dns.overrides,
        prohibited=Networks(config.dns.prohibited),
    )


def _smarthost_of(config: SmarthostConfig) -> Smarthost | None:
    if not config.hostname:
        return None
    password = config.password.get_secret_value() or None
    return Smarthost(hostname=config.hostname, port=config.port, username=config.username or None, password=password)


def timeouts_of(config: Config) -> dict[State, float]:
    """Return the clock of each state on the wire, in seconds."""
    table = config.timeouts.model_dump()
    clocks = {state: table[state] for state in State if state in table}
    clocks |= dict.fromkeys(AUTH_STATES, config.timeouts.auth)
    return clocks | {State.BIND: config.timeouts.connect}


def names_of(config: Config) -> Names:
    """Return the broker's names that publications need."""
    rabbitmq = config.rabbitmq
    return Names(
        rabbitmq.exchange,
        rabbitmq.outbox,
        rabbitmq.poison,
        rabbitmq.results,
        rabbitmq.success,
        rabbitmq.failures,
        rabbitmq.retry,
        config.webhooks.prefix,
        rabbitmq.job_queues,
        rabbitmq.priorities,
        config.webhooks.prefix if config.webhooks.endpoints else "",
        config.results.gzip,
        config.results.delays,
    )


def _settle_in() -> None:
    """Spare the garbage collector what was imported and most of its walks; allow as many sockets as the system does."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _signals(worker: Worker, reread: Callable[[], None] | None) -> Iterator[None]:
    """Drain on SIGTERM and SIGINT, make haste on the second, `reread` on SIGHUP; None: the supervisor says when to.

    The latter two are not heeded then: they may reach the whole group, and the supervisor passes on what it hears.
    """
    loop = asyncio.get_running_loop()

    def drain() -> None:
        if reread is not None and worker.stopping:
            worker.hasten()
        worker.stop()

    handlers = {signal.SIGTERM: drain, signal.SIGINT: drain, signal.SIGHUP: reread or (lambda: None)}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _now() -> datetime:
    return datetime.now(UTC)
