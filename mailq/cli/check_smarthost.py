"""The findings of `mailq check` about the smarthost: it connects, encrypts, verifies and logs in as the worker does.

No mail is sent. What a certificate and a login have to be is decided where the worker decides it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random

from mailq.cli.finding import Finding, Level
from mailq.config import Config
from mailq.core.results.result import Trail, failed
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import printable
from mailq.core.states import AUTH_STATES, State
from mailq.core.traffic.routes import Route
from mailq.delivery.smtp.auth import Unfinished
from mailq.delivery.smtp.session import Session
from mailq.delivery.stages.bind import choose
from mailq.delivery.stages.dns import host_targets, parse_endpoint
from mailq.edges.resolver import DnsResolver
from mailq.edges.sources import HostSources
from mailq.edges.tls import Security
from mailq.edges.wire import TcpDialer
from mailq.service.build import policy_of, timeouts_of

PATIENCE = 10.0
"""Seconds to wait in each state."""

_ADVICE = {
    State.DNS: "Look at smarthost.hostname and at dns.servers.",
    State.CONNECT: "Look at smarthost.hostname and smarthost.port; providers often block outgoing port 25.",
    State.STARTTLS: "No password is sent before this is set right; jobs wait. See [tls] and [smarthost].",
}
_LOGIN = "Look at smarthost.username and smarthost.password; jobs wait until the login works."


async def smarthost(config: Config) -> list[Finding]:
    """Return the finding about the smarthost; none where none is configured."""
    policy = policy_of(config)
    server = policy.smarthost or policy.fallback
    if server is None:
        return []
    what = f"smarthost {server.hostname}:{server.port}"
    trail = Trail()
    try:
        rng = Random(0)  # noqa: S311 - it shuffles addresses
        resolver = DnsResolver(config.dns)
        targets = await host_targets(server.hostname, server.port, resolver, rng=rng, family=policy.family)
        sources = HostSources(config.sources, config.delivery.ehlo).usable(None, None)
        source = choose(sources, targets[0], rng)
        login, trust = policy.login(server), policy.trust(server)
        route = Route(source, targets[0], policy.tls_towards(server), login, trust=trust)
        facts = await _opened(config, route, trail)
    except Failure as failure:
        told = failed(trail, failure, time=datetime.now(UTC), attempt=1)
        seen = printable(f"{told.state}: {told.code} {told.status} {told.description}".encode(), limit=500)
        advice = _LOGIN if failure.state in AUTH_STATES else _ADVICE.get(failure.state, "")
        return [Finding(Level.FAIL, what, seen, advice)]
    return [_opened_finding(what, facts, server.username)]


async def _opened(config: Config, route: Route, trail: Trail) -> dict[str, object]:
    """Open a session, on another connection where the server ends one over a mechanism; return what was learnt."""
    sink = parse_endpoint(config.delivery.sink, config.delivery.port) if config.delivery.sink else None
    dialer = TcpDialer(Security(config.tls), (sink.host, sink.port) if sink else None)
    clocks = {state: min(seconds, PATIENCE) for state, seconds in timeouts_of(config).items()}
    while True:
        session = Session(dialer.wire(route.target), route, clocks, config.timeouts.quit)
        try:
            await session.open(trail)
        except Unfinished as failure:
            trail.forget_connection()
            route = failure.without_refused(route)
        else:
            await session.quit()
            return trail.facts


def _opened_finding(what: str, facts: Mapping[str, object], username: str | None) -> Finding:
    cipher, certificate = facts.get("cipher"), facts.get("certificate")
    seen = [str(cipher["protocol"]) if isinstance(cipher, dict) else "without TLS"]
    if isinstance(certificate, dict):
        verified = certificate["verified"]
        seen.append("certificate verified" if verified else f"certificate not verified ({certificate['result']})")
    if username is not None:
        seen.append(f"logged in as {username} by {facts['authentication']}")
    return Finding(Level.OK, what, printable(", ".join(seen).encode(), limit=500))
