"""Limits: the most specific rule decides field by field, and what is counted together is counted under one key."""

import orjson
import pytest

from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.traffic.limits import DEFAULTS, LONGEST_SITE, LimitRule, allowance, under
from mailq.core.traffic.rate import Rate
from mailq.core.traffic.routes import Target

GOOGLE = ("alt1.gmail-smtp-in.l.google.com", "gmail-smtp-in.l.google.com")


def allow(*rules, source="192.0.2.1", domain="gmail.com", hosts=GOOGLE, pool=None, target=None):
    return allowance(rules, source, domain, hosts, pool, target)


def test_without_rules_the_defaults_hold():
    given = allow()

    assert given.connections == DEFAULTS.connections
    assert given.message_rate is None
    assert given.idle_timeout == DEFAULTS.idle_timeout


def test_each_field_is_decided_by_the_most_specific_rule_that_sets_it():
    given = allow(
        LimitRule(domain="gmail.com", message_rate=5.0),
        LimitRule(connections=7, message_rate=1.0, idle_timeout=9.0),
        LimitRule(mx="google.com", connections=50, message_rate=3.0),
        LimitRule(source="192.0.2.1", connections=2, session_age=60.0),
        LimitRule(domain="other.test", connections=1),
    )

    assert given.message_rate == Rate(5.0)
    assert given.connections == 50
    assert given.session_age == 60.0
    assert given.idle_timeout == 9.0


def test_a_rate_takes_the_burst_of_the_rules():
    assert allow(LimitRule(message_rate=2.0, burst=10)).message_rate == Rate(2.0, 10)


def test_domains_of_one_site_are_counted_together_and_sources_apart():
    keys = [
        allow(domain="gmail.com").connections_key,
        allow(domain="googlemail.com", hosts=tuple(reversed(GOOGLE))).connections_key,
        allow(source="192.0.2.2").connections_key,
        allow(hosts=("mx.other.test",)).connections_key,
    ]

    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_providers_rule_counts_all_its_sites_together_but_only_what_it_sets():
    rule = LimitRule(mx="protection.outlook.com", message_rate=10.0)
    one = allow(rule, domain="a.test", hosts=("a-test.mail.protection.outlook.com",))
    two = allow(rule, domain="b.test", hosts=("b-test.mail.protection.outlook.com",))

    assert one.message_rate_key == two.message_rate_key
    assert one.connections_key != two.connections_key


def test_a_domains_own_limit_is_counted_apart_from_its_site():
    rules = LimitRule(message_rate=20.0), LimitRule(domain="gmail.com", message_rate=1.0)
    own, others = allow(*rules), allow(*rules, domain="googlemail.com")

    assert own.message_rate_key != others.message_rate_key
    assert own.connections_key == others.connections_key
    assert own.sharing == others.sharing


@pytest.mark.parametrize("field", ["connections", "messages_per_session", "session_age", "idle_timeout"])
def test_a_domain_with_sessions_of_its_own_kind_shares_none(field):
    rule = LimitRule(domain="gmail.com", **{field: 1})

    assert allow(rule).sharing != allow(rule, domain="googlemail.com").sharing
    assert allow(rule, domain="googlemail.com").sharing == allow(domain="gmail.com").sharing


def test_sites_that_have_some_hosts_in_common_share_no_sessions_unless_they_are_counted_together():
    one, two = (
        {"domain": "a.test", "hosts": ("mx.google.com",)},
        {"domain": "b.test", "hosts": ("mx.google.com", "mx.b")},
    )

    assert allow(**one).sharing != allow(**two).sharing
    together = LimitRule(mx="google.com", connections=5, messages_per_session=5, session_age=5, idle_timeout=5)
    assert (
        allow(together, domain="a.test", hosts=("mx.google.com",)).sharing
        == allow(together, domain="b.test", hosts=("mx.google.com", "alt.google.com")).sharing
    )


@pytest.mark.parametrize("turn", [1, -1])
def test_the_longer_name_of_two_providers_decides_wherever_it_stands(turn):
    rules = [LimitRule(mx="google.com", connections=10), LimitRule(mx="l.google.com", connections=30)]

    assert allow(*rules[::turn]).connections == 30
    assert allow(*rules[::turn], hosts=("mx.google.com",)).connections == 10


@pytest.mark.parametrize(
    ("host", "suffix", "expected"),
    [
        ("google.com", "google.com", True),
        ("a.google.com", "google.com", True),
        ("a.google.com:2525", "google.com", True),
        ("notgoogle.com", "google.com", False),
        ("google.com.evil.test", "google.com", False),
    ],
)
def test_a_provider_is_a_name_and_all_below_it(host, suffix, expected):
    assert under(host, suffix) is expected


