"""The policy of state dns, on a resolver that is a table: who is connected to, in which order."""

import asyncio
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.networks import Networks
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import MAX_HOSTS, Target
from mailq.delivery.stages.dns import SLICE, Endpoint, host_site, host_targets, parse_endpoint, site, targets

NXDOMAIN = Failure(State.DNS, Kind.ERROR, "gone", code=550, status="5.1.2")
SERVFAIL = Failure(State.DNS, Kind.ERROR, "servfail")
SILENCE = Failure(State.DNS, Kind.TIMEOUT, "silence")


class Table:
    """A `ports.Resolver` of two dicts; a name that is not there does not exist."""

    def __init__(self, mx=None, hosts=None):
        self.tables = {"mx": mx or {}, "addresses": hosts or {}}
        self.asked = Counter()
        self.under_way = self.most = 0

    async def mx(self, domain):
        return await self._answer("mx", domain)

    async def addresses(self, host):
        return await self._answer("addresses", host)

    async def _answer(self, table, name):
        self.asked[table, name] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        answer = self.tables[table].get(name, NXDOMAIN)
        if isinstance(answer, Failure):
            raise answer
        return answer


async def find(table, domain="to.test", seed=1, **settings):
    return await targets(domain, table, **({"rng": Random(seed), "port": 25} | settings))


async def ips(table, domain="to.test", **settings):
    return [target.ip for target in await find(table, domain, **settings)]


async def failure_of(attempt):
    with pytest.raises(Failure) as caught:
        await attempt
    assert caught.value.state is State.DNS
    return caught.value


V4 = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8"]
V6 = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5", "2001:db8::6"]


async def test_mx_hosts_come_by_preference():
    table = Table({"to.test": [(20, "b"), (10, "a"), (30, "c")]}, {"a": [V4[0]], "b": [V4[1]], "c": [V4[2]]})
    assert await find(table, port=2525) == (
        Target("a", V4[0], 2525),
        Target("b", V4[1], 2525),
        Target("c", V4[2], 2525),
    )


async def test_hosts_of_equal_preference_are_shuffled_and_stay_before_the_worse():
    mx = [(10, "a"), (10, "b"), (10, "c"), (20, "d")]
    table = Table({"to.test": mx}, {"a": [V4[0]], "b": [V4[1]], "c": [V4[2]], "d": [V4[3]]})
    orders = {tuple(await ips(table, seed=seed)) for seed in range(100)}
    assert len(orders) == 6
    assert {order[3] for order in orders} == {V4[3]}


async def test_addresses_of_one_host_are_shuffled():
    table = Table({"to.test": [(10, "a")]}, {"a": V4[:3]})
    assert {(await ips(table, seed=seed))[0] for seed in range(50)} == set(V4[:3])


async def test_a_domain_without_mx_is_its_own_host():
    table = Table({"to.test": []}, {"to.test": [V4[0]]})
    assert await find(table) == (Target("to.test", V4[0], 25),)


async def test_a_null_mx_takes_no_mail_even_with_an_address():
    for records in ([(0, ".")], [(0, "."), (10, ".")]):
        failure = await failure_of(find(Table({"to.test": records}, {"to.test": V4})))
        assert (failure.kind, failure.code, failure.status) == (Kind.ERROR, 556, "5.1.10")
        assert "to.test" in failure.text


async def test_a_null_mx_among_others_is_ignored():
    assert await ips(Table({"to.test": [(0, "."), (10, "a")]}, {"a": [V4[0]]})) == [V4[0]]


@pytest.mark.parametrize("trouble", [NXDOMAIN, SERVFAIL, SILENCE])
async def test_a_failed_mx_lookup_is_never_taken_for_no_mx(trouble):
    table = Table({"to.test": trouble}, {"to.test": V4})
    assert await failure_of(find(table)) is trouble
    assert not table.asked["addresses", "to.test"]


async def test_a_host_that_cannot_be_resolved_is_passed_over():
    mx = {"to.test": [(1, "gone"), (2, "empty"), (3, "servfail"), (4, "silent"), (5, "a")]}
    hosts = {"empty": [], "servfail": SERVFAIL, "silent": SILENCE, "a": [V4[0]]}
    assert await ips(Table(mx, hosts)) == [V4[0]]


