"""State `dns`: the addresses to connect to for a domain, in try order.

MX hosts are tried by preference, and equal ones are shuffled (RFC 5321 section 5.1). A domain without MX is its own
host, and a domain with a null MX takes no mail (RFC 7505). The module also handles address literals, the operator's
overrides and smarthosts. Strangers control the DNS of their domains, so mailq does not connect to their addresses in
`prohibited` networks. An attempt tries at most `max_targets` addresses, shared between hosts and address families, so
that a dead one does not use them up. The resolver asks and caches; the caller keeps the timeout.
"""

import asyncio
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from random import Random
from types import MappingProxyType

from mailq.core.jobs.address import AddressError, ascii_domain
from mailq.core.networks import NO_NETWORKS, Networks, numeric
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import printable
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import MAX_HOSTS, Family, Target
from mailq.ports.host import Resolver

SLICE = 20
"""Number of hosts looked up at once if the preferred ones have no address."""

_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")

NO_OVERRIDES: Mapping[str, Sequence[str]] = MappingProxyType({})

UNROUTABLE = "5.4.4"
"""Enhanced status of a domain without an address to connect to (RFC 3463: unable to route)."""

_ADDRESS = {"any": "address", "ipv4": "IPv4 address", "ipv6": "IPv6 address"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host name or IP address with the port to connect to."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """The wanted number of targets, their family, the prohibited networks, and the random generator."""

    family: Family
    limit: int
    rng: Random
    prohibited: Networks = NO_NETWORKS

    def takes(self, ip: str) -> bool:
        """Return whether an address can be a mail server, is not prohibited and of a wanted family."""
        return _reachable(ip) and self.prohibited.holding(ip) is None and self.wants(ip)

    def wants(self, ip: str) -> bool:
        """Return whether an address is of a wanted family."""
        return self.family == "any" or (self.family == "ipv6") == (":" in ip)


async def targets(
    domain: str,
    resolver: Resolver,
    *,
    rng: Random,
    port: int,
    family: Family = "any",
    max_targets: int = 5,
    overrides: Mapping[str, Sequence[str]] = NO_OVERRIDES,
    prohibited: Networks = NO_NETWORKS,
) -> tuple[Target, ...]:
    """Return the targets for mail to `domain` in try order: at least one, at most `max_targets`.

    `domain` is in lower-case A-labels, or an address literal in brackets. `overrides` are targets by domain; `*` stands
    for all others and for literals too. An empty list means the targets of the DNS. Targets of overrides may be in
    `prohibited` networks; address literals may not.

    Raises:
        Failure: in state dns; permanent for NXDOMAIN (550 5.1.2), null MX (556 5.1.10) and no address that
            is not prohibited (550 5.4.4), transient (451 4.4.3) for other failures of the DNS or of an override.
    """
    fixed = override(domain, overrides)
    choice = _Choice(family, max_targets, rng, NO_NETWORKS if fixed else prohibited)
    if fixed:
        return await _configured(f"override for {domain}", fixed, port, resolver, choice)
    literal, all_known = _unbracketed(domain), True
    if literal != domain:
        hosts, lack = [literal], f"{domain} is not an address to deliver to"
    else:
        hosts, all_known = await _mx_hosts(domain, resolver, rng)
        lack = f"none of the MX hosts of {domain} has an {_ADDRESS[family]} to connect to"
    if not hosts:
        hosts, lack = [domain], f"{domain} has neither MX hosts nor an {_ADDRESS[family]} to connect to"
    found, problem = await _find([Endpoint(host, port) for host in hosts], resolver, choice)
    if found:
        return found
    why = f"{lack}: {problem.text}" if problem else lack
    if problem and not problem.permanent:
        raise Failure(State.DNS, problem.kind, why)
    if not all_known:  # another MX host may have one, or its operator may correct the domain
        raise Failure(State.DNS, Kind.ERROR, f"{why}; it has more MX hosts than {MAX_HOSTS}")
    raise Failure(State.DNS, Kind.ERROR, why, code=550, status=UNROUTABLE)


def override(domain: str, overrides: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the targets that the operator has configured for a domain; empty means the targets of the DNS."""
    return overrides.get(domain, overrides.get("*", ()))


async def site(
    domain: str, resolver: Resolver, overrides: Mapping[str, Sequence[str]] = NO_OVERRIDES
) -> tuple[str, ...]:
    """Return the set of MX hosts that serve `domain`, sorted: domains with the same one are one site.

    The site of an address literal is its address, as for a smarthost given by address.

    Raises:
        Failure: in state dns, as from `targets`.
    """
    fixed = override(domain, overrides)
    if fixed:
        return tuple(sorted(fixed))
    literal = _unbracketed(domain)
    hosts = () if literal != domain else await resolver.mx(domain)
    return tuple(sorted({host for _, host in hosts})) or (literal,)


async def host_targets(
    host: str,
    port: int,
    resolver: Resolver,
    *,
    rng: Random,
    family: Family = "any",
    max_targets: int = 5,
    prohibited: Networks = NO_NETWORKS,
) -> tuple[Target, ...]:
    """Return the targets of one configured host (name, IP address or literal), without its MX records.

    Addresses that the DNS gives for a name may not be in `prohibited` networks; a configured address may.

    Raises:
        Failure: always transient (451 4.4.3), for the recipient has no part in it.
    """
    name = _unbracketed(host)
    choice = _Choice(family, max_targets, rng, prohibited if numeric(name) is None else NO_NETWORKS)
    return await _reach(f"host {printable(host.encode())}", [Endpoint(name, port)], resolver, choice)


async def host_site(host: str, resolver: Resolver) -> tuple[str, ...]:
    """Return the site of one configured host: its address, or the name to which its CNAME records lead."""
    name = _unbracketed(host)
    return (name if numeric(name) is not None else await resolver.canonical(name),)


@lru_cache(maxsize=10_000)
def parse_endpoint(text: str, port: int) -> Endpoint:
    """Return the endpoint written as `host`, `host:port`, `ip`, `ip:port` or `[v6]:port`; `port` if none is.

    Raises:
        ValueError: `text` has none of these forms; the message contains it.
    """
    match = _ENDPOINT.fullmatch(text)
    host, number = (match["v6"] or match["name"], int(match["port"] or port)) if match else (text, port)
    try:
        name = numeric(host) or ascii_domain(host)
    except AddressError:
        name = ""
    bracketed_name = text.startswith("[") and ":" not in name
    if not name or bracketed_name or not 0 < number < 65536:
        raise ValueError(f"{text!r} is not of the form host, host:port, ip, ip:port or [v6]:port")
    return Endpoint(name, number)


async def _mx_hosts(domain: str, resolver: Resolver, rng: Random) -> tuple[list[str], bool]:
    """Return the MX hosts in try order, empty if the domain has none, and whether the list is complete.

    Raises:
        Failure: the domain has a null MX, or the DNS gives no answer.
    """
    records = await resolver.mx(domain)
    ordered = sorted(records, key=lambda record: (record[0], rng.random()))
    hosts = list(dict.fromkeys(host for _, host in ordered if host != "."))
    if records and not hosts:
        raise Failure(State.DNS, Kind.ERROR, f"{domain} takes no mail (null MX)", code=556, status="5.1.10")
    return hosts, len(records) < MAX_HOSTS


async def _configured(
    what: str, entries: Sequence[str], port: int, resolver: Resolver, choice: _Choice
) -> tuple[Target, ...]:
    try:
        endpoints = [parse_endpoint(entry, port) for entry in entries]
    except ValueError as error:
        raise Failure(State.DNS, Kind.ERROR, f"{what}: {error}") from None
    return await _reach(what, endpoints, resolver, choice)


async def _reach(what: str, endpoints: Sequence[Endpoint], resolver: Resolver, choice: _Choice) -> tuple[Target, ...]:
    """Return the targets of configured endpoints; a failure to find one is transient."""
    found, problem = await _find(endpoints, resolver, choice)
    if found:
        return found
    kind, text = (problem.kind, problem.text) if problem else (Kind.ERROR, f"has no {_ADDRESS[choice.family]}")
    raise Failure(State.DNS, kind, f"{what}: {text}")


async def _find(
    endpoints: Sequence[Endpoint], resolver: Resolver, choice: _Choice
) -> tuple[tuple[Target, ...], Failure | None]:
    """Return the targets and the worst failure: a transient one before a prohibition before the rest.

    Hosts are looked up together, but no more of them than needed. Each host fills at least one place, and a second host
    is wanted even if the first one fills all. While no host has an address, more hosts are looked up at once.
    """
    hosts: list[list[Target]] = []
    seen: set[tuple[str, int]] = set()
    problem: Failure | None = None
    waiting = endpoints
    while waiting and (len(seen) < choice.limit or len(hosts) < min(2, choice.limit)):
        size = SLICE if not seen and len(waiting) < len(endpoints) else max(1, choice.limit - len(seen))
        batch, waiting = waiting[:size], waiting[size:]
        for endpoint, answer in zip(batch, await _look_up(batch, resolver, choice), strict=True):
            if isinstance(answer, Failure):
                problem = min(problem or answer, answer, key=_rank)
                continue
            fresh = [ip for ip in dict.fromkeys(answer) if (ip, endpoint.port) not in seen]
            if fresh:
                seen.update((ip, endpoint.port) for ip in fresh)
                hosts.append([Target(endpoint.host, ip, endpoint.port) for ip in fresh])
    return _share(hosts, choice), problem


def _rank(problem: Failure) -> tuple[bool, bool]:
    """Return the sort key of failures; the failure with the least key is reported."""
    return problem.permanent, problem.status != UNROUTABLE


async def _look_up(
    endpoints: Sequence[Endpoint], resolver: Resolver, choice: _Choice
) -> Sequence[Sequence[str] | Failure]:
    if len(endpoints) == 1:  # the usual case: a task costs more than an answer from the cache
        return [await _addresses(endpoints[0].host, resolver, choice)]
    return await asyncio.gather(*(_addresses(endpoint.host, resolver, choice) for endpoint in endpoints))


async def _addresses(host: str, resolver: Resolver, choice: _Choice) -> Sequence[str] | Failure:
    """Return the usable addresses of a host, or a failure; the look-ups of other hosts must go on."""
    ip = numeric(host)
    try:
        found = [ip] if ip is not None else await resolver.addresses(host)
    except Failure as failure:
        return failure
    return [each for each in found if choice.takes(each)] or _prohibition(host, found, choice) or ()


def _prohibition(host: str, ips: Sequence[str], choice: _Choice) -> Failure | None:
    """Return the failure of a host that has a prohibited address of a wanted family."""
    for ip in filter(choice.wants, ips):
        if network := choice.prohibited.holding(ip):
            what = ip if numeric(host) else f"{host} ({ip})"
            why = f"{what} is in {network} of dns.prohibited"
            return Failure(State.DNS, Kind.ERROR, why, code=550, status=UNROUTABLE)
    return None


def _share(hosts: Sequence[Sequence[Target]], choice: _Choice) -> tuple[Target, ...]:
    """Return at most `limit` targets, hosts in order; up to half of the places are kept for hosts after the first."""
    chosen: list[Target] = []
    for place, host in enumerate(hosts):
        room = choice.limit - len(chosen)
        if place == 0:
            room -= min(choice.limit // 2, sum(len(other) for other in hosts[1:]))
        ipv6_next = not (chosen and chosen[-1].ipv6)
        chosen += _alternate(host, choice.rng, ipv6_first=ipv6_next)[:room]
    return tuple(chosen)


def _alternate(host: Sequence[Target], rng: Random, *, ipv6_first: bool) -> list[Target]:
    """Return the targets of one host, its families in turn, each shuffled to spread the load."""
    families: list[list[Target]] = [[], []]
    for target in rng.sample(host, len(host)):
        families[target.ipv6 != ipv6_first].append(target)
    return [target for pair in zip_longest(*families) for target in pair if target is not None]


@lru_cache(maxsize=10_000)
def _reachable(ip: str) -> bool:
    """Return whether an address can be a mail server (0.0.0.0, for example, would be this host)."""
    address = ipaddress.ip_address(ip)
    mapped = address.version == 6 and address.ipv4_mapped is not None
    return not (address.is_unspecified or address.is_multicast or address.is_link_local or mapped)


def _unbracketed(text: str) -> str:
    """Return the address in an address literal (RFC 5321 section 4.1.3), or the text itself."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    return text[1:-1].removeprefix("IPv6:")
