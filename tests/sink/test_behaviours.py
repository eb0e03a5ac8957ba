"""The sink misbehaves exactly as the address or the fault asks for, on a real connection."""

import asyncio
import ssl
import time

import pytest

from mailq.core.states import State
from mailq.sink.behaviours import Action, Behaviour, of_recipient, of_sender, parse_fault

PAYLOAD = b"Subject: x\r\n\r\nbody\r\n.\r\n"
REFUSED = Behaviour(State.RCPTTO, Action.ANSWER, 553, text="no such behaviour, see mailq sink --help")


@pytest.mark.parametrize(
    ("local", "behaviour"),
    [
        ("accept", None),
        ("accept+1", None),
        ("somebody-else", None),
        ("tempfail", Behaviour(State.RCPTTO, Action.ANSWER, 450)),
        ("tempfail-499-data", Behaviour(State.DATA, Action.ANSWER, 499)),
        ("REJECT-554-message+tag", Behaviour(State.MESSAGE, Action.ANSWER, 554)),
        ("reject-599", Behaviour(State.RCPTTO, Action.ANSWER, 599)),
        ("close-421-data", Behaviour(State.DATA, Action.ANSWER, 421)),
        ("drop", Behaviour(State.RCPTTO, Action.DROP)),
        ("stall-message", Behaviour(State.MESSAGE, Action.STALL)),
        ("reset-data", Behaviour(State.DATA, Action.RESET)),
        ("garbage-rcptto", Behaviour(State.RCPTTO, Action.GARBAGE)),
        ("drop-before-dot", Behaviour(State.MESSAGE, Action.CUT)),
        ("drop-after-dot", Behaviour(State.MESSAGE, Action.FORGET)),
        ("slow-250", Behaviour(State.MESSAGE, Action.ANSWER, delay=0.25)),
        ("slow-250-rcptto", Behaviour(State.RCPTTO, Action.ANSWER, delay=0.25)),
        (
            "greylist-3",
            Behaviour(State.RCPTTO, Action.ANSWER, 451, times=3, status="4.7.1", text="greylisted, try again"),
        ),
        ("reject-250", REFUSED),
        ("reject-55", REFUSED),
        ("stall-mailfrom", REFUSED),
        ("drop-somewhere", REFUSED),
        ("greylist-x", REFUSED),
        ("slow-9999999", REFUSED),
        ("slow", REFUSED),
        ("", None),
    ],
)
def test_the_words_of_a_recipient(local, behaviour):
    assert of_recipient(local) == behaviour


def test_a_sender_is_asked_about_mail_from_alone():
    assert of_sender("reject-553-mailfrom") == Behaviour(State.MAILFROM, Action.ANSWER, 553)
    assert of_sender("stall-mailfrom+x") == Behaviour(State.MAILFROM, Action.STALL)
    assert of_sender("reject-553") is None
    assert of_sender("bounces+x") is None


@pytest.mark.parametrize("text", ["intro", "intro=", "dns=drop", "ehlo=nonsense", "ehlo=250", "ehlo=broken", "=drop"])
def test_a_fault_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="choose"):
        parse_fault(text)


async def _replies(reader, count):
    return [await asyncio.wait_for(reader.readline(), 10) for _ in range(count)]


@pytest.fixture
async def until(dial):
    """Walk to `state` and send what is answered there; returns the reader and the writer."""

    async def walk(server, state, recipient, sender="a@x.test"):
        reader, writer = await dial(server)
        for name, line in _steps(recipient, sender):
            writer.write(line)
            if name == state:
                return reader, writer
            (reply,) = await _replies(reader, 1)
            assert reply[:1] in b"23", (name, reply)
        raise AssertionError(state)

    return walk


def _steps(recipient, sender):
    return [
        (State.INTRO, b""),
        (State.HELO, b"HELO c.test\r\n"),
        (State.MAILFROM, f"MAIL FROM:<{sender}>\r\n".encode()),
        (State.RCPTTO, f"RCPT TO:<{recipient}>\r\n".encode()),
        (State.DATA, b"DATA\r\n"),
        (State.MESSAGE, PAYLOAD),
    ]


PLACES = ("rcptto", "data", "message")


@pytest.mark.parametrize("place", PLACES)
async def test_codes(sink, place, until):
    server = await sink()
    reader, writer = await until(server, place, f"reject-571-{place}@y.test")
    assert await _replies(reader, 1) == [f"571 as asked for at {place}\r\n".encode()]
    writer.write(b"NOOP\r\n")
    assert await _replies(reader, 1) == [b"250 ok\r\n"]
    assert server.messages == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("word", "said"), [("drop", b""), ("close-421", b"421 as asked for at ")])
async def test_closed_connections(sink, place, word, said, until):
    server = await sink()
    reader, _writer = await until(server, place, f"{word}-{place}@y.test")
    rest = await asyncio.wait_for(reader.read(), 10)
    assert rest.startswith(said)
    assert bool(rest) == bool(said)
    assert server.messages == []