@pytest.mark.parametrize(
    ("hosts", "kind", "code", "status"),
    [
        ({}, Kind.ERROR, 550, "5.4.4"),
        ({"a": [], "b": []}, Kind.ERROR, 550, "5.4.4"),
        ({"a": SERVFAIL}, Kind.ERROR, 451, "4.4.3"),
        ({"b": SERVFAIL, "a": []}, Kind.ERROR, 451, "4.4.3"),
        ({"b": SILENCE}, Kind.TIMEOUT, 451, "4.4.3"),
    ],
)
async def test_without_any_address_one_passing_trouble_keeps_hope(hosts, kind, code, status):
    failure = await failure_of(find(Table({"to.test": [(10, "a"), (20, "b")]}, hosts)))
    assert (failure.kind, failure.code, failure.status) == (kind, code, status)
    assert "none of the MX hosts of to.test has an address" in failure.text


@pytest.mark.parametrize(("host", "code"), [([], 550), (NXDOMAIN, 550), (SERVFAIL, 451), (SILENCE, 451)])
async def test_a_domain_with_neither_mx_nor_address(host, code):
    failure = await failure_of(find(Table({"to.test": []}, {"to.test": host})))
    assert (failure.code, failure.status) == (code, "5.4.4" if code == 550 else "4.4.3")
    assert "to.test has neither MX hosts nor an address" in failure.text


async def test_only_the_wanted_family_is_connected_to():
    table = Table({"to.test": [(10, "a"), (20, "b")]}, {"a": V6[:1] + V4[:1], "b": V4[1:2]})
    assert await ips(table, family="ipv4") == V4[:2]
    assert await ips(table, family="ipv6") == V6[:1]
    failure = await failure_of(find(Table({"to.test": [(10, "b")]}, {"b": V4[:1]}), family="ipv6"))
    assert (failure.code, failure.status) == (550, "5.4.4")
    assert "has an IPv6 address" in failure.text


async def test_the_families_alternate_so_that_a_dead_one_does_not_fill_the_places():
    table = Table({"to.test": [(10, "a")]}, {"a": V6[:4] + V4[:4]})
    found = await find(table, max_targets=4)
    assert [target.ipv6 for target in found] == [True, False, True, False]


async def test_two_places_for_two_hosts_of_both_families_are_of_both_families():
    table = Table({"to.test": [(10, "a"), (20, "b")]}, {"a": [V6[0], V4[0]], "b": [V6[1], V4[1]]})
    assert await ips(table, max_targets=2) == [V6[0], V4[1]]


async def test_a_host_of_many_addresses_leaves_room_for_the_next():
    table = Table({"to.test": [(10, "a"), (20, "b"), (30, "c")]}, {"a": V4[:6], "b": V4[6:], "c": V6})
    assert [target.host for target in await find(table, max_targets=5)] == ["a", "a", "a", "b", "b"]


async def test_room_that_the_next_hosts_do_not_need_is_used():
    table = Table({"to.test": [(10, "a"), (20, "b")]}, {"a": V4[:6], "b": V4[6:7]})
    assert [target.host for target in await find(table, max_targets=5)] == ["a", "a", "a", "a", "b"]


async def test_an_address_is_tried_once():
    mx = {"to.test": [(10, "a"), (15, "a"), (20, "b")]}
    assert await ips(Table(mx, {"a": [V4[0], V4[0]], "b": [V4[0], V4[1]]})) == V4[:2]


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "169.254.169.254", "fe80::1", "::ffff:7f00:1"])
async def test_addresses_that_are_nobodys_mail_server_are_not_connected_to(ip):
    assert await ips(Table({"to.test": [(10, "a")]}, {"a": [ip, V4[0]]})) == [V4[0]]
    failure = await failure_of(find(Table({"to.test": [(10, "a")]}, {"a": [ip]})))
    assert (failure.code, failure.status) == (550, "5.4.4")


async def test_prohibited_addresses_take_no_places():
    mx = {"to.test": [(10, "inside"), (20, "both"), (30, "outside")]}
    hosts = {"inside": ["10.0.0.1", "10.0.0.2"], "both": ["10.0.0.3", V4[0]], "outside": [V4[1], V6[0]]}
    prohibited = Networks(["10.0.0.0/8", "2001:db8::/32"])
    assert await ips(Table(mx, hosts), prohibited=prohibited, max_targets=2) == V4[:2]


