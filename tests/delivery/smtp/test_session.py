"""Sessions used again, towards servers that say what each test wants them to say."""

import asyncio
import itertools
from base64 import b64decode
from random import Random

import pytest
from support.dialogue import Leave
from support.hostile import Hostile, mailer
from support.system import until

from mailq.core.states import Kind, State
from mailq.delivery.smtp.session import BLOCK

ANSWERS = {
    "MAIL": b"250 ok\r\n",
    "RCPT": b"250 ok\r\n",
    "DATA": b"354 ok\r\n",
    "dot": b"250 ok\r\n",
    "RSET": b"250 ok\r\n",
}
PLAIN = b"250-mx.test\r\n250 SIZE 1000\r\n"
PIPELINING = b"250-mx.test\r\n250-SIZE 1000\r\n250 PIPELINING\r\n"
BOTH = pytest.mark.parametrize("hello", [PLAIN, PIPELINING], ids=["plain", "pipelining"])


def server(hello, *messages):
    """Return a script that answers well, but to the commands of the first `messages` as told."""
    told = iter(messages)

    async def script(peer):
        answers = ANSWERS
        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(hello)
        while (verb := (await peer.hear())[:4].decode()) != "QUIT":
            if verb == "MAIL":
                answers = ANSWERS | next(told, {})
            await peer.say(answers[verb])
            if verb == "DATA" and answers[verb].startswith(b"354"):
                await peer.hear(b"\r\n.\r\n")
                await peer.say(answers["dot"])
        await peer.say(b"221 bye\r\n")

    return script


def verbs(peer):
    """Return the commands that a server heard."""
    return [line[:4].decode() for line in peer.heard.split(b"\r\n") if line[:4].decode() in {*ANSWERS, "QUIT"}]


@BOTH
async def test_nothing_is_reset_where_nothing_was_begun(hello):
    refused = server(hello, {"MAIL": b"550 no\r\n", "RCPT": b"503 no\r\n", "DATA": b"503 no\r\n"})
    async with Hostile(refused) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert [(result.state, result.kind) for result in results] == [
        (State.MAILFROM, Kind.ERROR),
        (State.MESSAGE, Kind.ACCEPTED),
    ]
    assert [result.facts["messages"] for result in results] == [1, 2]
    assert "RSET" not in verbs(mx.peers[0])


@BOTH
@pytest.mark.parametrize(
    "refusal",
    [{"RCPT": b"550 no\r\n", "DATA": b"503 no\r\n"}, {"DATA": b"451 no\r\n"}],
    ids=["recipient", "data"],
)
async def test_what_was_begun_is_reset_before_the_next(refusal, hello):
    async with Hostile(server(hello, refusal)) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert [result.delivered for result in results] == [False, True]
    assert len(mx.peers) == 1
    heard = verbs(mx.peers[0])
    assert heard.count("RSET") == 1
    assert heard.index("RSET") + 1 == len(heard) - 1 - heard[::-1].index("MAIL")


@BOTH
@pytest.mark.parametrize(
    "messages",
    [
        ({"RCPT": b"550 no\r\n", "DATA": b"503 no\r\n", "RSET": b"250 ok\r\n451 idle for too long\r\n"},),
        ({"RCPT": b"550 no\r\n", "DATA": b"503 no\r\n", "RSET": b"502 what?\r\n"},),
        ({}, {"MAIL": b"what?\r\n"}),
        ({}, {"MAIL": b"354 go ahead\r\n"}),
        ({}, {"MAIL": b"421 too many messages\r\n"}),
    ],
    ids=["spoken", "no-reset", "rubbish", "354", "421"],
)
async def test_a_used_session_that_is_no_good_any_more_costs_no_attempt(messages, hello):
    async with Hostile(server(hello, *messages)) as mx, mailer(mx.address) as client:
        await client.send()
        result = await client.send()

    assert result.delivered
    assert result.facts["messages"] == 1
    assert len(mx.peers) == 2


async def up_to_data(peer):
    """Greet, and hear MAIL, RCPT and DATA, which come in one write."""
    await peer.say(b"220 mx.test\r\n")
    await peer.hear()
    await peer.say(PIPELINING)
    await peer.hear(b"DATA\r\n")


