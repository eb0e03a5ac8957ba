"""The local addresses that mail may be sent from, and whether this host has them."""

import ipaddress
import socket
from collections.abc import Sequence
from time import monotonic

from mailq.config.delivery import SourceConfig
from mailq.core.traffic.routes import Source

REMEMBERED = 30.0
"""Seconds for which it is remembered whether an address exists: addresses move between hosts."""


class HostSources:
    """Configured and job-given source addresses (see `ports.Sources`)."""

    def __init__(self, configured: Sequence[SourceConfig], ehlo: str) -> None:
        name = ehlo or socket.getfqdn()
        self._configured = {
            ip: Source(ip, source.ehlo or name, source.pool) for source in configured for ip in (_canonical(source.ip),)
        }
        self.pools = frozenset(source.pool for source in configured if source.pool)
        self._default = Source(None, name)
        self._seen: dict[str, tuple[float, bool]] = {}

    def usable(self, ips: Sequence[str] | None, pool: str | None) -> Sequence[Source]:
        """Return the sources for a job's `ips` (None: the configured ones) and `pool` that exist on the host."""
        if ips is None and not self._configured:
            return (self._default,)
        addresses = self._configured if ips is None else dict.fromkeys(_canonical(ip) for ip in ips)
        candidates = (self._configured.get(ip) or Source(ip, self._default.ehlo) for ip in addresses)
        return tuple(each for each in candidates if pool in (None, each.pool) and each.ip and self._exists(each.ip))

    def _exists(self, ip: str) -> bool:
        now = monotonic()
        checked, answer = self._seen.get(ip, (-REMEMBERED, False))
        if now - checked >= REMEMBERED:
            if len(self._seen) > 10_000:  # job-given addresses are strangers' input
                self._seen.clear()
            answer = exists(ip)
            self._seen[ip] = (now, answer)
        return answer


def exists(ip: str) -> bool:
    """Tell whether `ip` is an address of this host that can be sent from.

    A socket can be bound to more than that: to multicast and broadcast addresses, and to any where
    net.ipv4.ip_nonlocal_bind is set. So the socket is connected to the same address as well: the kernel then looks for
    a route from it. Nothing is sent.
    """
    address = ipaddress.ip_address(ip)
    if address.is_multicast or address.is_unspecified:
        return False
    try:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
            probe.connect((ip, 9))
            return bool(probe.getsockname()[0] == ip)
    except OSError:
        return False


def _canonical(ip: str) -> str:
    """Return an address as the kernel writes it; one mapped into IPv6 is the IPv4 address that it stands for."""
    address = ipaddress.ip_address(ip)
    return str((address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address)
