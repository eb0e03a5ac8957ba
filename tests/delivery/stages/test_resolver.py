"""The resolver against a real DNS server: answers, failures, cache, questions asked once."""

import asyncio
import io
import time

import dns.flags
import dns.message
import dns.query
import dns.resolver
import dns.rrset
import pytest

from mailq.config.dns import DnsConfig
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import MAX_HOSTS
from mailq.edges.resolver.resolver import MAX_ADDRESSES, DnsResolver, _records


def resolver(server: str, **settings) -> DnsResolver:
    return DnsResolver(DnsConfig(servers=(server,), **settings))


async def failure_of(question) -> Failure:
    with pytest.raises(Failure) as caught:
        await question
    assert caught.value.state is State.DNS
    return caught.value


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("a.test", [(10, "mx.a.test")]),
        ("A.Test.", [(10, "mx.a.test")]),
        ("threemx.test", [(10, "mx1.threemx.test"), (20, "mx2.threemx.test"), (30, "mx3.threemx.test")]),
        ("alias.test", [(10, "mx1.twomx.test"), (20, "mx2.twomx.test")]),
        ("xn--bcher-kva.test", [(10, "mx.xn--bcher-kva.test")]),
        ("nullmx.test", [(0, ".")]),
        ("nodata.test", []),
        ("implicit.test", []),
    ],
)
async def test_mx(knot, domain, expected):
    assert list(await resolver(knot.server).mx(domain)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("mx.a.test", ["127.0.0.1"]),
        ("mx.v6.test", ["::1"]),
        ("MX.dual.test.", ["::1", "127.0.0.1"]),
        ("alias.mxalias.test", ["127.0.0.1"]),
        ("nodata.test", []),
    ],
)
async def test_addresses(knot, host, expected):
    assert list(await resolver(knot.server).addresses(host)) == expected


async def test_what_a_stranger_lists_is_bounded(knot):
    records = await resolver(knot.server).mx("big.test")
    assert [preference for preference, _ in records] == list(range(1, MAX_HOSTS + 1))
    assert len(await resolver(knot.server).addresses("mx.manyaddresses.test")) == MAX_ADDRESSES


def test_of_too_many_mx_records_the_preferred_are_kept_in_whatever_order_they_come():
    texts = [f"{preference} mx{preference}.test." for preference in range(3 * MAX_HOSTS, 0, -1)]
    records = _records(dns.rrset.from_text_list("big.test.", 60, "IN", "MX", texts))
    assert records == tuple((preference, f"mx{preference}.test") for preference in range(1, MAX_HOSTS + 1))


async def test_an_answer_of_usual_size_comes_by_udp(dns_relay):
    """EDNS (RFC 6891): the relay knows no TCP."""
    assert len(await resolver(dns_relay.server, timeout=5).mx("medium.test")) == 30


async def test_a_truncated_answer_is_asked_for_again_by_tcp(knot):
    host, _, port = knot.server.partition(":")
    question = dns.message.make_query("big.test", "MX", use_edns=0, payload=1232)
    assert dns.query.udp(question, host, port=int(port), timeout=5).flags & dns.flags.TC
    assert len(await resolver(knot.server).mx("big.test")) == MAX_HOSTS


@pytest.mark.parametrize(
    ("name", "kind", "code", "status", "words"),
    [
        ("gone.test", Kind.ERROR, 550, "5.1.2", "gone.test does not exist"),
        ("broken.test", Kind.ERROR, 451, "4.4.3", "SERVFAIL"),
        ("elsewhere.example", Kind.ERROR, 451, "4.4.3", "REFUSED"),
        ("lame.test", Kind.ERROR, 451, "4.4.3", "referral"),
        ("loop.test", Kind.ERROR, 451, "4.4.3", "ChainTooLong"),
        ("under score..test", Kind.ERROR, 550, "5.1.2", "not a valid domain name"),
        ("a" * 64 + ".test", Kind.ERROR, 550, "5.1.2", "not a valid domain name"),
        (".".join(["a" * 60] * 4 + ["a" * 10]), Kind.ERROR, 550, "5.1.2", "not a valid domain name"),
        ("evil\r\nname.test", Kind.ERROR, 550, "5.1.2", "evil??name.test"),
    ],
)
async def test_failures_of_mx_and_addresses(knot, name, kind, code, status, words):
    for question in (resolver(knot.server).mx(name), resolver(knot.server).addresses(name)):
        failure = await failure_of(question)
        assert (failure.kind, failure.code, failure.status) == (kind, code, status)
        assert words in failure.text
        assert failure.text.isprintable()


async def test_silence_is_a_timeout_and_lasts_no_longer_than_the_lifetime(silent_dns):
    begin = time.monotonic()
    failure = await failure_of(resolver(silent_dns, timeout=0.1, lifetime=0.4).mx("a.test"))
    assert (failure.kind, failure.code, failure.status) == (Kind.TIMEOUT, 451, "4.4.3")
    assert 0.3 < time.monotonic() - begin < 3


