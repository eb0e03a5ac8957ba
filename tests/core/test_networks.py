"""Which network an address is in: both families, mapped addresses, the borders."""

import pytest

from mailq.config.dns import DnsConfig
from mailq.core.networks import NO_NETWORKS, Networks
from mailq.edges.webhook_client import public

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
        ("::2", "0.0.0.0/8"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("::ffff:7f00:1", "127.0.0.0/8"),
        ("::ffff:0:0", "0.0.0.0/8"),
        ("::ffff:192.0.2.1", None),
        ("2002:7f00:1::1", "127.0.0.0/8"),
        ("2002:c000:201::7f00:1", None),
        ("64:ff9b::127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b::192.0.2.1", None),
        ("64:ff9c::127.0.0.1", None),
        ("64:ff9b::8.8.8.8", None),
        ("::127.0.0.1", "127.0.0.0/8"),
        ("::192.0.2.1", None),
        ("::ffff:0:127.0.0.1", "127.0.0.0/8"),
        ("::ffff:0:192.0.2.1", None),
        ("64:ff9b:1::127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b:1::192.0.2.1", None),
        ("64:ff9b:1:7f00:0:100::", "127.0.0.0/8"),
        ("64:ff9b:1:c000:2:100::", None),
        ("64:ff9b:1:7f:0:1::", "127.0.0.0/8"),
        ("64:ff9b:1:0:7f:0:100::", "127.0.0.0/8"),
        ("64:ff9b:2::127.0.0.1", None),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "127.0.0.0/8"),
        ("2001:0:7f00:1:8000:63bf:3fff:fdd2", "127.0.0.0/8"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", None),
        ("2001:db8::5efe:127.0.0.1", "127.0.0.0/8"),
        ("2001:db8::200:5efe:127.0.0.1", "127.0.0.0/8"),
        ("2001:db8::5efe:192.0.2.1", None),
        ("224.0.0.1", "224.0.0.0/4"),
        ("239.255.255.255", "224.0.0.0/4"),
        ("240.0.0.1", "240.0.0.0/4"),
        ("255.255.255.255", "240.0.0.0/4"),
        ("::ffff:255.255.255.255", "240.0.0.0/4"),
        ("ff02::1", "ff00::/8"),
        ("10.0.0.1", None),
        ("2001:db8::1", None),
    ],
)
def test_what_leads_to_this_host_or_to_nobody_is_prohibited_in_every_spelling(ip, network):
    assert DEFAULTS.holding(ip) == network
    assert NO_NETWORKS.holding(ip) is None


def test_a_translated_address_is_prohibited_by_what_it_is_and_by_what_it_leads_to():
    assert Networks(["10.0.0.0/8"]).holding("64:ff9b::a00:1") == "10.0.0.0/8"
    assert Networks(["64:ff9b::/96"]).holding("64:ff9b::c000:201") == "64:ff9b::/96"
    assert Networks(["2002::/16"]).holding("2002:c000:201::1") == "2002::/16"


def test_of_networks_in_each_other_the_first_is_told():
    assert Networks(["10.0.0.0/8", "10.1.0.0/16"]).holding("10.1.0.1") == "10.0.0.0/8"
    assert Networks(["10.0.0.1"]).holding("10.0.0.1") == "10.0.0.1/32"


@pytest.mark.parametrize(
    "form",
    ["{}", "::{}", "::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "64:ff9b:1::{}", "2001:db8::5efe:{}"],
)
@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "255.255.255.255"])
def test_webhooks_and_mail_find_the_same_address_inside_every_spelling(form, inside):
    address = form.format(inside)
    assert Networks([inside]).holding(address) == f"{inside}/32"
    assert not public(address)