@pytest.mark.parametrize("place", PLACES)
async def test_reset_connections(sink, place, until):
    reader, _writer = await until(await sink(), place, f"reset-{place}@y.test")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)


@pytest.mark.parametrize("place", PLACES)
async def test_garbage(sink, place, until):
    reader, _writer = await until(await sink(), place, f"garbage-{place}@y.test")
    assert await _replies(reader, 1) == [b"\x00\x16\xff this is no SMTP reply\r\n"]


@pytest.mark.parametrize("place", PLACES)
async def test_stalls(sink, place, until):
    server = await sink()
    reader, _writer = await until(server, place, f"stall-{place}@y.test")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    assert server.open == 1
    assert server.messages == []


async def test_before_and_after_the_dot_differ_in_what_was_taken(sink, until):
    server = await sink()
    reader, writer = await until(server, "message", "drop-after-dot@y.test")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert server.accepted == 1
    reader, writer = await until(server, "data", "drop-before-dot@y.test")
    assert (await _replies(reader, 1))[0].startswith(b"354")
    writer.write(b"Subject: x\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert server.accepted == 1


async def test_greylisting_counts_each_pair(sink, until):
    server = await sink()
    codes = []
    for recipient, sender in [("g", "a"), ("g", "a"), ("g", "a"), ("g", "b"), ("h", "a")]:
        reader, _writer = await until(server, "rcptto", f"greylist-2+{recipient}@y.test", f"{sender}@x.test")
        codes.append((await _replies(reader, 1))[0][:3])
    assert codes == [b"451", b"451", b"250", b"451", b"451"]


async def test_slow_answers_come_and_the_message_is_taken(sink, until):
    server = await sink()
    began = time.monotonic()
    reader, _writer = await until(server, "message", "slow-150@y.test")
    assert await _replies(reader, 1) == [b"250 taken as 1\r\n"]
    assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize("place", ["intro", "helo", "mailfrom", "rcptto", "data", "message"])
@pytest.mark.parametrize(("fault", "said"), [("421", b"421"), ("554", b"554"), ("drop", b""), ("garbage", b"\x00")])
async def test_faults_of_the_server_come_first(sink, place, fault, said, until):
    server = await sink(faults=[f"{place}={fault}"])
    reader, _writer = await until(server, place, "greylist@y.test" if place == "rcptto" else "accept@y.test")
    reply = await asyncio.wait_for(reader.readline(), 10)
    assert reply[: len(said)] == said
    assert bool(reply) == bool(said)
    assert server.messages == []


async def test_a_refused_mail_from_is_chosen_by_the_sender(sink, until):
    reader, _writer = await until(await sink(), "mailfrom", "b@y.test", "tempfail-452-mailfrom@x.test")
    assert (await _replies(reader, 1))[0][:3] == b"452"


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("authplain", b"AUTH PLAIN AHUAcA=="),
        ("authlogin", b"AUTH LOGIN"),
        ("authusername", b"AUTH LOGIN|dQ=="),
        ("authpassword", b"AUTH LOGIN|dQ==|cA=="),
        ("authcram", b"AUTH CRAM-MD5"),
        ("authresponse", b"AUTH CRAM-MD5|dSB4"),
    ],
)
async def test_faults_while_logging_in(sink, state, line, dial):
    server = await sink(users={"u": "p"}, plaintext_auth=True, without=["PIPELINING"], faults=[f"{state}=454"])
    reader, writer = await dial(server)
    await _replies(reader, 1)
    writer.write(b"EHLO c.test\r\n")
    while (await _replies(reader, 1))[0][3:4] == b"-":
        pass
    *before, last = line.split(b"|")
    for words in before:
        writer.write(words + b"\r\n")
        assert (await _replies(reader, 1))[0][:3] == b"334"
    writer.write(last + b"\r\n")
    assert (await _replies(reader, 1))[0][:3] == b"454"


@pytest.mark.parametrize("fault", ["502", "drop", "broken"])
async def test_faults_at_starttls(sink, certificates, fault, dial):
    server = await sink(tls=True, faults=[f"starttls={fault}"])
    reader, writer = await dial(server)
    await _replies(reader, 1)
    writer.write(b"STARTTLS\r\n")
    reply = await asyncio.wait_for(reader.readline(), 10)
    assert reply[:3] == {"502": b"502", "drop": b"", "broken": b"220"}[fault]
    if fault == "broken":
        with pytest.raises(ssl.SSLError):
            await writer.start_tls(certificates.client_context(), server_hostname="localhost")


async def test_refused_ehlo_leaves_helo(sink, dial):
    reader, writer = await dial(await sink(faults=["ehlo=502"]))
    await _replies(reader, 1)
    writer.write(b"EHLO c.test\r\n")
    assert (await _replies(reader, 1))[0][:3] == b"502"
    writer.write(b"HELO c.test\r\n")
    assert await _replies(reader, 1) == [b"250 sink.test\r\n"]