async def test_the_second_server_answers_where_the_first_is_silent(knot, silent_dns):
    asked = DnsResolver(DnsConfig(servers=(silent_dns, knot.server), timeout=0.1, lifetime=5))
    assert await asked.mx("a.test") == ((10, "mx.a.test"),)


async def test_one_family_is_enough_when_the_other_is_in_trouble(dns_relay):
    """Broken servers answer A and fail AAAA; mail must go out nevertheless."""
    dns_relay.lost.add("mx.dual.test AAAA")
    asked = resolver(dns_relay.server, timeout=0.1, lifetime=0.2)
    for _ in range(2):  # before the silence is known, and after
        assert list(await asked.addresses("mx.dual.test")) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["mx.v4.test", "gone.test"])
async def test_silence_for_one_family_and_nothing_for_the_other_is_no_answer(dns_relay, host):
    """Nobody may conclude that there is no address, when half of the answer is missing."""
    dns_relay.lost.add(f"{host} A")
    asked = resolver(dns_relay.server, timeout=0.5, lifetime=2)
    failure = await failure_of(asked.addresses(host))
    assert (failure.kind, failure.code) == (Kind.TIMEOUT, 451)


async def test_an_answer_is_kept_for_its_ttl_and_asked_for_again_after_it(dns_relay):
    asked = resolver(dns_relay.server, min_ttl=0)
    begin = time.monotonic()
    await asked.mx("brief.test")
    while dns_relay.asked["brief.test MX"] < 2:
        assert time.monotonic() - begin < 10
        await asked.mx("brief.test")
        await asyncio.sleep(0.01)
    assert time.monotonic() - begin >= 0.99


async def test_that_a_name_does_not_exist_is_kept_for_the_minimum_of_its_zone(dns_relay):
    asked = resolver(dns_relay.server, min_ttl=0)
    begin = time.monotonic()
    while dns_relay.asked["gone.brief.test MX"] < 2:
        assert time.monotonic() - begin < 10
        await failure_of(asked.mx("gone.brief.test"))
        await asyncio.sleep(0.01)
    assert time.monotonic() - begin >= 0.99


@pytest.mark.parametrize(
    ("settings", "name", "kept"),
    [
        ({}, "a.test", 60),
        ({"min_ttl": 300}, "a.test", 300),
        ({"max_ttl": 20}, "a.test", 20),
        ({"min_ttl": 5}, "brief.test", 5),
        ({}, "gone.test", 60),
        ({}, "nodata.test", 60),
        ({"max_ttl": 30}, "gone.test", 30),
        ({"min_ttl": 80_000}, "gone.test", 10_800),
        ({"trouble_ttl": 7}, "broken.test", 7),
    ],
)
async def test_how_long_an_answer_is_kept(knot, settings, name, kept):
    asked = resolver(knot.server, **settings)
    await asyncio.gather(asked.mx(name), return_exceptions=True)
    expires, _ = asked._cache[name, "MX"]
    assert kept - 5 < expires - time.monotonic() <= kept


@pytest.mark.parametrize(("name", "questions"), [("gone.test", 1), ("nodata.test", 1), ("broken.test", 1)])
async def test_what_is_not_there_and_trouble_are_remembered(dns_relay, name, questions):
    asked = resolver(dns_relay.server)
    for _ in range(3):
        await asyncio.gather(asked.mx(name), return_exceptions=True)
    assert dns_relay.asked[f"{name} MX"] == questions


async def test_trouble_is_not_remembered_when_so_configured(dns_relay):
    asked = resolver(dns_relay.server, trouble_ttl=0)
    for _ in range(3):
        await failure_of(asked.mx("broken.test"))
    assert dns_relay.asked["broken.test MX"] == 3


@pytest.mark.alone
async def test_silence_is_remembered(silent_dns):
    asked = resolver(silent_dns, timeout=0.1, lifetime=0.3)
    await failure_of(asked.mx("a.test"))
    begin = time.monotonic()
    await failure_of(asked.mx("a.test"))
    assert time.monotonic() - begin < 0.1


async def test_failures_from_the_cache_are_separate_exceptions(knot):
    asked = resolver(knot.server)
    assert await failure_of(asked.mx("gone.test")) is not await failure_of(asked.mx("gone.test"))


async def test_the_cache_forgets_what_was_used_least_recently(dns_relay):
    asked = resolver(dns_relay.server, cache_size=2)
    for domain in ("a.test", "b.test", "a.test", "c.test", "a.test", "b.test"):
        await asked.mx(domain)
    assert dns_relay.asked == {"a.test MX": 1, "b.test MX": 2, "c.test MX": 1}
    assert len(asked._cache) == 2


async def test_without_a_cache_every_question_is_asked(dns_relay):
    asked = resolver(dns_relay.server, cache_size=0)
    for _ in range(3):
        await asked.mx("a.test")
    assert dns_relay.asked["a.test MX"] == 3


