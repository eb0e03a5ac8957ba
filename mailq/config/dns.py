"""Table `dns`: resolving."""

from typing import Self

from pydantic import Field, model_validator

from mailq.config.base import Section
from mailq.config.checks import Destination, Endpoint, NameServer, Network


class DnsConfig(Section):
    """The resolver and its cache."""

    servers: tuple[NameServer, ...] = Field(
        (), description='Name servers as "ip" or "ip:port" ("[v6]:port"); empty: those of the system.'
    )
    timeout: float = Field(5, gt=0, description="Seconds until a name server counts as silent.")
    lifetime: float = Field(20, gt=0, description="Seconds for one question over all servers and attempts.")
    cache_size: int = Field(50_000, ge=0, description="Answers kept in memory at most.")
    cache_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="Octets of memory that these answers take at most.")
    min_ttl: int = Field(5, ge=0, description="Seconds that an answer is kept at least.")
    max_ttl: int = Field(86_400, ge=1, description="Seconds that an answer is kept at most.")
    trouble_ttl: int = Field(10, ge=0, description="Seconds that SERVFAIL and silence are remembered.")
    overrides: dict[Destination, tuple[Endpoint, ...]] = Field(
        default_factory=dict,
        description='Fixed targets by domain instead of DNS: {"internal.example" = ["192.0.2.1", "host:2525"]};'
        ' "*" is for every domain without one of its own.',
    )

    prohibited: tuple[Network, ...] = Field(
        ("127.0.0.0/8", "0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::1/128", "::/128", "ff00::/8"),
        description="Networks that are not connected to where the DNS or an address literal leads there: a recipient's"
        " domain could have mail sent to services of this host. Add private networks (10.0.0.0/8, 172.16.0.0/12,"
        " 192.168.0.0/16, fd00::/8) and addresses of this host, unless mail goes there by the DNS; [] prohibits"
        " nothing. Overrides, the smarthost, and a job's smarthost given by address may be anywhere.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_ttl > self.max_ttl:
            raise ValueError("min_ttl is greater than max_ttl")
        return self