async def test_a_prohibited_address_is_told_before_a_host_that_does_not_exist():
    mx = {"to.test": [(10, "gone"), (20, "inside"), (30, "deeper")]}
    table = Table(mx, {"inside": ["10.0.0.1", "fd00::1"], "deeper": ["10.0.0.2"]})
    failure = await failure_of(find(table, prohibited=Networks(["10.0.0.0/8", "fd00::/8"])))
    assert (failure.code, failure.status) == (550, "5.4.4")
    assert failure.text.endswith(
        " to.test has an address to connect to: inside (10.0.0.1) is in 10.0.0.0/8 of dns.prohibited"
    )


async def test_what_is_prohibited_in_the_other_family_is_not_why():
    table = Table({"to.test": [(10, "a")]}, {"a": ["fd00::1"]})
    failure = await failure_of(find(table, family="ipv4", prohibited=Networks(["fd00::/8"])))
    assert failure.text == "none of the MX hosts of to.test has an IPv4 address to connect to"


async def test_an_mx_that_is_an_address_is_used_as_it_stands():
    assert await ips(Table({"to.test": [(10, "192.0.2.1")]})) == ["192.0.2.1"]


async def test_hosts_are_looked_up_together_but_only_as_many_as_are_needed():
    mx = [(n, f"h{n}") for n in range(100)]
    table = Table({"to.test": mx}, {f"h{n}": [f"192.0.2.{n}"] for n in range(100)})
    assert await ips(table, max_targets=5) == [f"192.0.2.{n}" for n in range(5)]
    assert table.asked.total() == 6
    assert table.most == 5


async def test_hosts_further_down_are_looked_up_when_the_first_do_not_suffice():
    mx = [(n, f"h{n}") for n in range(10)]
    table = Table({"to.test": mx}, {f"h{n}": [f"192.0.2.{n}"] for n in range(4, 10)})
    assert await ips(table, max_targets=3) == ["192.0.2.4", "192.0.2.5", "192.0.2.6"]


async def test_a_second_host_is_found_even_when_the_first_fills_all_places():
    table = Table({"to.test": [(1, "a"), (2, "gone"), (3, "c")]}, {"a": V4[:4], "c": V4[4:5]})
    assert [target.host for target in await find(table, max_targets=2)] == ["a", "c"]


@pytest.mark.parametrize("count", [21, 26, MAX_HOSTS - 1])
async def test_all_mx_hosts_are_looked_at_before_a_final_failure(count):
    """Many preferred ones that do not exist may stand before one that does."""
    records = [(n, f"gone{n}") for n in range(count)]
    table = Table({"to.test": records})
    assert (await failure_of(find(table, max_targets=3))).permanent
    assert table.asked.total() == 1 + count
    assert table.most <= SLICE
    (found,) = await find(Table({"to.test": [*records, (count, "good")]}, {"good": V4[:1]}))
    assert found.host == "good"


async def test_with_more_mx_hosts_than_are_looked_at_the_failure_is_not_final():
    table = Table({"to.test": [(n, f"gone{n}") for n in range(MAX_HOSTS)]})
    failure = await failure_of(find(table, max_targets=3))
    assert (failure.permanent, failure.code, failure.status) == (False, 451, "4.4.3")
    assert f"more MX hosts than {MAX_HOSTS}" in failure.text
    assert table.asked.total() == 1 + MAX_HOSTS


@pytest.mark.parametrize("domain", ["[192.0.2.1]", "[IPv6:2001:db8::1]"])
async def test_the_site_of_an_address_is_the_same_with_and_without_brackets(domain):
    assert await site(domain, Table()) == await host_site(domain, Table())
    assert "[" not in (await site(domain, Table()))[0]


async def test_the_site_of_a_smarthost_is_what_its_alias_leads_to():
    class Aliases(Table):
        async def canonical(self, host):
            return {"relay.test": "real.example"}.get(host, host)

    assert await host_site("relay.test", Aliases()) == ("real.example",)
    assert await host_site("real.example", Aliases()) == ("real.example",)


