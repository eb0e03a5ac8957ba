"""The operator's decisions about deliveries, as one value for the flow (which never sees a file)."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mailq.core.content.conformance import MENDED, MessageRules
from mailq.core.jobs.job import Smarthost
from mailq.core.networks import NO_NETWORKS, Networks, numeric
from mailq.core.smtp.trust import Trust
from mailq.core.traffic.routes import Login, Tls

IMPLICIT_TLS_PORT = 465
"""Submission over TLS from the first octet (RFC 8314 section 3.3)."""


Verify = Literal["remote", "always", "never"]
"""Servers that must prove their identity before a login: all but those named as this host, all, or none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The tables `delivery`, `message`, `tls` and `smarthost`, and the policy part of `dns`; times in seconds.

    A job that has waited for the DNS for `dns_patience` is delayed, unless that is not less than `dns_timeout`.
    `smarthost` takes all mail; `fallback` takes the mail that no MX target of the recipient took.
    """

    port: int = 25
    family: Literal["any", "ipv4", "ipv6"] = "any"
    max_targets: int = 5
    max_message_size: int = 50 * 1024 * 1024
    retries: tuple[int, ...] = (600, 600, 1800, 1800, 3600, 3600, 7200)
    retry_jitter: float = 0.0
    max_deliver_time: int = 86_400
    max_attempts: int = 0
    on_doubt: str = "retry"
    doubt_attempts: int = 3
    greylist_retry: int = 300
    hint_min: int = 60
    hint_max: int = 7200
    attempt_timeout: float = 1500
    dns_timeout: float = 60
    dns_patience: float = 60
    tls: Tls = Tls.OPPORTUNISTIC
    retry_plaintext: bool = True
    plaintext_auth: bool = False
    verify: Verify = "remote"
    fingerprints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    smarthost: Smarthost | None = None
    fallback: Smarthost | None = None
    message: MessageRules = MENDED
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prohibited: Networks = NO_NETWORKS

    def prohibited_for(self, host: str, port: int) -> Networks:
        """Return the networks prohibited for a smarthost; the operator's own smarthost may be anywhere."""
        own = [(server.hostname, server.port) for server in (self.smarthost, self.fallback) if server]
        return NO_NETWORKS if (host, port) in own else self.prohibited

    def login(self, smarthost: Smarthost | None) -> Login | None:
        """Return the login for a smarthost; None without a user name."""
        if smarthost is None or smarthost.username is None:
            return None
        return Login(smarthost.username, smarthost.password or "", plaintext=self.plaintext_auth)

    def trust(self, smarthost: Smarthost | None) -> Trust | None:
        """Return the proof that a smarthost must give before a login; None if no proof is required.

        A password that may travel without TLS needs no proof: an attacker with a wrong certificate could strip TLS too.
        """
        if smarthost is None or smarthost.username is None or self.plaintext_auth or self.verify == "never":
            return None
        host = smarthost.hostname.lower().rstrip(".")
        if self.verify == "remote" and _names_this_host(host):
            return None
        return Trust(self.fingerprints.get(host, ()))

    def tls_towards(self, smarthost: Smarthost | None) -> Tls:
        """Return the TLS mode towards a smarthost: a password never travels without TLS unless allowed."""
        if smarthost is None:
            return self.tls
        if smarthost.port == IMPLICIT_TLS_PORT:
            return Tls.IMPLICIT
        if smarthost.username is not None and not self.plaintext_auth:
            return Tls.REQUIRED
        return self.tls


def _names_this_host(name: str) -> bool:
    """Return whether a host is a loopback address or `localhost`; the DNS has no say in that."""
    if name == "localhost":
        return True
    ip = numeric(name.strip("[]"))
    return ip is not None and ipaddress.ip_address(ip).is_loopback