async def test_callers_at_the_same_time_share_one_question(dns_relay):
    dns_relay.open.clear()
    asked = resolver(dns_relay.server)
    callers = [asyncio.create_task(asked.mx(name)) for name in ("a.test", "A.test", "a.test.") * 50]
    await dns_relay.wait_for("a.test MX")
    dns_relay.open.set()
    assert set(await asyncio.gather(*callers)) == {((10, "mx.a.test"),)}
    assert dns_relay.asked == {"a.test MX": 1}
    assert not asked._asking


async def test_no_more_questions_are_under_way_than_allowed(dns_relay):
    dns_relay.open.clear()
    asked = resolver(dns_relay.server)
    asked._slots = asyncio.Semaphore(3)
    names = [f"mx{n:03}.big.test" for n in range(1, 11)]
    callers = [asyncio.create_task(asked.mx(name)) for name in names]
    for name in names[:3]:
        await dns_relay.wait_for(f"{name} MX")
    later = asyncio.create_task(resolver(dns_relay.server).mx("later.test"))
    await dns_relay.wait_for("later.test MX")
    assert dns_relay.asked.total() == 4
    dns_relay.open.set()
    await asyncio.gather(*callers, later, return_exceptions=True)
    assert dns_relay.asked.total() == 11


async def test_both_families_are_asked_at_once(dns_relay):
    dns_relay.open.clear()
    asking = asyncio.create_task(resolver(dns_relay.server).addresses("mx.dual.test"))
    await dns_relay.wait_for("mx.dual.test AAAA")
    await dns_relay.wait_for("mx.dual.test A")
    dns_relay.open.set()
    assert await asking == ["::1", "127.0.0.1"]


async def test_who_gives_up_leaves_the_others_their_answer(dns_relay):
    """The first caller, whose question it was, and a later one are cancelled; the one between gets its answer."""
    dns_relay.open.clear()
    asked = resolver(dns_relay.server)
    first, between, last = (asyncio.create_task(asked.addresses("mx.a.test")) for _ in range(3))
    await dns_relay.wait_for("mx.a.test A")
    first.cancel()
    last.cancel()
    await asyncio.wait([first, last])
    assert first.cancelled()
    assert last.cancelled()
    dns_relay.open.set()
    assert await between == ["127.0.0.1"]
    assert dns_relay.asked == {"mx.a.test A": 1, "mx.a.test AAAA": 1}


async def test_an_answer_that_all_callers_gave_up_is_still_kept(dns_relay):
    dns_relay.open.clear()
    asked = resolver(dns_relay.server)
    only = asyncio.create_task(asked.mx("a.test"))
    await dns_relay.wait_for("a.test MX")
    only.cancel()
    await asyncio.wait([only])
    dns_relay.open.set()
    assert await asked.mx("a.test") == ((10, "mx.a.test"),)
    assert dns_relay.asked == {"a.test MX": 1}


async def test_closing_ends_the_questions_under_way(dns_relay):
    dns_relay.open.clear()
    asked = resolver(dns_relay.server)
    asking = asyncio.create_task(asked.mx("a.test"))
    await dns_relay.wait_for("a.test MX")
    await asked.close()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert not asked._asking


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:5353", "192.0.2.1", 5353),
        ("2001:db8::1", "2001:db8::1", 53),
        ("[2001:db8::1]", "2001:db8::1", 53),
        ("[2001:db8::1]:5353", "2001:db8::1", 5353),
    ],
)
def test_a_server_is_an_address_with_or_without_a_port(text, address, port):
    server = resolver(text)._stub.nameservers[0]
    assert (server.address, server.port) == (address, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "dns.example:53",
        "192.0.2",
        "192.0.2.1:",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:53x",
        "192.0.2.1:-1",
        "[192.0.2.1",
        "[::1]x",
        "[::1]:",
        "https://192.0.2.1/",
    ],
)
def test_any_other_server_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"not an IP address|not of the form|no port") as caught:
        resolver(text)
    assert f'"{text}"' in str(caught.value)


@pytest.mark.parametrize("text", ["search test", ""])
def test_a_system_without_servers_is_an_error_that_says_what_to_set(monkeypatch, text):
    system_has(monkeypatch, text)
    with pytest.raises(ValueError, match=r"no name servers.*set dns\.servers"):
        DnsResolver(DnsConfig())


def test_without_servers_those_of_the_system_are_asked(monkeypatch):
    system_has(monkeypatch, "nameserver 192.0.2.53\noptions timeout:1")
    asked = DnsResolver(DnsConfig(timeout=3))
    assert [server.address for server in asked._stub.nameservers] == ["192.0.2.53"]
    assert asked._stub.timeout == 3


def system_has(monkeypatch, text: str) -> None:
    """Let dnspython read `text` for /etc/resolv.conf, which is the machine's own."""
    read = dns.resolver.BaseResolver.read_resolv_conf
    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", lambda self, _: read(self, io.StringIO(text)))
