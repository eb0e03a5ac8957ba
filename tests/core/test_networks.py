"""Which network an address is in: both families, mapped addresses, the borders."""

import pytest

from mailq.config.dns import DnsConfig
from mailq.core.networks import NO_NETWORKS, Networks

DEFAULTS = Networks(DnsConfig().prohibited)


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("127.255.255.255", "127.0.0.0/8"),
        ("126.255.255.255", None),
        ("128.0.0.0", None),
        ("0.0.0.0", "0.0.0.0/8"),
        ("0.255.255.255", "0.0.0.0/8"),
        ("1.0.0.0", None),
        ("::1", "::1/128"),
        ("::", "::/128"),
        ("::2", None),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("::ffff:7f00:1", "127.0.0.0/8"),
        ("::ffff:0:0", "0.0.0.0/8"),
        ("::ffff:192.0.2.1", None),
        ("2002:7f00:1::1", "127.0.0.0/8"),
        ("2002:c000:201::7f00:1", None),
        ("64:ff9b::127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b::192.0.2.1", None),
        ("64:ff9c::127.0.0.1", None),
        ("10.0.0.1", None),
        ("2001:db8::1", None),
    ],
)
def test_loopback_and_this_host_are_prohibited(ip, network):
    assert DEFAULTS.holding(ip) == network
    assert NO_NETWORKS.holding(ip) is None


def test_a_translated_address_is_prohibited_by_what_it_is_and_by_what_it_leads_to():
    assert Networks(["10.0.0.0/8"]).holding("64:ff9b::a00:1") == "10.0.0.0/8"
    assert Networks(["64:ff9b::/96"]).holding("64:ff9b::c000:201") == "64:ff9b::/96"
    assert Networks(["2002::/16"]).holding("2002:c000:201::1") == "2002::/16"


def test_of_networks_in_each_other_the_first_is_told():
    assert Networks(["10.0.0.0/8", "10.1.0.0/16"]).holding("10.1.0.1") == "10.0.0.0/8"
    assert Networks(["10.0.0.1"]).holding("10.0.0.1") == "10.0.0.1/32"