async def test_a_bug_of_the_resolver_is_not_taken_for_an_answer():
    class Broken(Table):
        async def addresses(self, host):
            raise KeyError(host)

    with pytest.raises(KeyError):
        await find(Broken({"to.test": [(10, "a")]}))


@pytest.mark.parametrize(
    ("domain", "ip"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("[::1]", "::1")]
)
async def test_an_address_literal_needs_no_dns(domain, ip):
    table = Table()
    assert await find(table, domain) == (Target(ip, ip, 25),)
    assert not table.asked


@pytest.mark.parametrize(("domain", "family"), [("[192.0.2.1]", "ipv6"), ("[0.0.0.0]", "any")])
async def test_an_address_literal_that_cannot_be_used(domain, family):
    failure = await failure_of(find(Table(), domain, family=family))
    assert (failure.code, failure.status) == (550, "5.4.4")


OVERRIDES = {
    "to.test": ("192.0.2.1", "192.0.2.2:2525", "[2001:db8::1]:2526", "2001:db8::2"),
    "host.test": ("relay.test", "relay.test:2525"),
    "free.test": (),
    "half.test": ("gone.test", "192.0.2.9"),
    "dead.test": ("gone.test",),
    "odd.test": ("not a host",),
    "*": ("192.0.2.99:9925",),
}


async def test_an_override_is_used_in_its_order_instead_of_the_dns():
    table = Table()
    found = await find(table, overrides=OVERRIDES)
    assert [(target.ip, target.port) for target in found] == [
        ("192.0.2.1", 25),
        ("192.0.2.2", 2525),
        ("2001:db8::1", 2526),
        ("2001:db8::2", 25),
    ]
    assert not table.asked


async def test_a_host_in_an_override_is_resolved_by_its_addresses_alone():
    table = Table(hosts={"relay.test": [V4[0]]})
    assert await find(table, "host.test", overrides=OVERRIDES) == (
        Target("relay.test", V4[0], 25),
        Target("relay.test", V4[0], 2525),
    )
    assert {kind for kind, _ in table.asked} == {"addresses"}


@pytest.mark.parametrize("domain", ["any.test", "[192.0.2.1]"])
async def test_the_star_takes_every_other_domain_and_literals_too(domain):
    """A staging system that sends all mail to one place must let nothing escape."""
    assert await find(Table(), domain, overrides=OVERRIDES) == (Target("192.0.2.99", "192.0.2.99", 9925),)


async def test_an_empty_override_exempts_from_the_star():
    table = Table({"free.test": [(10, "a")]}, {"a": [V4[0]]})
    assert await ips(table, "free.test", overrides=OVERRIDES) == [V4[0]]


async def test_trouble_with_an_override_is_ours_and_passes():
    assert await ips(Table(), "half.test", overrides=OVERRIDES) == ["192.0.2.9"]
    for domain in ("dead.test", "odd.test"):
        failure = await failure_of(find(Table(), domain, overrides=OVERRIDES))
        assert (failure.kind, failure.code, failure.status) == (Kind.ERROR, 451, "4.4.3")
        assert f"override for {domain}" in failure.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", [("192.0.2.1", "192.0.2.1")]),
        ("[192.0.2.1]", [("192.0.2.1", "192.0.2.1")]),
        ("2001:DB8::1", [("2001:DB8::1", "2001:db8::1")]),
        ("[2001:db8::1]", [("2001:db8::1", "2001:db8::1")]),
        ("[IPv6:2001:db8::1]", [("2001:db8::1", "2001:db8::1")]),
        ("relay.test", [("relay.test", V6[0]), ("relay.test", V4[0])]),
    ],
)
async def test_a_smarthost_is_an_address_or_a_host_whose_mx_nobody_asks_for(host, expected):
    table = Table({"relay.test": [(10, "elsewhere.test")]}, {"relay.test": [V6[0], V4[0]]})
    found = await host_targets(host, 587, table, rng=Random(1))
    assert found == tuple(Target(name, ip, 587) for name, ip in expected)
    assert not any(kind == "mx" for kind, _ in table.asked)


