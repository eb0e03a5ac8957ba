"""The policy with the real resolver and a real DNS server: every case of the test zone to its end."""

import asyncio
from random import Random

import pytest

from mailq.config.dns import DnsConfig
from mailq.core.networks import Networks
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind
from mailq.delivery.stages.dns import host_targets, targets
from mailq.edges.resolver import DnsResolver

DEFAULTS = Networks(DnsConfig().prohibited)


@pytest.fixture
def resolver(knot) -> DnsResolver:
    return DnsResolver(DnsConfig(servers=(knot.server,)))


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("a.test", ["mx.a.test 127.0.0.1"]),
        ("twomx.test", ["mx1.twomx.test 127.0.0.2", "mx2.twomx.test 127.0.0.3"]),
        (
            "threemx.test",
            ["mx1.threemx.test 127.0.0.4", "mx2.threemx.test 127.0.0.5", "mx3.threemx.test 127.0.0.1"],
        ),
        ("implicit.test", ["implicit.test 127.0.0.9"]),
        ("partnull.test", ["mx.a.test 127.0.0.1"]),
        ("alias.test", ["mx1.twomx.test 127.0.0.2", "mx2.twomx.test 127.0.0.3"]),
        ("mxalias.test", ["alias.mxalias.test 127.0.0.1"]),
        ("v4.test", ["mx.v4.test 127.0.0.1"]),
        ("v6.test", ["mx.v6.test ::1"]),
        ("dual.test", ["mx.dual.test ::1", "mx.dual.test 127.0.0.1"]),
        ("halfmissing.test", ["mx.a.test 127.0.0.1"]),
        ("numeric.test", ["127.0.0.1 127.0.0.1"]),
        ("xn--bcher-kva.test", ["mx.xn--bcher-kva.test 127.0.0.1"]),
        ("big.test", [f"mx{n:03}.big.test 127.0.1.{n}" for n in range(1, 6)]),
        ("[127.0.0.1]", ["127.0.0.1 127.0.0.1"]),
    ],
)
async def test_targets(resolver, domain, expected):
    found = await targets(domain, resolver, rng=Random(1), port=25)
    assert [f"{target.host} {target.ip}" for target in found] == expected


async def test_equal_preferences_come_in_every_order(resolver):
    orders = {
        tuple(target.ip for target in await targets("equal.test", resolver, rng=Random(seed), port=25))
        for seed in range(100)
    }
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("domain", "code", "status"),
    [
        ("gone.test", 550, "5.1.2"),
        ("nullmx.test", 556, "5.1.10"),
        ("nodata.test", 550, "5.4.4"),
        ("missing.test", 550, "5.4.4"),
        ("unspecified.test", 550, "5.4.4"),
        ("oddhost.test", 550, "5.4.4"),
        ("broken.test", 451, "4.4.3"),
        ("mxbroken.test", 451, "4.4.3"),
        ("halfbroken.test", 451, "4.4.3"),
        ("lame.test", 451, "4.4.3"),
        ("loop.test", 451, "4.4.3"),
        ("elsewhere.example", 451, "4.4.3"),
    ],
)
async def test_failures(resolver, domain, code, status):
    with pytest.raises(Failure) as caught:
        await targets(domain, resolver, rng=Random(1), port=25)
    failure = caught.value
    assert (failure.kind, failure.code, failure.status) == (Kind.ERROR, code, status)
    assert domain in failure.text
    assert failure.text.isprintable()