async def test_the_last_words_of_a_used_session_are_no_answer_whatever_their_code():
    async def script(peer):
        await up_to_data(peer)
        await peer.say(b"250 ok\r\n250 ok\r\n354 ok\r\n")
        await peer.hear(b"\r\n.\r\n")
        await peer.say(b"250 ok\r\n")
        await peer.hear(b"DATA\r\n")
        await peer.say(b"451 4.7.0 Timeout waiting for client input\r\n")
        peer.hang_up()

    async with Hostile(script) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert [(result.delivered, result.facts["messages"]) for result in results] == [(True, 1)] * 2
    assert len(mx.peers) == 2


async def test_a_new_session_that_is_refused_and_closed_is_an_attempt():
    async def script(peer):
        await up_to_data(peer)
        await peer.say(b"451 4.7.0 not now\r\n")
        peer.hang_up()

    async with Hostile(script) as mx, mailer(mx.address) as client:
        result = await client.send()

    assert (result.state, result.code, result.description) == (State.MAILFROM, 451, "not now")
    assert len(mx.peers) == 1


@pytest.mark.parametrize(("verb", "later"), [("MAIL", State.RCPTTO), ("RCPT", State.DATA)])
async def test_half_an_answer_that_came_before_its_command_is_none(verb, later):
    early = {
        "MAIL": {"MAIL": b"250 ok\r\n25", "RCPT": b"0 ok\r\n"},
        "RCPT": {"RCPT": b"250 ok\r\n35", "DATA": b"4 ok\r\n"},
    }

    async with Hostile(server(PLAIN, early[verb])) as mx, mailer(mx.address, {"timeouts": {later: 0.2}}) as client:
        result = await client.send()

    assert (result.state, result.kind) == (later, Kind.TIMEOUT)
    assert verbs(mx.peers[0])[-1] == verb


async def test_421_behind_an_answer_is_the_answer_to_what_was_not_asked():
    async with Hostile(server(PLAIN, {"MAIL": b"250 ok\r\n421 shutting down\r\n"})) as mx, mailer(mx.address) as client:
        result = await client.send()

    assert (result.state, result.code, result.description) == (State.RCPTTO, 421, "shutting down")
    assert verbs(mx.peers[0]) == ["MAIL"]


@BOTH
async def test_the_answer_to_a_message_counts_whatever_flood_follows_it(hello):
    flood = b"250 taken\r\n" + b"451 flood\r\n" * 1000
    async with Hostile(server(hello, {"dot": flood})) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert [(result.delivered, result.description) for result in results] == [(True, "taken"), (True, "ok")]
    assert len(mx.peers) == 2


async def test_what_the_server_cannot_take_has_the_facts_of_the_session_too():
    async with Hostile(server(PIPELINING)) as mx, mailer(mx.address) as client:
        large = {"mime": "Subject: x\n\n" + "x" * 1000}
        first, second, third = [await client.send(**properties) for properties in ({}, large, {})]

    assert (second.state, second.kind, second.code) == (State.MAILFROM, Kind.ERROR, 552)
    known = ("session", "mta", "to", "from_port")
    assert [second.facts[name] for name in known] == [first.facts[name] for name in known]
    assert [result.facts["messages"] for result in (first, second, third)] == [1, 2, 3]
    assert second.facts["sent"] == {"connection": first.facts["sent"]["connection"], "data": 0}
    assert len(mx.peers) == 1


class Broken(Leave):
    """A claim with a bug."""

    def hand_over(self):
        raise RuntimeError("a bug")


@BOTH
async def test_a_session_on_which_a_bug_was_met_is_not_used_again(hello):
    """The server waits for a message there, and would take the next commands for it."""
    async with Hostile(server(hello)) as mx, mailer(mx.address) as client:
        failed = await client.send(Broken())
        assert not client.pool._idle
        result = await client.send()
        assert [str(bug) for bug in client.bugs] == ["a bug"]
        client.bugs.clear()

    assert not failed.delivered
    assert result.delivered
    assert result.facts["messages"] == 1
    assert len(mx.peers) == 2


async def told(hello, said, cut):
    """Return how an attempt ends towards a server that says this to MAIL, RCPT, DATA and what follows, in pieces."""

    async def script(peer):
        async def say(octets):
            for piece in cut(octets):
                await peer.say(piece)
                await asyncio.sleep(0)  # one octet more or less at a time: the client runs in the same loop

        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(hello)
        mail = await peer.hear()
        assert mail.startswith(b"MAIL")
        if hello is PIPELINING:
            await peer.hear(b"DATA\r\n")
            await say(b"".join(said[:3]))
        else:
            for answer in said[:2]:
                await say(answer)
                await peer.hear()
            await say(said[2])
        await peer.hear(b".\r\n")
        await say(said[3])

    async with Hostile(script) as mx, mailer(mx.address) as client:
        result = await client.send()
    return result.state, result.kind, result.code, result.status, result.description


