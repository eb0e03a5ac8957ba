"""The host: clock, local addresses, resolver, and the exceptions that end work on purpose."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from mailq.core.traffic.routes import Source

Now = Callable[[], datetime]
"""Returns the current moment in UTC."""


STOPS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""The exceptions that end work on purpose. Every other BaseException is a bug: a Rust library's panic is one."""


class Resolver(Protocol):
    """Answers from the DNS, cached. Failures are `core.smtp.failure.Failure` in state dns.

    NXDOMAIN has a permanent code, SERVFAIL and timeouts a transient one.
    """

    async def mx(self, domain: str) -> Sequence[tuple[int, str]]:
        """Return the MX records as (preference, host); empty if the name exists without any."""

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the IP addresses of a host, IPv6 first; empty if the name exists without any."""

    async def canonical(self, host: str) -> str:
        """Return the name to which a host's CNAME records lead; the host itself without any."""


class Sources(Protocol):
    """The local addresses that mail may be sent from."""

    @property
    def pools(self) -> frozenset[str]:
        """The names of the configured pools."""

    def usable(self, ips: Sequence[str] | None, pool: str | None) -> Sequence[Source]:
        """Return the sources for a job's `ips` (None: the configured ones) and `pool` that exist on the host."""