@pytest.mark.parametrize(
    ("answer", "kind"), [(NXDOMAIN, Kind.ERROR), ([], Kind.ERROR), (SERVFAIL, Kind.ERROR), (SILENCE, Kind.TIMEOUT)]
)
async def test_a_smarthost_that_cannot_be_resolved_is_never_the_recipients_fault(answer, kind):
    failure = await failure_of(host_targets("relay.test", 25, Table(hosts={"relay.test": answer}), rng=Random(1)))
    assert (failure.kind, failure.code, failure.status) == (kind, 451, "4.4.3")
    assert "relay.test" in failure.text


async def test_what_a_producer_calls_a_smarthost_is_shown_without_control_characters():
    failure = await failure_of(host_targets("re\x9blay", 25, Table(), rng=Random(1)))
    assert failure.text.startswith("host re?lay: ")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 25),
        ("192.0.2.1:2525", "192.0.2.1", 2525),
        ("2001:db8::1", "2001:db8::1", 25),
        ("[2001:db8::1]", "2001:db8::1", 25),
        ("[2001:db8::1]:2525", "2001:db8::1", 2525),
        ("Relay.Example.", "relay.example", 25),
        ("relay.example:2525", "relay.example", 2525),
        ("localhost:1025", "localhost", 1025),
    ],
)
def test_an_endpoint_is_read(text, host, port):
    assert parse_endpoint(text, 25) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text", ["", ":25", "a:", "a:0", "a:65536", "a:b", "a b", "[::1", "[::1]x", "[relay.test]:25", "a:1:2", "http://a"]
)
def test_what_is_no_endpoint_is_refused_by_name(text):
    with pytest.raises(ValueError, match="is not of the form") as caught:
        parse_endpoint(text, 25)
    assert repr(text) in str(caught.value)


ADDRESS = st.one_of(st.integers(1, 12).map("192.0.2.{}".format), st.integers(1, 12).map("2001:db8::{:x}".format))
HOST = st.one_of(st.lists(ADDRESS, max_size=6), st.sampled_from([NXDOMAIN, SERVFAIL, SILENCE]))


@given(
    preferences=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    answers=st.lists(HOST, min_size=12, max_size=12),
    limit=st.integers(1, 8),
    family=st.sampled_from(["any", "ipv4", "ipv6"]),
    seed=st.integers(0, 99),
)
def test_what_holds_of_every_list_of_targets(preferences, answers, limit, family, seed):
    mx = [(preference, f"h{n}") for n, preference in enumerate(preferences)]
    preference_of = {host: preference for preference, host in mx}
    table = Table({"to.test": mx}, dict(zip((f"h{n}" for n in range(12)), answers, strict=True)))

    def wanted(answer):
        return () if isinstance(answer, Failure) else [ip for ip in answer if family in ("any", family_of(ip))]

    usable = {ip for _, host in mx for ip in wanted(table.tables["addresses"][host])}
    attempt = find(table, seed=seed, max_targets=limit, family=family)
    if not usable:
        transient = any(answer in (SERVFAIL, SILENCE) for answer in answers[: len(mx)])
        assert asyncio.run(failure_of(attempt)).permanent is not transient
        return
    found = asyncio.run(attempt)
    order = [preference_of[target.host] for target in found]
    assert order == sorted(order)
    assert len({target.ip for target in found}) == len(found) == min(limit, len(usable))
    assert all(target.ip in wanted(table.tables["addresses"][target.host]) for target in found)
    assert table.asked.total() <= 1 + len(mx)
    assert max(table.asked.values()) == 1


@given(
    hosts=st.integers(1, 5),
    v4=st.integers(1, 4),
    v6=st.integers(1, 4),
    limit=st.integers(2, 10),
    seed=st.integers(0, 99),
)
def test_neither_a_dead_family_nor_a_dead_host_can_take_all_places(hosts, v4, v6, limit, seed):
    """Where every host has both families, both get in, and so do two hosts where there are two."""
    mx = [(n, f"h{n}") for n in range(hosts)]
    addresses = {
        f"h{n}": [f"2001:db8:{n}::{i}" for i in range(1, v6 + 1)] + [f"192.0.{n}.{i}" for i in range(1, v4 + 1)]
        for n in range(hosts)
    }
    found = asyncio.run(find(Table({"to.test": mx}, addresses), seed=seed, max_targets=limit))
    assert {target.ipv6 for target in found} == {True, False}
    assert len({target.host for target in found}) >= min(2, hosts)


def family_of(ip):
    return "ipv6" if ":" in ip else "ipv4"
