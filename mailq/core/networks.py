"""Networks in CIDR notation, and which of them an address is in. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_LAST_32_BITS = (
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291 section 2.5.5.1)
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped (section 2.5.5.2)
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, of SIIT (RFC 2765 section 2.1)
    IPv6Network("64:ff9b::/96"),  # NAT64 (RFC 6052 section 2.1)
)
"""Networks whose addresses carry an IPv4 address in their last 32 bits."""

_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
"""Prefixes of a network's own translators (RFC 8215), of any length that RFC 6052 section 2.2 knows."""

_TEREDO = IPv6Network("2001::/32")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The beginning of the interface identifier of ISATAP (RFC 5214 section 6.1)."""

_OWN = 2
"""`::` and `::1` are what they are, and carry nothing (RFC 4291 section 2.5)."""


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
        forms = address, *carried(address)
        return next((str(each) for each in self._networks if any(form in each for form in forms)), None)


def carried(address: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries and may lead to: several where its form leaves a choice.

    A packet to it may end at each of them, by a translator, a tunnel or the system's own stack.
    """
    number = int(address)
    if isinstance(address, IPv4Address) or number < _OWN:
        return ()
    if address in _SIX_TO_FOUR:  # RFC 3056 section 2
        return (_bits(number, 16),)
    if address in _TEREDO:  # RFC 4380 section 4: the server, and the client with all bits inverted
        return _bits(~number, 96), _bits(number, 32)
    if address in _LOCAL_NAT64:
        # RFC 6052 section 2.2: bits 64 to 71 are skipped by all but the longest prefix.
        spliced = (number >> 64 << 56) | (number & (1 << 56) - 1)
        forms = [_bits(number, 96), *(_bits(spliced << 8, bit) for bit in (48, 56, 64))]
        likely = tuple(dict.fromkeys(form for form in forms if int(form) >> 24))  # 0.0.0.0/8: no address of that form
        return likely or (forms[0],)
    last = any(address in network for network in _LAST_32_BITS) or (number >> 32) & 0xFFFFFFFF in _ISATAP
    return (_bits(number, 96),) if last else ()


def _bits(number: int, begin: int) -> IPv4Address:
    """Return the IPv4 address that begins at a bit of an IPv6 address, counted from the left."""
    return IPv4Address((number >> (96 - begin)) & 0xFFFFFFFF)


@lru_cache(maxsize=10_000)
def numeric(text: str) -> str | None:
    """Return the text as an IP address in its usual form, None if it is a name."""
    if (":" not in text and not text[-1:].isdigit()) or "%" in text:  # a scope may hold any character
        return None
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def same_address(one: str, other: str | None) -> bool:
    """Tell whether two texts are the same IP address, whatever their spelling."""
    return one == other or (other is not None and numeric(one) is not None and numeric(one) == numeric(other))


NO_NETWORKS = Networks()
