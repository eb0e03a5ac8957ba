"""A short cache of the targets found by state `dns`: a mailing asks for the same destinations again and again."""

import asyncio
from collections.abc import Sequence
from random import Random
from time import monotonic

from mailq.core.bounded import ENTRY, OBJECT, BoundedDict
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Cause, Delayed, Failure
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Target
from mailq.delivery.policy import Policy
from mailq.delivery.stages import dns
from mailq.ports.host import Resolver

SHARED = 1.0
"""Seconds for which jobs for one domain share its targets, with their order."""

UNANSWERED = 5.0
"""Seconds for which a job is delayed after it waited for the DNS in vain, so that such jobs do not fill memory."""

TARGET = 500
"""Octets of memory for one target."""

Destination = tuple[tuple[str, ...], Sequence[Target]]
"""The site (sorted MX hosts) and the targets in try order."""

_DNS = State.DNS


class Destinations:
    """Looks up the targets of a domain, or, with a port, those of a smarthost."""

    def __init__(self, policy: Policy, resolver: Resolver, rng: Random) -> None:
        self._policy = policy
        self._resolver = resolver
        self._rng = rng
        self._found: BoundedDict[tuple[str, int | None], tuple[float, Destination]] = BoundedDict()

    def known(self, name: str, port: int | None, trail: Trail) -> Destination | None:
        """Return the targets of a destination if they were found within the last second."""
        until_known = self._found.get((name, port))
        if until_known is None or monotonic() >= until_known[0]:
            return None
        trail.spent(_DNS, 0.0)
        return until_known[1]

    async def find(self, name: str, port: int | None, trail: Trail) -> Destination:
        """Return the site and the targets in try order.

        Raises:
            Failure: the destination has no target, or the DNS gives no answer.
            Delayed: the DNS is slow.
        """
        policy = self._policy
        now = monotonic()
        try:
            async with asyncio.timeout(min(policy.dns_timeout, policy.dns_patience)):
                found = await self._look_up(name, port)
        except TimeoutError:
            if policy.dns_patience < policy.dns_timeout:
                # The query goes on, and the delayed job finds its answer in the cache.
                raise Delayed(UNANSWERED, Cause.DNS, "the DNS is slow") from None
            raise Failure(State.DNS, Kind.TIMEOUT) from None
        finally:
            trail.spent(State.DNS, monotonic() - now)
        octets = ENTRY + sum(OBJECT + len(host) for host in found[0]) + TARGET * len(found[1])
        self._found.remember((name, port), (monotonic() + SHARED, found), octets)
        return found

    async def _look_up(self, name: str, port: int | None) -> Destination:
        policy, resolver, rng = self._policy, self._resolver, self._rng
        family, most = policy.family, policy.max_targets
        if port is not None:
            barred = policy.prohibited_for(name, port)
            targets = await dns.host_targets(
                name, port, resolver, rng=rng, family=family, max_targets=most, prohibited=barred
            )
            return await dns.host_site(name, resolver), targets
        targets = await dns.targets(
            name,
            resolver,
            rng=rng,
            port=policy.port,
            family=family,
            max_targets=most,
            overrides=policy.overrides,
            prohibited=policy.prohibited,
        )
        return await dns.site(name, resolver, policy.overrides), targets
