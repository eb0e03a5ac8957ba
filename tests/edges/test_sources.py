"""Source addresses: only what this host can be reached at is one, however it is written."""

import pytest
from support.hostile import Hostile, mailer

from mailq.config.delivery import SourceConfig
from mailq.core.networks import same_address
from mailq.core.states import Kind, State
from mailq.edges.sources import HostSources, exists


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.3.2.1"])
def test_an_address_of_the_host_is_a_source(ip):
    assert exists(ip)
    assert [source.ip for source in HostSources([], "a.test").usable([ip], None)] == [ip]


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0",
        "224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "::ffff:224.0.0.1",
        "255.255.255.255", "127.255.255.255", "240.0.0.1",
        "192.0.2.1", "2001:db8::1", "fe80::1",
    ],
)  # fmt: skip
def test_nothing_else_is_a_source(ip):
    assert HostSources([], "a.test").usable([ip], None) == ()
    assert HostSources([SourceConfig(ip=ip)], "a.test").usable(None, None) == ()


def test_of_several_addresses_only_those_of_the_host_are_used():
    found = HostSources([], "a.test").usable(["192.0.2.1", "127.0.0.2", "0.0.0.0", "127.0.0.2"], None)
    assert [source.ip for source in found] == ["127.0.0.2"]


def test_an_address_mapped_into_ipv6_is_the_one_that_it_stands_for():
    assert [source.ip for source in HostSources([], "a.test").usable(["::ffff:127.0.0.2"], None)] == ["127.0.0.2"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("2001:DB8::1", "2001:db8::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", None, False),
        ("0.0.0.0", "127.0.0.1", False),
        ("127.0.0.1", "nonsense", False),
    ],
)
def test_addresses_are_the_same_whatever_their_spelling(one, other, same):
    assert same_address(one, other) is same


async def silent(peer):
    """Greet, and take what comes."""
    await peer.say(b"220 mx.test\r\n")
    await peer.hear()


@pytest.mark.parametrize("ip", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.255.255.255", "::", "192.0.2.1"])
async def test_a_job_that_names_no_address_of_the_host_is_told_so(ip):
    async with Hostile(silent) as server, mailer(server.address) as client:
        result = await client.send(ips=[ip])
    assert (result.state, result.kind, result.pointer) == (State.PROCESS, Kind.ERROR, "/ips")
    assert server.peers == []


async def test_nothing_is_sent_from_another_address_than_the_one_asked_for(monkeypatch):
    monkeypatch.setattr("mailq.edges.sources.exists", lambda ip: True)
    async with Hostile(silent) as server, mailer(server.address) as client:
        result = await client.send(ips=["0.0.0.0"])
    assert (result.state, result.kind) == (State.BIND, Kind.ERROR)
    assert result.description == "the connection would leave from 127.0.0.1 instead of 0.0.0.0; nothing was sent"
    assert all(peer.heard == b"" for peer in server.peers)
