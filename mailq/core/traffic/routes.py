"""Where to connect, and from where. Pure."""

from dataclasses import dataclass, field
from typing import Literal

from mailq.core.smtp.trust import Trust
from mailq.core.states import Word

Family = Literal["any", "ipv4", "ipv6"]
"""The address families to connect to."""

MAX_HOSTS = 100
"""MX records of a domain that are looked at, the preferred ones."""


@dataclass(frozen=True, slots=True)
class Target:
    """One IP address and port of one MX host; `host` is the name in DNS."""

    host: str
    ip: str
    port: int

    @property
    def ipv6(self) -> bool:
        """Tell whether the address is IPv6."""
        return ":" in self.ip


@dataclass(frozen=True, slots=True)
class Source:
    """A local IP to send from with its EHLO name and pool; `ip` None leaves the choice to the system."""

    ip: str | None
    ehlo: str
    pool: str | None = None

    def reaches(self, target: Target) -> bool:
        """Tell whether source and target are of one address family."""
        return self.ip is None or (":" in self.ip) == (":" in target.ip)


class Tls(Word):
    """What is asked of STARTTLS: when offered, never without, never, or TLS before the greeting."""

    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"
    NONE = "none"
    IMPLICIT = "implicit"


@dataclass(frozen=True, slots=True)
class Login:
    """Who to log in as at a smarthost; `plaintext` allows the password without TLS.

    `refused` are mechanisms that the server does not take from this user; sessions do not differ in them.
    """

    username: str
    password: str = field(repr=False)
    plaintext: bool = False
    refused: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where, how secured and as whom: everything that shapes a session.

    `sharing` names who shares its sessions, since their limits are the same ones (see `limits.Allowance`).
    `falls_back` tells that mail goes without TLS where opportunistic TLS does not come about. `trust` is the proof
    that the server gives before a login; None asks for none.
    """

    source: Source
    target: Target
    tls: Tls
    login: Login | None = None
    sharing: str = ""
    falls_back: bool = False
    trust: Trust | None = None
    ends: tuple[str | None, str, int] = field(init=False, repr=False, compare=False)
    """Source and target as the network knows them."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make once what is looked up several times for each message."""
        object.__setattr__(self, "ends", (self.source.ip, self.target.ip, self.target.port))
        object.__setattr__(
            self, "_hash", hash((self.source, self.target, self.tls, self.login, self.sharing, self.trust))
        )

    def __hash__(self) -> int:
        """Return the hash of all that is compared."""
        return self._hash
