"""How much at once and how fast, for whom: limits by source and destination, field by field. Pure.

A rule applies to what it names: a source, a domain, the MX hosts under a suffix (a provider), or
everything. Rules cascade: for each field the most specific rule that sets it decides, so that a rule
for one provider needs to say only what differs. What is counted is counted under a key: one site
(a set of MX hosts) shared by all its domains, or one provider or one domain where the deciding rule
names it; for one source, or for all sources of a pool together where the deciding rule names the pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from mailq.core.pace import Rate


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

    def applies(self, source: str, pool: str | None, domain: str, hosts: Sequence[str]) -> bool:
        """Tell whether the rule is for mail from `source` (of `pool`) to `domain`, whose MX hosts are `hosts`."""
        return (
            self.source in (None, source)
            and self.pool in (None, pool)
            and self.domain in (None, domain)
            and (self.mx is None or any(under(host, self.mx) for host in hosts))
        )

    @property
    def specificity(self) -> tuple[bool, int, bool, bool]:
        """Order of precedence: a domain, a provider (the longer name first), a source, a pool."""
        return (self.domain is not None, len(self.mx or ""), self.source is not None, self.pool is not None)


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
    rules: Sequence[LimitRule], source: str, domain: str, hosts: Sequence[str], pool: str | None = None
) -> Allowance:
    """Return what the rules allow for mail from `source` (of `pool`) to `domain`, which is served by `hosts`."""
    site = ",".join(sorted(hosts))
    fitting = (rule for rule in rules if rule.applies(source, pool, domain, hosts))
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


def _rate(per_second: float | None, burst: int) -> Rate | None:
    return Rate(per_second, burst) if per_second else None