@pytest.mark.parametrize(
    ("domain", "why"),
    [
        ("a.test", "mx.a.test (127.0.0.1) is in 127.0.0.0/8"),
        ("implicit.test", "implicit.test (127.0.0.9) is in 127.0.0.0/8"),
        ("twomx.test", "mx1.twomx.test (127.0.0.2) is in 127.0.0.0/8"),
        ("mxalias.test", "alias.mxalias.test (127.0.0.1) is in 127.0.0.0/8"),
        ("halfmissing.test", "mx.a.test (127.0.0.1) is in 127.0.0.0/8"),
        ("v6.test", "mx.v6.test (::1) is in ::1/128"),
        ("mapped.test", "mx.mapped.test (::ffff:127.0.0.1) is in 127.0.0.0/8"),
        ("unspecified.test", "mx.unspecified.test (::) is in ::/128"),
        ("numeric.test", "127.0.0.1 is in 127.0.0.0/8"),
        ("[127.0.0.1]", "127.0.0.1 is in 127.0.0.0/8"),
        ("[IPv6:::1]", "::1 is in ::1/128"),
    ],
)
async def test_the_dns_does_not_lead_to_this_host(resolver, domain, why):
    with pytest.raises(Failure) as caught:
        await targets(domain, resolver, rng=Random(1), port=25, prohibited=DEFAULTS)
    failure = caught.value
    assert (failure.kind, failure.code, failure.status) == (Kind.ERROR, 550, "5.4.4")
    assert domain in failure.text
    assert failure.text.endswith(f": {why} of dns.prohibited")


async def test_of_a_host_that_is_also_elsewhere_the_other_addresses_are_used(resolver):
    found = await targets("mixed.test", resolver, rng=Random(1), port=25, prohibited=DEFAULTS)
    assert [f"{target.host} {target.ip}" for target in found] == ["mx.mixed.test 192.0.2.1"]


async def test_while_another_host_is_not_known_yet_a_prohibited_one_ends_nothing(resolver):
    with pytest.raises(Failure) as caught:
        await targets("prohibitedbroken.test", resolver, rng=Random(1), port=25, prohibited=DEFAULTS)
    assert (caught.value.code, caught.value.status) == (451, "4.4.3")


@pytest.mark.parametrize("entry", ["127.0.0.1", "[::1]:2525", "mx.a.test"])
async def test_an_override_may_be_on_this_host(resolver, entry):
    overrides = {"*": [entry]}
    (found,) = await targets("gone.test", resolver, rng=Random(1), port=25, overrides=overrides, prohibited=DEFAULTS)
    assert found.ip in ("127.0.0.1", "::1")


async def test_a_smarthost_may_be_on_this_host_by_address_but_not_by_name(resolver):
    for host in ("127.0.0.1", "[::1]"):
        assert await host_targets(host, 25, resolver, rng=Random(1), prohibited=DEFAULTS)
    with pytest.raises(Failure) as caught:
        await host_targets("mx.a.test", 25, resolver, rng=Random(1), prohibited=DEFAULTS)
    assert (caught.value.code, caught.value.status) == (451, "4.4.3")
    assert caught.value.text == "host mx.a.test: mx.a.test (127.0.0.1) is in 127.0.0.0/8 of dns.prohibited"


async def test_the_other_family_is_no_way_to_a_domain(resolver):
    with pytest.raises(Failure, match=r"none of the MX hosts of v6\.test has an IPv4 address"):
        await targets("v6.test", resolver, rng=Random(1), port=25, family="ipv4")


@pytest.mark.parametrize(
    ("host", "ips"), [("mx.dual.test", ["::1", "127.0.0.1"]), ("alias.mxalias.test", ["127.0.0.1"])]
)
async def test_a_smarthost(resolver, host, ips):
    found = await host_targets(host, 587, resolver, rng=Random(1))
    assert [target.ip for target in found] == ips


@pytest.mark.parametrize("host", ["gone.test", "nodata.test", "broken.test", "twomx.test"])
async def test_a_smarthost_without_an_address_is_tried_again(resolver, host):
    with pytest.raises(Failure) as caught:
        await host_targets(host, 587, resolver, rng=Random(1))
    assert (caught.value.code, caught.value.status) == (451, "4.4.3")


async def test_a_thousand_jobs_for_one_domain_ask_three_questions(dns_relay):
    asked = DnsResolver(DnsConfig(servers=(dns_relay.server,)))
    jobs = [targets("dual.test", asked, rng=Random(n), port=25) for n in range(1000)]
    assert {len(found) for found in await asyncio.gather(*jobs)} == {2}
    assert dns_relay.asked == {"dual.test MX": 1, "mx.dual.test AAAA": 1, "mx.dual.test A": 1}
