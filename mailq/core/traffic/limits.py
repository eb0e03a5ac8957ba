"""How much at once and how fast, for whom: limits by source and destination, field by field. Pure.

A rule applies to what it names: a source, a domain, the MX hosts under a suffix (a provider), the addresses of a
network, or everything. Rules cascade: for each field the most specific rule that sets it decides, so that a rule
for one provider needs to say only what differs. What is counted is counted under a key: one site
(a set of MX hosts) shared by all its domains, or one provider or one domain where the deciding rule
names it; for one source, or for all sources of a pool together where the deciding rule names the pool.
A long site stands in keys as a digest, since strangers decide how long it is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from mailq.core.networks import Networks
from mailq.core.traffic.rate import Rate
from mailq.core.traffic.routes import Target

_NETWORK = 1000
"""More than the length of any name."""

LONGEST_SITE = 100
"""Characters of a site that stand in a key as they are."""


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One table of `limits`; None leaves a field to less specific rules. Times in seconds, rates per second."""

    source: str | None = None
    pool: str | None = None
    domain: str | None = None
    mx: str | None = None
    connections: int | None = None
    connection_rate: float | None = None
    message_rate: float | None = None
    burst: int | None = None
    messages_per_session: int | None = None
    session_age: float | None = None
    idle_timeout: float | None = None

    @property
    def network(self) -> Networks | None:
        """The network that `mx` names, None if it names hosts."""
        return None if self.mx is None else _network(self.mx)

    def applies(self, source: str, pool: str | None, domain: str, hosts: Sequence[str], ip: str) -> bool:
        """Tell whether the rule is for mail from `source` (of `pool`) to `domain` at `ip`, whose hosts are `hosts`."""
        return (
            self.source in (None, source)
            and self.pool in (None, pool)
            and self.domain in (None, domain)
            and (self.mx is None or self._names(hosts, ip))
        )

    def _names(self, hosts: Sequence[str], ip: str) -> bool:
        network = self.network
        if network is not None:
            return bool(ip) and network.holding(ip) is not None
        return any(under(host, self.mx or "") for host in hosts)

    @property
    def specificity(self) -> tuple[bool, int, bool, bool]:
        """Order of precedence: a domain, a network, a provider (the longer name first), a source, a pool."""
        length = len(self.mx or "")
        if self.mx is not None and self.network is not None:
            length = _NETWORK + int(self.mx.partition("/")[2] or _NETWORK)
        return (self.domain is not None, length, self.source is not None, self.pool is not None)


DEFAULTS = LimitRule(connections=20, burst=1, messages_per_session=100, session_age=300.0, idle_timeout=5.0)
"""What holds where no rule says otherwise; no rate is limited."""

_OF_SESSIONS = frozenset({"connections", "messages_per_session", "session_age", "idle_timeout"})


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate or number with the key under which it is counted."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one source may do towards one destination; rates are None where none is limited.

    `sharing` names who shares sessions: a site, a provider or a domain alone, as the rules about sessions are for.
    """

    connections: int
    connections_key: str
    connection_rate: Rate | None
    connection_rate_key: str
    message_rate: Rate | None
    message_rate_key: str
    messages_per_session: int
    session_age: float
    idle_timeout: float
    sharing: str = ""


def allowance(
    rules: Sequence[LimitRule],
    source: str,
    domain: str,
    hosts: Sequence[str],
    pool: str | None = None,
    target: Target | None = None,
) -> Allowance:
    """Return what the rules allow for mail from `source` (of `pool`) to `domain`, which is served by `hosts`.

    `target` is the one of them to connect to. Where it has another name, as an alias has, rules for either apply.
    """
    names, ip = ([*hosts, target.host], target.ip) if target else (hosts, "")
    site = ",".join(sorted(hosts))
    if len(site) > LONGEST_SITE:
        site = f"#{hashlib.blake2b(site.encode(), digest_size=16).hexdigest()}"
    fitting = (rule for rule in rules if rule.applies(source, pool, domain, names, ip))
    ranked = sorted(fitting, key=lambda rule: rule.specificity, reverse=True)
    decided: dict[str, Limit] = {}
    sharing: dict[str, None] = {}
    for field in fields(LimitRule)[4:]:
        rule = next((rule for rule in ranked if getattr(rule, field.name) is not None), DEFAULTS)
        place = f"@{domain}" if rule.domain else f"*.{rule.mx}" if rule.mx else site
        if field.name in _OF_SESSIONS:
            sharing[place] = None
        who = f"@{pool}" if rule.pool and rule.source is None else source
        decided[field.name] = Limit(f"{field.name}|{who}|{place}", getattr(rule, field.name))
    burst = decided["burst"].value
    return Allowance(
        connections=decided["connections"].value,
        connections_key=decided["connections"].key,
        connection_rate=_rate(decided["connection_rate"].value, burst),
        connection_rate_key=decided["connection_rate"].key,
        message_rate=_rate(decided["message_rate"].value, burst),
        message_rate_key=decided["message_rate"].key,
        messages_per_session=decided["messages_per_session"].value,
        session_age=decided["session_age"].value,
        idle_timeout=decided["idle_timeout"].value,
        sharing=" ".join(sharing),
    )


def under(host: str, suffix: str) -> bool:
    """Tell whether a host, which may have a port as overrides do, is the named one or below it."""
    name, _, _ = host.partition(":")
    return name == suffix or name.endswith(f".{suffix}")


@lru_cache(maxsize=1000)
def _network(mx: str) -> Networks | None:
    """Return the network written in a rule; a host's name is none."""
    try:
        return Networks((mx,))
    except ValueError:
        return None


def _rate(per_second: float | None, burst: int) -> Rate | None:
    return Rate(per_second, burst) if per_second else None
