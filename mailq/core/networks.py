"""Networks in CIDR notation, and which of them an address is in. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_NAT64 = IPv6Network("64:ff9b::/96")
"""What a translator makes IPv4 of: the last 32 bits (RFC 6052 section 2.1)."""


class Networks:
    """Some networks; an IPv6 address that leads to an IPv4 address is looked for as both.

    Raises:
        ValueError: a text is no network.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._networks = tuple(ip_network(text) for text in texts)
        self.holding = lru_cache(maxsize=10_000)(self._holding)  # the same addresses come again and again

    def _holding(self, ip: str) -> str | None:
        """Return the first network that an address is in, None if it is in none."""
        address = ip_address(ip)
        forms = address, _led_to(address)
        return next((str(each) for each in self._networks if any(form in each for form in forms)), None)


def _led_to(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return where an address leads: mapped (RFC 4291 section 2.5.5.2), by 6to4 (RFC 3056) or by NAT64."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


@lru_cache(maxsize=10_000)
def numeric(text: str) -> str | None:
    """Return the text as an IP address in its usual form, None if it is a name."""
    if (":" not in text and not text[-1:].isdigit()) or "%" in text:  # a scope may hold any character
        return None
    try:
        return str(ip_address(text))
    except ValueError:
        return None


NO_NETWORKS = Networks()
