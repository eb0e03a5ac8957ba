"""Composition: configuration in, a worker out; only this module connects the flow with its edges."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import gettempdir

from mailq.config import Config
from mailq.config.delivery import SmarthostConfig
from mailq.config.load import ConfigError
from mailq.core.answers.interpreter import Interpreter
from mailq.core.broker.publications import Names
from mailq.core.content.conformance import MessageRules
from mailq.core.jobs.job import Smarthost
from mailq.core.networks import Networks
from mailq.core.states import AUTH_STATES, State
from mailq.core.traffic.limits import LimitRule
from mailq.core.traffic.routes import Tls
from mailq.delivery.attempt import Delivery
from mailq.delivery.destinations import UNANSWERED
from mailq.delivery.governor import Governor
from mailq.delivery.policy import Policy
from mailq.delivery.smtp.session_pool import SessionPool
from mailq.delivery.stages.dns import parse_endpoint
from mailq.edges.amqp.address import outbox_of
from mailq.edges.amqp.broker import Broker
from mailq.edges.amqp.max_message_size import MaxMessageSize
from mailq.edges.duplicates import DuplicatesFile
from mailq.edges.journal import FileJournal, NullJournal
from mailq.edges.limits import SharedLimits
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.ports.broker import BrokerError
from mailq.ports.journal import Journal
from mailq.ports.limits import Limits
from mailq.ports.observer import Observer
from mailq.service.reload import meaning_of
from mailq.worker.handler import WorkerBounds
from mailq.worker.settlement import Settlement
from mailq.worker.worker import Worker

DNS_PATIENCE = 2.0
"""Seconds that a job waits in memory for the DNS."""


LEAST_STANDSTILL = 2.0
"""Least number of seconds without a turn of the event loop that count as a standstill."""


NO_HEARTBEAT = 15.0
"""Seconds of standstill that count if heartbeats are off: the connection may be lost all the same."""


BODY_FACTOR = 2
"""Largest ratio of a job to its message: JSON escapes and the other properties make the job larger."""


def build(
    config: Config,
    observer: Observer,
    limits: Limits,
    journal: Journal | None = None,
    meaning: Interpreter | None = None,
) -> Worker:
    """Return a worker with all its edges; it shares `limits` and `journal` (None: no journal) with other processes.

    `meaning` interprets results and may be replaced while the worker runs; None means one from the configuration.

    Raises:
        ConfigError: no name server is known, or a rule file is invalid.
    """
    try:
        resolver = DnsResolver(config.dns, config.delivery.ip_family)
    except ValueError as error:
        raise ConfigError(f"dns.servers: {error}") from None
    try:
        outbox = outbox_of(config.rabbitmq)
    except BrokerError as error:
        raise ConfigError(f"rabbitmq: {error}") from None
    rng = Random()  # noqa: S311 - shuffles hosts and spreads retries
    policy = policy_of(config)
    sink = parse_endpoint(config.delivery.sink, policy.port) if config.delivery.sink else None
    dialer = TcpDialer(Security(config.tls), (sink.host, sink.port) if sink else None)
    pool = SessionPool(
        dialer, limits, timeouts_of(config), config.timeouts.quit, config.worker.sessions, config.worker.prefetch
    )
    governor = Governor([LimitRule(**rule.model_dump()) for rule in config.limits])
    sources = HostSources(config.sources, config.delivery.ehlo)
    meaning = meaning or meaning_of(config)
    delivery = Delivery(policy, resolver, sources, governor, pool, meaning, observer, _now, rng)
    ips = [source.ip for source in config.sources]
    certificates = config.results.certificates
    settlement = Settlement(names_of(config), policy, meaning, observer, _now, rng, outbox, ips, certificates)
    bounds = WorkerBounds(
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
    max_message_size = MaxMessageSize()

    async def open_broker() -> Broker:
        if (unshared := limits.problem()) is not None:  # the worker must not consume without shared limits
            raise BrokerError(unshared)
        return await Broker.open(config.rabbitmq, config.worker.prefetch, observer, max_message_size)

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
    """Return the seconds of standstill after which RabbitMQ may have redelivered jobs: never before two heartbeats."""
    return max(heartbeat / 2, LEAST_STANDSTILL) if heartbeat else NO_HEARTBEAT


def limits_of(config: Config) -> SharedLimits:
    """Return the table of limits that the host shares: beside the journals, or else in a directory of this user.

    Raises:
        ConfigError: no journal directory is configured, and the user's directory belongs to another user.
    """
    if config.worker.journal_dir:
        return SharedLimits(config.worker.journal_dir)
    directory = Path(gettempdir(), f"mailq-{os.geteuid()}")
    with suppress(OSError):
        directory.mkdir(mode=0o700)
    if not directory.is_dir() or directory.lstat().st_uid != os.geteuid():  # another user may have made the directory
        raise ConfigError(f"worker.journal_dir: is empty, and {directory}, where limits would be, is not this user's")
    return SharedLimits(directory)


def journal_of(config: Config, process: int = 0) -> Journal:
    """Return the journal of a process, opened at once; its `problem` says if it cannot be written."""
    directory = config.worker.journal_dir
    return FileJournal(directory, config.journal, process) if directory else NullJournal()


def duplicates_of(config: Config) -> DuplicatesFile | None:
    """Return the memory of ids; None if each publication is to be delivered."""
    seconds = config.delivery.unique_for
    return DuplicatesFile(config.worker.journal_dir, seconds) if seconds else None


def policy_of(config: Config) -> Policy:
    """Return the part of the configuration that the flow needs."""
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
        # A delayed job must find the answer, or the failure, in the cache. If the cache forgets sooner, jobs wait.
        dns_patience=DNS_PATIENCE if config.dns.trouble_ttl > UNANSWERED + DNS_PATIENCE else config.timeouts.dns,
        tls=Tls(config.tls.mode),
        retry_plaintext=config.tls.retry_plaintext,
        plaintext_auth=smarthost.plaintext_auth,
        verify=smarthost.verify,
        fingerprints=smarthost.fingerprints,
        smarthost=None if smarthost.fallback else server,
        fallback=server if smarthost.fallback else None,
        message=MessageRules(**config.message.model_dump()),
        overrides=config.dns.overrides,
        prohibited=Networks(config.dns.prohibited),
    )


def _smarthost_of(config: SmarthostConfig) -> Smarthost | None:
    if not config.hostname:
        return None
    password = config.password.get_secret_value() or None
    return Smarthost(hostname=config.hostname, port=config.port, username=config.username or None, password=password)


def timeouts_of(config: Config) -> dict[State, float]:
    """Return the timeout of each state on the wire, in seconds."""
    table = config.timeouts.model_dump()
    clocks = {state: table[state] for state in State if state in table}
    clocks |= dict.fromkeys(AUTH_STATES, config.timeouts.auth)
    return clocks | {State.BIND: config.timeouts.connect}


def names_of(config: Config) -> Names:
    """Return the names of exchange and queues that publications need."""
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


def _now() -> datetime:
    return datetime.now(UTC)