@pytest.mark.parametrize("seed", range(8))
async def test_however_the_replies_come_the_pipelined_session_ends_as_the_plain_one(seed):
    dice = Random(seed)

    def anyhow(octets):
        cuts = sorted(dice.choices(range(len(octets)), k=dice.choice([0, 1, 3, len(octets)])))
        return [octets[start:end] for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True) if start < end]

    for _ in range(10):
        hoped = zip((250, 250, 354, 250), dice.choices([250, 354, 421, 450, 550], k=4), strict=True)
        codes = [good if dice.random() < 0.7 else bad for good, bad in hoped]
        said = [b"%d-first\r\n%d of %d\r\n" % (code, code, number) for number, code in enumerate(codes)]

        assert await told(PIPELINING, said, anyhow) == await told(PLAIN, said, lambda octets: [octets]), codes


async def test_a_session_is_for_one_source_and_one_login():
    """Neither another EHLO name or address, nor another password of the same user, ever speaks for a job."""
    seen = {}

    async def script(peer):
        login = None
        await peer.say(b"220 mx.test\r\n")
        name = (await peer.hear()).decode()
        await peer.say(b"250-mx.test\r\n250 AUTH PLAIN\r\n")
        while (line := (await peer.hear()).decode()) != "QUIT":
            if line.startswith("AUTH PLAIN "):
                login = b64decode(line.split()[2]).decode()
                await peer.say(b"235 ok\r\n")
                continue
            if line.startswith("MAIL"):
                seen.setdefault(line, []).append((name, peer.address, login))
            await peer.say(ANSWERS[line[:4]])
            if line == "DATA":
                await peer.hear(b"\r\n.\r\n")
                await peer.say(b"250 ok\r\n")
        await peer.say(b"221 bye\r\n")

    sources = [{"ip": "127.0.0.1", "ehlo": "one.test"}, {"ip": "127.0.0.2", "ehlo": "two.test"}]
    logins = [(None, None), ("anna", "x"), ("anna", "y"), ("bert", "x")]
    tables = {"sources": sources, "smarthost": {"plaintext_auth": True}, "tls": {"mode": "none"}}
    wanted = {}
    async with Hostile(script) as mx, mailer(mx.address, tables) as client:
        host, port = mx.address
        for number, (_, source, (user, password)) in enumerate(itertools.product(range(3), sources, logins)):
            login = {"username": user, "password": password} if user else {}
            smarthost = {"hostname": host, "port": port} | login
            result = await client.send(envelope=f"m{number}@a.test", ips=[source["ip"]], smarthost=smarthost)
            assert result.delivered
            spoken = f"\0{user}\0{password}" if user else None
            wanted[f"MAIL FROM:<m{number}@a.test>"] = [(f"EHLO {source['ehlo']}", source["ip"], spoken)]

    assert seen == wanted
    assert len(mx.peers) == len(sources) * len(logins)


async def test_a_large_message_is_not_written_faster_than_it_is_taken():
    told = asyncio.Event()

    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        for answer in (b"250 mx.test\r\n", b"250 ok\r\n", b"250 ok\r\n"):
            await peer.hear()
            await peer.say(answer)
        await peer.hear()
        with peer.deaf():
            await peer.say(b"354 go ahead\r\n")
            await told.wait()

    large = "Subject: x\n\n" + "y" * 9_000_000
    async with Hostile(script) as mx, mailer(mx.address, {"timeouts": {"message": 0.3}}) as client:
        result = await client.send(mime=large)
        told.set()
    taken = len(mx.peers[0].heard)

    assert (result.state, result.kind, result.in_doubt) == (State.MESSAGE, Kind.TIMEOUT, False)
    assert taken < len(large)
    assert result.facts["sent"]["connection"] - taken <= 2 * BLOCK
    assert result.facts["sent"]["data"] == 0


