"""The resolver and name servers that a stranger leads it to: large answers, silence, no EDNS."""

import asyncio
import time

import dns.message
import dns.rcode
import dns.rrset
import pytest
from support.dns_server import NameServerOf, many_mx

from mailq.config.dns import DnsConfig
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind
from mailq.edges.resolver.name_server import MAX_OCTETS, MAX_RECORDS
from mailq.edges.resolver.resolver import DELAY, LATE, DnsResolver

LONG = ".".join(["a"] * 115) + ".test"
"""A name of many labels, which costs most."""


def resolver(server, family="any", **settings):
    return DnsResolver(DnsConfig(servers=(server.address,), **settings), family)


def answered(question, *records):
    response = dns.message.make_response(question)
    if records:
        response.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", *records))
    return response


def truncated(question):
    response = dns.message.make_response(question)
    response.flags |= dns.flags.TC
    return response


async def longest_pause(work):
    """Return what came of some work, and the longest time for which it held the event loop."""
    task, longest = asyncio.ensure_future(work), 0.0
    while not task.done():
        begin = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - begin)
    return task, longest


@pytest.mark.parametrize("over", ["udp", "tcp"])
@pytest.mark.parametrize(
    ("count", "why"), [(4050, f"more than {MAX_OCTETS} octets"), (1000, f"1000 records, more than {MAX_RECORDS}")]
)
async def test_an_answer_that_is_too_large_is_not_read_and_may_be_mended(over, count, why):
    """It was 8 s of CPU in which the worker did nothing else."""
    seen = 0

    def answer(question):
        nonlocal seen
        seen += 1
        return truncated(question) if over == "tcp" and seen == 1 else many_mx(question, count)

    async with NameServerOf(answer) as server:
        begin = time.process_time()
        with pytest.raises(Failure) as caught:
            await resolver(server, min_ttl=0, timeout=5).mx(LONG)
    assert time.process_time() - begin < 0.5
    failure = caught.value
    assert (failure.kind, failure.code, failure.status) == (Kind.ERROR, 451, "4.4.3")
    assert why in failure.text


async def test_a_large_answer_that_is_read_does_not_hold_the_loop():
    async with NameServerOf(lambda question: many_mx(question, MAX_RECORDS)) as server:
        task, longest = await longest_pause(resolver(server, timeout=20, lifetime=60).mx(LONG))
    assert [preference for preference, _ in task.result()] == list(range(100))
    assert longest < 0.4, "the parser alone needs a second"


async def test_forged_answers_are_passed_over():
    def answer(question):
        other = dns.message.make_query("other.test", "MX")
        for forged in (answered(question, "MX", "10 forged.test."), answered(other, "MX", "10 forged.test.")):
            forged.id = question.id if forged.question[0] == other.question[0] else question.id ^ 1
            server.say(question.id, forged.to_wire())
        server.say(question.id, question.id.to_bytes(2) + b"\x81\x80\0\1\0\1\0\0\0\0" + b"\xff" * 20)
        return answered(question, "MX", "10 right.test.")

    async with NameServerOf(answer) as server:
        assert list(await resolver(server).mx("a.test")) == [(10, "right.test")]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("silent", "ips"),
    [("AAAA", ["192.0.2.1"]), ("A", ["2001:db8::1"])],
)
async def test_a_silent_family_does_not_hold_up_the_other_and_is_noted_when_it_comes(silent, ips):
    held = []

    def answer(question):
        rdtype = dns.rdatatype.to_text(question.question[0].rdtype)
        said = answered(question, rdtype, "192.0.2.1" if rdtype == "A" else "2001:db8::1")
        if rdtype == silent:
            held.append(said)
            return None
        return said

    async with NameServerOf(answer) as server:
        asked = resolver(server, timeout=20)
        begin = time.monotonic()
        assert list(await asked.addresses("mx.test")) == ips
        assert LATE <= time.monotonic() - begin < 3
        begin = time.monotonic()
        assert list(await asked.addresses("mx.test")) == ips
        assert time.monotonic() - begin < LATE, f"known to be late: {DELAY} s"
        (late,) = held
        server.say(late.id, late.to_wire())
        while len(await asked.addresses("mx.test")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert server.asked == {"mx.test A": 1, "mx.test AAAA": 1}


async def test_nothing_and_silence_is_no_answer():
    def answer(question):
        return answered(question) if question.question[0].rdtype == dns.rdatatype.A else None

    async with NameServerOf(answer) as server:
        with pytest.raises(Failure) as caught:
            await resolver(server, timeout=0.5, lifetime=1).addresses("mx.test")
    assert (caught.value.kind, caught.value.code) == (Kind.TIMEOUT, 451)


@pytest.mark.parametrize(("family", "asked"), [("ipv4", "A"), ("ipv6", "AAAA")])
async def test_only_the_wanted_family_is_asked_for(family, asked):
    records = {dns.rdatatype.A: ("A", "192.0.2.1"), dns.rdatatype.AAAA: ("AAAA", "2001:db8::1")}
    async with NameServerOf(lambda question: answered(question, *records[question.question[0].rdtype])) as server:
        assert len(await resolver(server, family).addresses("mx.test")) == 1
    assert server.asked == {f"mx.test {asked}": 1}


@pytest.mark.parametrize("refusal", [dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS])
async def test_a_server_without_edns_is_asked_without_and_that_is_remembered(refusal):
    with_edns = []

    def answer(question):
        with_edns.append(question.edns >= 0)
        response = answered(question, "MX", "10 mx.test.")
        if question.edns >= 0:
            response = dns.message.make_response(question)
            response.set_rcode(refusal)
        return response

    async with NameServerOf(answer) as server:
        asked = resolver(server)
        for name in ("a.test", "b.test"):
            assert list(await asked.mx(name)) == [(10, "mx.test")]
    assert with_edns == [True, False, False]


async def test_a_server_that_has_no_answer_without_edns_either_is_not_remembered():
    def answer(question):
        with_edns.append(question.edns >= 0)
        response = dns.message.make_response(question)
        response.set_rcode(dns.rcode.FORMERR)
        return response

    with_edns = []
    async with NameServerOf(answer) as server:
        asked = resolver(server)
        for name in ("a.test", "b.test"):
            with pytest.raises(Failure, match="FORMERR"):
                await asked.mx(name)
    assert with_edns == [True, False, True, False]


async def test_the_name_that_an_alias_leads_to_is_told():
    def answer(question):
        response = dns.message.make_response(question)
        response.answer.append(dns.rrset.from_text("relay.test.", 60, "IN", "CNAME", "Real.Example."))
        if question.question[0].rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text("real.example.", 60, "IN", "A", "192.0.2.1"))
        return response

    async with NameServerOf(answer) as server:
        asked = resolver(server)
        assert list(await asked.addresses("relay.test")) == ["192.0.2.1"]
        assert await asked.canonical("relay.test") == "real.example"


async def test_the_cache_is_bounded_in_octets():
    names = [f"{n:03}{'x' * 57}.{'y' * 60}.{'z' * 60}.{'w' * 50}.test." for n in range(100)]

    async with NameServerOf(lambda question: answered(question, "MX", *(f"10 {name}" for name in names))) as server:
        asked = resolver(server, cache_bytes=1_000_000, timeout=20, lifetime=60)
        for n in range(30):
            assert len(await asked.mx(f"d{n}.test")) == 100
        assert 10 <= len(asked._cache) < 30
        assert asked._cache.octets <= 1_000_000
