"""Receivers that take a limited number of messages per session: no job pays for that."""

import asyncio

import pytest
from support.hostile import Hostile, mailer
from support.limited import HELLO, PLAIN, Receiver

from mailq.core.states import Kind, State
from mailq.delivery.smtp import session_limits

REFUSALS = [
    (b"DATA", b"452 4.4.5 Maximum number of messages per session exceeded.", False),
    (b"MAIL", b"452 4.3.2 too many messages in this connection", False),
    (b"MAIL", b"450 4.3.2 not now", False),
    (b"RCPT", b"450 4.7.0 too many messages in this session", False),
    (b"MAIL", b"550 5.7.0 too many messages in this session", False),
    (b"MAIL", b"503 5.5.1 sender already specified", False),
    (b"MAIL", b"421 4.7.0 maximum message count per session reached", True),
    (b"RCPT", b"421 4.7.0 too many messages in this session", True),
    (b"DATA", b"421 4.7.0 closing", True),
]


@pytest.mark.parametrize("hello", [PLAIN, HELLO], ids=["plain", "pipelining"])
@pytest.mark.parametrize(("verb", "refusal", "closes"), REFUSALS)
async def test_the_message_goes_on_a_new_session(verb, refusal, closes, hello):
    receiver = Receiver(1, verb, refusal, hello=hello, closes=closes)
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert [(result.delivered, result.facts["messages"]) for result in results] == [(True, 1)] * 2
    assert len(mx.peers) == 2
    assert receiver.refused == 1
    assert receiver.polite == (1 if closes else 2)


@pytest.mark.parametrize(
    ("verb", "refusal", "state"),
    [
        (b"RCPT", b"550 5.1.1 user unknown", State.RCPTTO),
        (b"RCPT", b"450 4.7.1 greylisted", State.RCPTTO),
        (b"MAIL", b"550 5.7.1 sender refused", State.MAILFROM),
        (b"DATA", b"451 4.3.0 not now", State.DATA),
    ],
)
async def test_what_is_about_the_job_is_not_asked_again(verb, refusal, state):
    receiver = Receiver(1, verb, refusal)
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        await client.send()
        result = await client.send()
        assert client.session_limits == []

    assert (result.state, result.kind, result.facts["messages"]) == (state, Kind.ERROR, 2)
    assert (len(mx.peers), receiver.refused) == (1, 1)


async def test_the_answer_of_the_new_session_is_the_truth():
    """The receiver has changed its mind altogether: one session is asked again, and no third one."""
    receiver = Receiver(1, b"MAIL", b"452 4.3.2 too many messages in this session")
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        await client.send()
        receiver.most = 0
        result = await client.send()
        assert client.session_limits == []

    assert (result.state, result.kind, result.code) == (State.MAILFROM, Kind.ERROR, 452)
    assert (len(mx.peers), receiver.refused) == (2, 2)


@pytest.mark.parametrize(
    ("refusal", "refused"),
    [(b"550 5.7.0 too many messages in this session", 1), (b"452 4.3.2 not now", 2)],
    ids=["named", "unnamed"],
)
async def test_a_limit_is_learnt_and_then_kept(refusal, refused):
    receiver = Receiver(3, b"MAIL", refusal)
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(15)]
        assert client.session_limits == [3]

    assert all(result.delivered for result in results)
    assert len(mx.peers) == 5
    assert receiver.refused == refused


async def test_a_limit_is_forgotten_after_a_while(monkeypatch):
    """The receiver takes more by then, which the next long session shows."""
    now = session_limits.monotonic()
    monkeypatch.setattr(session_limits, "monotonic", lambda: now)
    receiver = Receiver(2, b"MAIL", b"550 5.7.0 too many messages in this session")
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        for _ in range(4):
            await client.send()
        receiver.most = 100
        now += 3601
        results = [await client.send() for _ in range(6)]

    assert [result.facts["messages"] for result in results] == [1, 2, 3, 4, 5, 6]
    assert len(mx.peers) == 3
    assert receiver.refused == 1


async def test_a_server_that_closes_idle_sessions_with_421_has_no_limit():
    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        for answer in (PLAIN, b"250 ok\r\n", b"250 ok\r\n", b"354 ok\r\n"):
            await peer.hear()
            await peer.say(answer)
        await peer.hear(b"\r\n.\r\n")
        await peer.say(b"250 ok\r\n421 4.4.2 idle for too long\r\n")
        peer.hang_up()

    async with Hostile(script) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(4)]
        assert client.session_limits == []

    assert all(result.delivered for result in results)
    assert len(mx.peers) == 4


@pytest.mark.parametrize(("verb", "refusal", "closes"), [REFUSALS[0], REFUSALS[2], REFUSALS[7]])
async def test_four_hundred_jobs_to_a_receiver_of_ten_messages_a_session(verb, refusal, closes):
    """All defaults: each is delivered in its first attempt, and none is put off, which `send` would tell."""
    receiver = Receiver(10, verb, refusal, hello=HELLO, closes=closes)
    async with Hostile(receiver) as mx, mailer(mx.address) as client:
        results = await asyncio.gather(*(client.send() for _ in range(400)))

    assert sum(result.delivered for result in results) == receiver.taken == 400
    assert receiver.refused <= 40
    assert len(mx.peers) <= 80
