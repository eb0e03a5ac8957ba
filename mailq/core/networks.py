"""Networks in CIDR notation, and which of them an address is in. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network


class Networks:
    """Some networks; an IPv4-mapped IPv6 address is looked for as the IPv4 address that it stands for.

    Raises:
        ValueError: a text is no network.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._networks = tuple(ip_network(text) for text in texts)
        self.holding = lru_cache(maxsize=10_000)(self._holding)  # the same addresses come again and again

    def _holding(self, ip: str) -> str | None:
        """Return the first network that an address is in, None if it is in none."""
        address = ip_address(ip)
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return next((str(network) for network in self._networks if address in network), None)


NO_NETWORKS = Networks()