def filler(publication, length):
    """Return so many octets in lines of 70."""
    return (publication * 68 + "\r\n") * (length // 70) + publication * (length % 70)


@pytest.mark.parametrize("moved", range(-5, 6))
async def test_dots_are_doubled_wherever_a_block_ends(moved):
    """Lines that begin with dots stand across the end of the first block, the final dot across that of another."""
    head = "Subject: x\r\n\r\n"
    first = head + filler("a", BLOCK + moved - len(head) - 2) + "\r\n..\r\n.\r\n.MAIL FROM:<x@x.test>\r\n"
    stuffed = len(first) + 3
    mime = first + filler("b", 2 * BLOCK - stuffed + moved - 2) + "\r\n"
    async with Hostile(server(b"250 mx.test\r\n")) as mx, mailer(mx.address) as client:
        results = [await client.send(mime=mime), await client.send()]

    assert [(result.delivered, result.facts["messages"]) for result in results] == [(True, 1), (True, 2)]
    said = mx.peers[0].heard.decode().partition("DATA\r\n")[2]
    assert said.startswith(mime.replace("\r\n.", "\r\n..") + ".\r\nMAIL FROM:<a@a.test>\r\n")


async def test_an_idle_session_is_left_with_quit_after_its_time():
    limits = {"limits": [{"idle_timeout": 0.2}]}
    async with Hostile(server(PLAIN)) as mx, mailer(mx.address, limits) as client:
        await client.send()
        client.pool.sweep()
        assert client.pool.open_sessions == 1

        def swept():
            client.pool.sweep()
            return client.pool.open_sessions == 0

        await until(swept, deadline=5)
        heard = verbs(mx.peers[0])

    assert heard == ["MAIL", "RCPT", "DATA", "QUIT"]


async def test_a_session_may_grow_old_in_the_middle_of_a_message():
    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        for answer in (b"250 mx.test\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 ok\r\n"):
            await peer.hear()
            await peer.say(answer)
        await peer.hear(b"\r\n.\r\n")
        await asyncio.sleep(0.2)  # older than it may become
        client.pool.sweep()
        await peer.say(b"250 ok\r\n")
        await peer.hear()
        await peer.say(b"221 bye\r\n")

    async with Hostile(script) as mx, mailer(mx.address, {"limits": [{"session_age": 0.1}]}) as client:
        results = [await client.send() for _ in range(2)]

    assert [(result.delivered, result.facts["messages"]) for result in results] == [(True, 1)] * 2
    assert [verbs(peer) for peer in mx.peers] == [["MAIL", "RCPT", "DATA", "QUIT"]] * 2


@pytest.mark.parametrize("refused", ["greeting", "hello"])
async def test_quit_is_said_after_a_refused_opening_and_holds_up_nobody(refused):
    """RFC 5321 section 3.1: a server that greets with 554 waits for QUIT; this one answers only after the result."""
    told = asyncio.Event()

    async def script(peer):
        await peer.say(b"554 5.7.1 no service\r\n" if refused == "greeting" else b"220 mx.test\r\n")
        if refused == "hello":
            await peer.hear()
            await peer.say(b"451 4.3.0 not now\r\n")
        assert await peer.hear() == b"QUIT"
        await told.wait()
        await peer.say(b"221 bye\r\n")

    async with Hostile(script) as mx, mailer(mx.address, {"timeouts": {"quit": 5}}) as client:
        result = await client.send()
        assert client.pool.open_sessions == 1  # the receiver still counts this connection
        told.set()

    assert result.code == (554 if refused == "greeting" else 451)
    assert mx.peers[0].heard.endswith(b"QUIT\r\n")


async def test_a_blank_line_behind_an_answer_costs_nothing():
    async with Hostile(server(PLAIN, {"dot": b"250 ok\r\n\r\n"})) as mx, mailer(mx.address) as client:
        results = [await client.send() for _ in range(2)]

    assert all(result.delivered for result in results)
    assert len(mx.peers) == 1


async def test_a_greeting_that_refuses_tells_the_name_of_the_server_and_not_in_the_description():
    for greeting, mta, words in (
        ("451 mta1.example.com Please come back later", "mta1.example.com", "Please come back later"),
        ("554 5.7.1 no service for you", None, "no service for you"),
        ("554 mta1.example.com", "mta1.example.com", "mta1.example.com"),
    ):

        async def serve(peer, greeting=greeting):
            await peer.say(f"{greeting}\r\n".encode())
            peer.hang_up()

        async with Hostile(serve) as mx, mailer(mx.address) as client:
            result = await client.send()
        assert (result.state, result.facts.get("mta"), result.description) == (State.INTRO, mta, words)
