"""TLS 1.3 servers that turn a client down after its handshake: the message goes in clear, where that may be."""

import asyncio
import ssl

import pytest
import trustme
import uvloop
from support.hostile import Hostile, mailer

from mailq.core.states import Kind, State

OFFER = b"250-mx.test\r\n250 STARTTLS\r\n"
CA = trustme.CA()
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def wants_certificate():
    """Return the settings of a server that no client without a certificate may use, which TLS 1.3 tells it late."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    CA.issue_cert("127.0.0.1").configure_cert(context)
    CA.configure_trust(context)
    return context


async def script(peer):
    await peer.say(b"220 mx.test\r\n")
    await peer.hear()
    await peer.say(OFFER)
    while (verb := (await peer.hear())[:4]) != b"QUIT":
        if verb == b"STAR":
            await peer.say(b"220 go ahead\r\n")
            await peer.starttls(wants_certificate())
            await peer.hear()
            return
        await peer.say(b"354 ok\r\n" if verb == b"DATA" else b"250 ok\r\n")
        if verb == b"DATA":
            await peer.hear(b"\r\n.\r\n")
            await peer.say(b"250 taken\r\n")
    await peer.say(b"221 bye\r\n")


async def sent(tables, times=1):
    """Return the results of so many messages, and how many connections they took."""
    async with Hostile(script) as mx, mailer(mx.address, tables) as client:
        results = [await client.send() for _ in range(times)]
    return results, len(mx.peers)


@LOOPS
def test_a_server_that_wants_a_client_certificate_gets_the_message_in_clear(loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        results, connections = runner.run(sent({"limits": [{"messages_per_session": 1}]}, 2))

    assert [result.delivered for result in results] == [True, True]
    assert not any("cipher" in result.facts for result in results)
    assert connections == 3  # the second message knows


@LOOPS
@pytest.mark.parametrize("tls", [{"mode": "required"}, {"retry_plaintext": False}], ids=["required", "no-retry"])
def test_nothing_goes_in_clear_where_it_must_not(tls, loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        (result,), connections = runner.run(sent({"tls": tls}))

    assert result.state in (State.EHLO, State.STARTTLS)
    assert result.kind in (Kind.LOST, Kind.INVALID)
    assert result.code // 100 == 4
    assert connections == 1