def test_the_sources_of_a_pool_are_counted_together_where_its_rule_decides():
    bulk = LimitRule(pool="bulk", message_rate=5.0)
    one, two, other = (
        allow(bulk, source="192.0.2.1", pool="bulk"),
        allow(bulk, source="192.0.2.2", pool="bulk"),
        allow(bulk, source="192.0.2.3", pool="urgent"),
    )

    assert one.message_rate == two.message_rate == Rate(5.0)
    assert one.message_rate_key == two.message_rate_key
    assert one.connections_key != two.connections_key
    assert other.message_rate is None


def test_a_source_is_more_specific_than_its_pool():
    rules = LimitRule(pool="bulk", connections=5), LimitRule(source="192.0.2.1", connections=2)

    assert allow(*rules, pool="bulk").connections == 2
    assert allow(*rules, source="192.0.2.2", pool="bulk").connections == 5


def job(**properties):
    return Job.parse(orjson.dumps({"recipient": "b@b.test", "mime": "x: y\n\n", **properties}), limit=10_000)


@pytest.mark.parametrize(
    ("spellings", "one"),
    [
        (["aspmx.l.google.com", "ASPMX.L.Google.com", "aspmx.l.google.com.", "AsPmX.l.google.COM."], "google.com"),
        (["b\u00fccher.test", "B\u00dcCHER.test.", "XN--BCHER-KVA.test"], "xn--bcher-kva.test"),
        (["142.250.1.26", "[142.250.1.26]", "142.250.1.26.", "\uff11\uff14\uff12.250.1.26"], "142.250.0.0/15"),
        (
            ["2001:db8::1", "[2001:DB8:0:0::1]", "[IPv6:2001:db8::0001]", "2001:0DB8:0000::0:1"],
            "2001:db8::/32",
        ),
    ],
)
def test_a_limit_cannot_be_left_by_spelling_a_smarthost_otherwise(spellings, one):
    rule = LimitRule(mx=one, connections=2, message_rate=1.0)
    given = set()
    for spelling in spellings:
        name = job(smarthost={"hostname": spelling}).smarthost.hostname
        given.add(allow(rule, domain=name, hosts=(name,), target=Target(name, name, 25)))
    (only,) = given
    assert (only.connections, only.message_rate) == (2, Rate(1.0))


@pytest.mark.parametrize(
    "spellings",
    [
        ["b@Example.TEST", "b@example.test.", "b@EXAMPLE.test."],
        ["b@b\u00fccher.test", "b@XN--BCHER-KVA.TEST."],
        ["b@[IPv6:2001:db8::1]", "b@[ipv6:2001:DB8:0::1]"],
    ],
)
def test_a_limit_cannot_be_left_by_spelling_a_domain_otherwise(spellings):
    assert len({job(recipient=spelling).recipient.domain for spelling in spellings}) == 1


@pytest.mark.parametrize("hostname", ["[mx.test]", "mx..test", "-mx.test", "mx.test:25", "[]", "[1.2.3]", "a" * 64])
def test_a_smarthost_that_is_no_host_is_refused_by_name(hostname):
    with pytest.raises(InvalidJobError) as caught:
        job(smarthost={"hostname": hostname})
    assert caught.value.pointer == "/smarthost/hostname"
    assert "host name or an IP address" in caught.value.reason


def test_an_alias_counts_as_what_it_leads_to_and_rules_may_name_either():
    towards = {"hosts": ("aspmx.l.google.com",), "target": Target("relay.example", "192.0.2.1", 25)}
    google = allow(LimitRule(mx="google.com", connections=2), domain="relay.example", **towards)
    alias = allow(LimitRule(mx="example", connections=3), domain="relay.example", **towards)
    plain = allow(domain="relay.example", **towards)
    assert (google.connections, alias.connections) == (2, 3)
    assert plain.connections_key == allow(domain="x", hosts=("aspmx.l.google.com",)).connections_key


def test_a_rule_for_a_network_holds_for_whatever_leads_there():
    rules = LimitRule(mx="google.com", connections=9), LimitRule(mx="192.0.2.0/24", connections=1)
    inside, outside = Target("mx.stranger.test", "192.0.2.77", 25), Target("mx.stranger.test", "198.51.100.1", 25)
    first = allow(*rules, hosts=("mx.stranger.test",), target=inside)
    second = allow(*rules, hosts=GOOGLE, target=Target(GOOGLE[0], "192.0.2.1", 25))
    assert (first.connections, first.connections_key) == (second.connections, second.connections_key)
    assert first.connections == 1
    assert allow(*rules, hosts=("mx.stranger.test",), target=outside).connections == DEFAULTS.connections
    narrow = allow(*rules, LimitRule(mx="192.0.2.77", connections=5), target=inside)
    assert narrow.connections == 5


def test_keys_stay_short_however_long_the_names_of_a_site():
    hosts = tuple(f"{n:03}.{'x' * 60}.test" for n in range(100))
    first, second = allow(hosts=hosts), allow(hosts=hosts[:-1])
    assert len(first.connections_key) < 2 * LONGEST_SITE
    assert first.connections_key != second.connections_key
    assert first.connections_key == allow(hosts=hosts[::-1]).connections_key
