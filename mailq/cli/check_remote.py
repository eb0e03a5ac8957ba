"""What `mailq check` sees of the world: one function per part of it, each returns findings.

Decides what is a failure (the worker cannot do its work), what a warning (it can, but mail will
suffer), and what to do about each. What can be seen on the host alone is in `mailq.cli.check_local`;
printing and exit status are the command's.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from mailq.cli import check_local
from mailq.cli.check_smarthost import smarthost
from mailq.cli.finding import Finding, Level
from mailq.config import Config
from mailq.config.checks import split_endpoint
from mailq.config.rabbitmq import RabbitConfig
from mailq.config.webhooks import EndpointConfig
from mailq.core.delay_queues import STEPS
from mailq.core.jobs.address import ascii_domain
from mailq.core.networks import Networks, numeric
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import MAX_LINE, printable
from mailq.delivery.stages.dns import override
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connect_errors import UnreachableError
from mailq.edges.amqp.connection import Connection, RefusedError
from mailq.edges.amqp.differences import LIMIT, NONE, Difference
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import exists
from mailq.edges.webhook_client import addresses, public
from mailq.ports.broker import BrokerError

PATIENCE = 10.0
"""Seconds to wait for a name or a greeting."""

SHOWN = 3
"""MX hosts of a domain that are told of."""

LIMITING = (4, 0)
DROPPED_AT = 20
"""Since this version RabbitMQ gives quorum queues without a delivery limit of their own this one."""

_UNLIMITED = (
    "No client sees policies: all is well if one says delivery-limit -1 (docs/reference/queues.md). Else set it, or"
    " delete the queue, which an earlier version of mailq declared, once it is empty."
)
_CLASSIC = "Set {}, and delete the queues once they are empty."

_AS_IT_IS = (
    "mailq uses it as it is (docs/migrating.md, Queues that exist). To have mailq's own, delete it once it is empty."
)

_LARGER = "For larger jobs publish with content_encoding gzip (`mailq send --gzip`), or raise max_message_size there."

_PROHIBITED = "If mail is to go there, give the domain an override, or take the network out of dns.prohibited."

_NOT_YET = "not there yet; `mailq run` declares it"


async def examine(config: Config, file: Path | None, domain: str, host: str | None) -> list[Finding]:
    """Return the findings about everything, in the order in which a delivery needs it."""
    local = check_local
    findings = [*local.configuration(file), *local.meaning(config), *local.limits(config)]
    findings.append(local.journal(config))
    findings += [finding async for finding in broker(config.rabbitmq, config.delivery.max_message_size)]
    findings += [await names(config, domain), *[finding async for finding in sources(config)]]
    if host:
        ips: list[str | None] = [source.ip for source in config.sources]
        findings += await asyncio.gather(*(outbound(host, config.delivery.port, ip) for ip in ips or [None]))
    findings += await smarthost(config)
    findings += await webhooks(config)
    return findings


async def broker(config: RabbitConfig, octets: int = 0) -> AsyncIterator[Finding]:
    """Look at the broker, its exchange and its queues; `octets` is the size of the largest message to be delivered."""
    try:
        connection = await Connection.open(
            Address.of(config),
            "mailq check",
            heartbeat=config.heartbeat,
            connect_timeout=config.connect_timeout,
            answer_timeout=config.confirm_timeout,
        )
    except UnreachableError as trouble:
        yield Finding(Level.FAIL, "broker", trouble.seen, f"{trouble.remedy[0].upper()}{trouble.remedy[1:]}.")
        return
    except BrokerError as trouble:
        yield Finding(Level.FAIL, "broker", str(trouble), "Mend rabbitmq.url or rabbitmq.ca_file.")
        return
    try:
        yield Finding(Level.OK, "broker", "connected")
        if (size := message_size(connection.server, octets)) is not None:
            yield size
        if config.weakness is not None:
            yield Finding(Level.WARN, "queue type", config.weakness, _CLASSIC.format(config.remedy))
        yield await _exchange(connection, config)
        delays, delayed = tuple(topology.delay_queue(config.outbox, step) for step in STEPS), []
        for queue in topology.queues(config):
            finding = await _queue(connection, config, queue)
            if queue.name in delays and finding.level is Level.OK:
                delayed.append(finding)
            else:
                yield finding
        for finding in _alike(delayed):
            yield finding
    except BrokerError as trouble:
        yield Finding(Level.FAIL, "broker", str(trouble), "The connection was lost while looking; look again.")
    finally:
        await connection.close()


def message_size(server: str, octets: int) -> Finding | None:
    """Tell whether a broker of that version takes jobs with the largest message that is configured; None: it does."""
    version = int(server.partition(".")[0] or 0)
    most = 16 if version >= LIMITING[0] else 128
    if octets <= most * 1024 * 1024:
        return None
    seen = (
        f"RabbitMQ {printable(server.encode())} takes messages of {most} MiB, unless max_message_size in its"
        f" rabbitmq.conf says otherwise; delivery.max_message_size is {octets // 1024 / 1024:.5g} MiB"
    )
    return Finding(Level.OK, "message size", seen, _LARGER)


async def _exchange(connection: Connection, config: RabbitConfig) -> Finding:
    what = f"exchange {config.exchange}"
    try:
        await topology.look_at_exchange(connection, config.exchange)
        different = await topology.exchange(connection, config)
    except topology.TopologyError as trouble:
        return Finding(Level.FAIL, what, str(trouble), "Name another rabbitmq.exchange, or delete it.")
    except RefusedError as refused:
        return _refused(what, config, refused)
    if different:
        return Finding(Level.WARN, what, ", ".join(map(str, different)), _AS_IT_IS)
    return Finding(Level.OK, what, "is there")


async def _queue(connection: Connection, config: RabbitConfig, queue: topology.Queue) -> Finding:
    """Look at one queue; to declare one that is there changes nothing and tells whether it is as configured."""
    what = f"queue {queue.name}"
    try:
        state = await topology.look(connection, queue.name)
        different = await topology.compare(connection, queue) if config.declare else ()
    except RefusedError as refused:
        return _refused(what, config, refused)
    seen = f"{state.messages} ready, {state.consumers} consumers"
    if queue.name == config.outbox and state.messages and not state.consumers:
        return Finding(Level.WARN, what, seen, "Jobs wait and no worker consumes them: start `mailq run`.")
    if queue.name == config.poison and state.messages:
        return Finding(Level.WARN, what, seen, "Read the reasons in their headers; delete or mend and republish them.")
    return _as_it_is(connection, config, queue, different, seen)


def _as_it_is(
    connection: Connection, config: RabbitConfig, queue: topology.Queue, different: tuple[Difference, ...], seen: str
) -> Finding:
    """Tell what it costs to use a queue as it is."""
    what = f"queue {queue.name}"
    if trouble := topology.obstacle(config, queue, different):
        return Finding(Level.FAIL, what, trouble, "Delete it once it is empty; `mailq run` declares it anew.")
    if told := topology.cost(config, queue, different):
        return Finding(Level.WARN, what, f"{seen}; {', '.join(map(str, different))}; {told}", _AS_IT_IS)
    if _limited(queue, different) and connection.version >= LIMITING:
        limited = f"{seen}; drops what was returned {DROPPED_AT} times, unless a policy says delivery-limit -1"
        return Finding(Level.WARN, what, limited, _UNLIMITED)
    return Finding(Level.OK, what, seen)


def _limited(queue: topology.Queue, different: tuple[Difference, ...]) -> bool:
    """Tell whether a queue lacks the unlimited delivery limit that mailq would give it."""
    unlimited = queue.arguments.get(LIMIT) == topology.UNLIMITED
    return unlimited and any(each.argument == LIMIT and each.found == NONE for each in different)


def _alike(findings: list[Finding]) -> Iterator[Finding]:
    """Yield one line for all delay queues where nothing is delayed, and one for each that holds jobs."""
    idle = [finding for finding in findings if finding.seen.startswith(("0 ready", _NOT_YET))]
    for seen in dict.fromkeys(finding.seen for finding in idle):
        alike = [finding.what.rpartition(".")[2] for finding in idle if finding.seen == seen]
        yield Finding(Level.OK, f"delay queues {alike[0]} … {alike[-1]}", f"{len(alike)} queues: {seen}")
    yield from (finding for finding in findings if finding not in idle)


def _refused(what: str, config: RabbitConfig, refused: RefusedError) -> Finding:
    if refused.code != topology.NOT_FOUND:
        advice = "Make the configuration match, or delete it once it is empty, or set rabbitmq.declare = false."
        return Finding(Level.FAIL, what, str(refused), advice)
    if config.declare:
        return Finding(Level.OK, what, _NOT_YET)
    return Finding(Level.FAIL, what, "is not there", "Create it, or set rabbitmq.declare = true.")


async def names(config: Config, domain: str) -> Finding:
    """Look up the MX hosts of a domain, as the worker does."""
    needed = not config.smarthost.hostname or config.smarthost.fallback
    advice = "Look at dns.servers and at the system's resolver." if needed else ""
    try:
        name = ascii_domain(domain)
        if fixed := override(name, config.dns.overrides):
            return Finding(Level.OK, "dns", f"{domain}: {', '.join(fixed)}, as dns.overrides has it")
        resolver = DnsResolver(config.dns, config.delivery.ip_family)
        records = await resolver.mx(name)
    except (Failure, ValueError) as trouble:
        return Finding(Level.FAIL if needed else Level.WARN, "dns", f"{domain}: {trouble}", advice)
    hosts = [host for _, host in records[:SHOWN]]
    if hosts == ["."]:
        return Finding(Level.OK, "dns", f"{domain}: takes no mail (null MX)")
    seen = f"{domain}: {', '.join(hosts) or 'no MX records, mail goes to the domain itself'}"
    skipped = await _prohibited(hosts or [name], resolver, Networks(config.dns.prohibited)) if needed else []
    if skipped:
        return Finding(Level.WARN, "dns", f"{seen}; not connected to: {', '.join(skipped)}", _PROHIBITED)
    return Finding(Level.OK, "dns", seen)


async def _prohibited(hosts: list[str], resolver: DnsResolver, networks: Networks) -> list[str]:
    """Return the addresses of hosts that are skipped, each with the reason; lookups that fail are another matter."""
    skipped = []
    for host in hosts:
        with suppress(Failure):
            ips = [ip] if (ip := numeric(host)) else await resolver.addresses(host)
            barred = [(ip, networks.holding(ip)) for ip in ips]
            skipped += [f"{host} ({ip}, in {network} of dns.prohibited)" for ip, network in barred if network]
    return skipped


async def sources(config: Config) -> AsyncIterator[Finding]:
    """Look whether each source is an address of this host and has a name in the DNS."""
    default = config.delivery.ehlo or socket.getfqdn()
    if not config.sources:
        level = Level.OK if "." in default else Level.WARN
        advice = "" if level is Level.OK else "Set delivery.ehlo to a full host name; many servers refuse others."
        yield Finding(level, "sources", f"chosen by the system, EHLO {default}", advice)
    for source in config.sources:
        yield await _source(source.ip, source.ehlo or default)


async def _source(ip: str, ehlo: str) -> Finding:
    what = f"source {ip}"
    if not exists(ip):
        return Finding(Level.FAIL, what, "is no address of this host", "Add it to an interface or remove it.")
    seen = f"EHLO {ehlo}"
    if not ipaddress.ip_address(ip).is_global:
        return Finding(Level.OK, what, f"{seen}; not a public address, so its name is not looked up")
    try:
        name = (await asyncio.wait_for(asyncio.to_thread(socket.gethostbyaddr, ip), PATIENCE))[0]
    except (OSError, TimeoutError):
        return Finding(Level.WARN, what, f"{seen}; no reverse DNS", "Have a PTR record made; large receivers insist.")
    if name.lower().rstrip(".") != ehlo.lower().rstrip("."):
        return Finding(Level.WARN, what, f"{seen}; reverse DNS says {name}", "Make EHLO name and PTR record agree.")
    return Finding(Level.OK, what, f"{seen}; reverse DNS agrees")


async def outbound(host: str, port: int, ip: str | None) -> Finding:
    """Connect to a mail server from `ip` and read its greeting; nothing is sent but QUIT."""
    what = f"connect {host} from {ip or 'any address'}"
    local = (ip, 0) if ip else None
    try:
        name, given = split_endpoint(host)
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(name, given or port, local_addr=local, limit=MAX_LINE)
            try:
                greeting = await reader.readline()
                writer.write(b"QUIT\r\n")
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError) as trouble:
        advice = "Providers often block outgoing port 25; ask them, or use a smarthost."
        return Finding(Level.FAIL, what, _reason(trouble), advice)
    said = printable(greeting.rstrip(b"\r\n"))
    if not greeting.startswith(b"220"):
        return Finding(Level.FAIL, what, f"answers {said!r}", "It refuses this address, or is no mail server.")
    return Finding(Level.OK, what, said)


async def webhooks(config: Config) -> list[Finding]:
    """Look at the endpoints of webhooks; their addresses are told by host alone, the rest may be a secret."""
    endpoints = config.webhooks.endpoints.items()
    return await asyncio.gather(*(_endpoint(f"webhook {name}", endpoint) for name, endpoint in endpoints))


async def _endpoint(what: str, endpoint: EndpointConfig) -> Finding:
    parts = urlsplit(endpoint.url.get_secret_value())
    host = parts.hostname or ""
    if not endpoint.allow_private and (barred := await _barred(what, host, endpoint)):
        return barred
    if not endpoint.secrets:
        advice = "Give it secrets, so that it can tell your events from those of others."
        return Finding(Level.WARN, what, f"{host}: events are not signed", advice)
    if parts.scheme == "http":
        return Finding(Level.WARN, what, f"{host}: events are sent without TLS", "Use an https:// address.")
    return Finding(Level.OK, what, f"{host}: signed, encrypted")


async def _barred(what: str, host: str, endpoint: EndpointConfig) -> Finding | None:
    """Look where an endpoint's name leads; the sender looks again at every socket."""
    try:
        found = await asyncio.wait_for(addresses(endpoint.url.get_secret_value()), PATIENCE)
    except (OSError, ValueError, TimeoutError) as trouble:
        advice = "Nothing is sent until it can be looked up; look at its url, and at the system's resolver."
        return Finding(Level.WARN, what, f"{host} cannot be looked up: {_reason(trouble)}", advice)
    if any(map(public, found)):
        return None
    seen = f"{host} is not a public address" + ("" if found == [host] else f": {', '.join(found)}")
    return Finding(Level.FAIL, what, seen, "Set allow_private = true for it if that is meant; nothing is sent before.")


def _reason(trouble: BaseException) -> str:
    if isinstance(trouble, TimeoutError):
        return "no answer in time"
    return printable(str(trouble).encode()) or type(trouble).__name__
