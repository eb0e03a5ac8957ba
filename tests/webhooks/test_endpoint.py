"""The HTTP client of webhooks: whom it refuses to reach, what it makes of answers, what it never tells."""

import asyncio
import contextlib
import socket

import pytest
from aiohttp import abc
from pydantic import ValidationError
from support.hooks import SECRET

from mailq.config.webhooks import EndpointConfig, WebhooksConfig
from mailq.core.webhooks.endpoint import AnswerMeaning
from mailq.edges.webhook_client import MAX_ANSWER, Poster, public, retry_after

PRIVATE = (
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.127.255.255", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.2.1",
    "198.18.0.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::1", "2001:db8::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1:7f00:0:100::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:0:7f00:1:8000:63bf:3fff:fdd2", "fe80::5efe:8.8.8.8",
    "2002:7f00:1::5efe:8.8.8.8",
)  # fmt: skip
PUBLIC = (
    "2002:808:808::1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address):
    assert not public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address):
    assert public(address)


def endpoint(url, **more):
    return EndpointConfig(**{"url": url, "allow_http": True, "secrets": [SECRET], "timeout": 2} | more)


async def post(config):
    async with Poster(config) as poster:
        return await poster(b"{}", "messageSent", "1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
async def test_a_private_address_is_refused_however_it_is_written(receiver, host):
    inside = await receiver()
    answer = await post(endpoint(f"http://{host}:{inside.port}/"))
    assert answer.meaning is AnswerMeaning.TROUBLE
    assert inside.requests == []
    if host in ("127.0.0.1", "localhost"):
        assert "is not a public address" in answer.reason


class Rebinding(abc.AbstractResolver):
    """A name that was public when somebody looked, and is not when it is connected to."""

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self): ...


async def test_the_address_connected_to_is_checked_and_not_the_name(receiver):
    inside = await receiver()
    async with Poster(endpoint(f"http://rebind.example:{inside.port}/")) as poster:
        poster._session.connector._resolver = Rebinding()
        answer = await poster(b"{}", "messageSent", "1")
    assert "127.0.0.1 is not a public address" in answer.reason
    assert inside.requests == []


async def test_a_redirect_is_not_followed_unless_allowed_nor_without_end(receiver):
    first = await receiver()
    first.answer = (302, {"Location": "/again"})
    refused = await post(endpoint(first.url, allow_private=True))
    assert (refused.status, refused.meaning, len(first.requests)) == (302, AnswerMeaning.TROUBLE, 1)
    endless = await post(endpoint(first.url, allow_private=True, follow_redirects=True))
    assert (endless.reason, len(first.requests)) == ("more than 3 redirects", 5)
    first.answer = (302, {"Location": "file:///etc/passwd"})
    elsewhere = await post(endpoint(first.url, allow_private=True, follow_redirects=True))
    assert elsewhere.reason == "redirected from http to 'file'"


async def serve(content):
    """Serve the same octets to everybody."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            writer.write(content)
            while endless and not writer.is_closing():
                await writer.drain()
                writer.write(b"x" * 65536)
            await writer.drain()
        writer.close()

    endless = content.endswith(b"\r\n\r\n")

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", 200),
        (b"HTTP/1.1 503 \x1b[31mred\r\nRetry-After: soon\r\nContent-Length: 0\r\n\r\n ", None),
        (b"SSH-2.0-OpenSSH\r\n\r\n ", None),
        (b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n ", None),
    ],
    ids=["endless", "control characters", "not http", "long line"],
)
async def test_answers_of_strangers_are_bounded_and_printable(content, status):
    server = await serve(content)
    async with server:
        answer = await post(endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", allow_private=True))
    assert answer.status == status
    assert answer.retry_after is None
    assert answer.reason.isprintable()
    assert len(answer.reason) < 300
    assert MAX_ANSWER < 1_000_000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("9" * 400, 3600),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
        ("Fri, 01 Jan 9999 00:00:00 GMT", 3600),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 3600),
        ("Mon, 20 Nov 9999999999 12:00:00 +0000", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 20 Nov 2030 12:00:00 +99999999999999", None),
        ("Mon, 20 Nov 2030 99:99:99 GMT", None),
        ("Mon, 20 Nov", None),
        (",", None),
        (" ", None),
        ("x", None),
        ("-1", None),
        ("1e9", None),
        ("nan", None),
        ("\u0667", None),
    ],
)
async def test_retry_after_is_bounded_and_what_cannot_be_understood_is_no_hint(receiver, value, seconds):
    assert retry_after([value]) == seconds
    if value.isascii():
        crm = await receiver(answer=(429, {"Retry-After": value}))
        answer = await post(endpoint(crm.url, allow_private=True))
        assert (answer.status, answer.retry_after) == (429, seconds)


async def test_no_text_holds_the_url():
    for url in ("http://127.0.0.1:1/token-in-path", "http://nowhere.invalid/token-in-path"):
        answer = await post(endpoint(url, allow_private=True))
        assert answer.meaning is AnswerMeaning.TROUBLE
        assert answer.reason
        assert "token" not in answer.reason
    assert "token" not in repr(endpoint("http://127.0.0.1:1/token-in-path"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://a.test/"},
        {"url": "ftp://a.test/"},
        {"url": "https:///x"},
        {"url": "https://user:pass@a.test/"},
        {"url": "https://a.test/\r\nX: y"},
        {"url": "https://a.test", "secrets": ["short"]},
        {"url": "https://a.test", "secrets": [SECRET] * 3},
        {"url": "https://a.test", "events": ["messageRead"]},
        {"url": "https://a.test", "categories": ["hrad"]},
        {"url": "https://a.test", "headers": {"X-Mailq-Signature": "mine"}},
        {"url": "https://a.test", "headers": {"X": "a\r\nb"}},
    ],
)
def test_wrong_endpoints_are_refused_without_quoting_them(wrong):
    with pytest.raises(ValidationError) as refused:
        EndpointConfig(**wrong)
    assert "pass" not in str(refused.value).replace("passes", "")


def test_wrong_tables_are_refused():
    for wrong in ({"endpoints": {"dead": {"url": "https://a.test"}}}, {"endpoints": {"A b": {"url": "https://a.test"}}},
                  {"pause": 10, "pause_max": 1}):  # fmt: skip
        with pytest.raises(ValidationError):
            WebhooksConfig(**wrong)
