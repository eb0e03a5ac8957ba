"""Configuration in, a worker out: the only place where the flow meets its edges."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from random import Random

from mailq.config import Config
from mailq.core.job import Smarthost
from mailq.core.letters import Names
from mailq.core.policy import Policy
from mailq.core.routing import Tls
from mailq.core.states import AUTH_STATES, State
from mailq.delivery import Delivery
from mailq.edges.amqp.broker import Broker
from mailq.edges.http import HttpServer
from mailq.edges.log import configure
from mailq.edges.metrics import Metrics
from mailq.edges.observers import Observers
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.ports import Observer
from mailq.settlement import Settlement
from mailq.smtp.pool import Pool
from mailq.stages.dns import parse_endpoint
from mailq.worker import Bounds, Worker

BODY_FACTOR = 2
"""A job may be so many times larger than its message: JSON escapes and the other properties."""


async def run(config: Config) -> int:
    """Run one worker until SIGTERM or SIGINT and return the exit status."""
    with configure(config.log) as log:
        metrics = Metrics()
        worker = build(config, Observers(metrics, log))
        async with AsyncExitStack() as stack:
            if config.http.enabled:
                server = HttpServer(
                    config.http, metrics=metrics.page, alive=lambda: None, ready=lambda: worker.not_ready
                )
                await stack.enter_async_context(server)
            with _signals(worker):
                await worker.run()
    return 0


def build(config: Config, observer: Observer) -> Worker:
    """Return a worker with all its edges."""
    rng = Random()  # noqa: S311 - it shuffles hosts and spreads retries
    policy = policy_of(config)
    sink = parse_endpoint(config.delivery.sink, policy.port) if config.delivery.sink else None
    dialer = TcpDialer(Security(config.tls), (sink.host, sink.port) if sink else None)
    pool = Pool(dialer, timeouts_of(config), config.timeouts.quit)
    sources = HostSources(config.sources, config.delivery.ehlo)
    delivery = Delivery(policy, DnsResolver(config.dns), sources, pool, observer, _now, rng)
    settlement = Settlement(names_of(config), policy, observer, _now, rng)
    bounds = Bounds(
        sessions=config.worker.sessions,
        body=BODY_FACTOR * config.delivery.max_message_size,
        drain_timeout=config.worker.drain_timeout,
        stalled_after=config.worker.stalled_after,
        reconnect_delay=config.rabbitmq.reconnect_delay,
        reconnect_max=config.rabbitmq.reconnect_max,
    )
    return Worker(
        lambda: Broker.open(config.rabbitmq, config.worker.prefetch, observer), delivery, settlement, observer, bounds
    )


def policy_of(config: Config) -> Policy:
    """Return what the flow needs to know of the configuration."""
    delivery, smarthost = config.delivery, config.smarthost
    password = smarthost.password.get_secret_value()
    return Policy(
        port=delivery.port,
        family=delivery.ip_family,
        max_targets=delivery.max_targets,
        max_message_size=delivery.max_message_size,
        retries=delivery.retries,
        retry_jitter=delivery.retry_jitter,
        max_deliver_time=delivery.max_deliver_time,
        max_attempts=delivery.max_attempts,
        attempt_timeout=delivery.attempt_timeout,
        dns_timeout=config.timeouts.dns,
        tls=Tls(config.tls.mode),
        retry_plaintext=config.tls.retry_plaintext,
        plaintext_auth=smarthost.plaintext_auth,
        smarthost=Smarthost(
            hostname=smarthost.hostname,
            port=smarthost.port,
            username=smarthost.username or None,
            password=password or None,
        )
        if smarthost.hostname
        else None,
        overrides=config.dns.overrides,
    )


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
    )


@contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """Drain on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _now() -> datetime:
    return datetime.now(UTC)
