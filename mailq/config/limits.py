"""Tables `[[limits]]`: how much at once and how fast, by source and destination."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from mailq.config.base import Section
from mailq.config.checks import Domain, MxName, PoolName

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _per_second(value: object) -> object:
    """Return "100/m" as events a second."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*([smhd])", value.strip())
    if match is None:
        raise ValueError('is not a rate such as "5/s", "100/m", "2000/h" or "10000/d"')
    return float(match[1]) / _UNITS[match[2]]


Source = Annotated[str, AfterValidator(lambda value: str(ipaddress.ip_address(value)))]
PerSecond = Annotated[float, BeforeValidator(_per_second), Field(gt=0)]


class LimitConfig(Section):
    """Limits for mail from a source to a destination; what is left out cascades from less specific tables."""

    source: Source | None = Field(None, description="Only mail from this source address.")
    pool: PoolName | None = Field(None, description="Only mail from the sources of this pool, counted together.")
    domain: Domain | None = Field(None, description="Only mail to this domain, counted apart.")
    mx: MxName | None = Field(
        None,
        description='Only domains whose MX hosts are under this name, for example "google.com"; counted together. Or a'
        ' network such as "198.51.100.0/24": only mail to its addresses, whatever their names.',
    )
    connections: int | None = Field(None, ge=1, description="Connections at once; idle ones count.")
    connection_rate: PerSecond | None = Field(None, description='New connections, such as "10/s" or "100/m".')
    message_rate: PerSecond | None = Field(None, description='Messages, such as "5/s", "100/m" or "2000/h".')
    burst: int | None = Field(None, ge=1, le=1_000_000, description="How many of a rate may come at once.")
    messages_per_session: int | None = Field(None, ge=1, description="Messages sent over one connection.")
    session_age: float | None = Field(None, gt=0, description="Seconds that a connection is used at most.")
    idle_timeout: float | None = Field(None, ge=0, description="Seconds that an unused connection is kept.")
