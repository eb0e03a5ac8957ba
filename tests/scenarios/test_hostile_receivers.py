"""Receivers that mean harm: each costs bounded time and memory, ends in the right place, and is hung up on."""

import asyncio
import ssl
import tracemalloc
from random import Random
from time import process_time

import pytest
import trustme
from support.hostile import Hostile, mailer

from mailq.core.smtp.reply import MAX_REPLY
from mailq.core.states import Kind, State
from mailq.delivery.smtp import opening

SOON = 0.2
"""The clock of the state under attack."""

TAKEN = 8 * 1024 * 1024
"""Octets that a client may have taken before it hangs up: mostly what the system's buffers hold."""

HELD = 4 * 1024 * 1024
"""Octets of memory that an attack may cost at its worst."""

PLAIN = b"250-mx.test\r\n250 8BITMIME\r\n"
PIPELINING = b"250-mx.test\r\n250 PIPELINING\r\n"
ORDER = (State.INTRO, State.EHLO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE)
CODES = dict(zip(ORDER, (b"220", b"250", b"250", b"250", b"354", b"250"), strict=True))


def until(state, attack, *, hello=PLAIN):
    """Return a script that answers well until `state`, and then attacks."""

    async def script(peer):
        for each in ORDER:
            if each is not State.INTRO:
                await peer.hear(b"\r\n.\r\n" if each is State.MESSAGE else b"\r\n")
            if each is state:
                await attack(peer, CODES[each])
                return
            await peer.say(hello if each is State.EHLO else CODES[each] + b" ok\r\n")

    return script


ENDLESS = {
    "one line": lambda code: code + b"-" + b"x" * 4000,
    "digits": lambda _: b"2",
    "continuation lines": lambda code: code + b"-x\r\n",
    "long continuation lines": lambda code: code + b"-" + b"y" * 2000 + b"\r\n",
    "NULs": lambda _: b"\0" * 1000,
    "line ends": lambda _: b"\r\n" * 500,
    "carriage returns": lambda code: code + b" ok\r" * 100,
    "TLS": lambda _: b"\x16\x03\x03\x40\x00" + Random(1).randbytes(1000),
    "HTML": lambda _: b"<html>\r\n" * 50,
}

LEGIBLE = {"one line", "continuation lines", "long continuation lines", "carriage returns"}
"""Attacks that begin with a code: that decides, and the session is over."""


def check_legible(result, state):
    """An answer whose code was read counts; nothing that comes after it does."""
    if state is State.MESSAGE:
        assert result.delivered
    else:
        assert (result.state, result.kind) == (ORDER[ORDER.index(state) + 1], Kind.INVALID)
        assert not result.in_doubt or result.state is State.MESSAGE


@pytest.mark.parametrize("state", ORDER)
@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_is_ended(name, state):
    said = ENDLESS[name]

    async def attack(peer, code):
        await peer.repeat(said(code) * (MAX_REPLY // len(said(code)) + 1))

    tracemalloc.start()
    try:
        async with Hostile(until(state, attack)) as server, mailer(server.address) as client:
            result = await client.send()
            assert not client.pool._idle
        assert tracemalloc.get_traced_memory()[1] < HELD
    finally:
        tracemalloc.stop()

    assert server.said < TAKEN
    assert len(server.peers) == 1
    if name in LEGIBLE:
        check_legible(result, state)
        return
    assert (result.state, result.kind, result.code) == (state, Kind.INVALID, 451)
    assert result.description.isprintable()
    assert len(result.description) < 600
    assert result.in_doubt is (state is State.MESSAGE)


@pytest.mark.parametrize("state", ORDER)
async def test_lines_without_end_that_come_one_by_one_cost_little(state):
    """It was 14 s of CPU for 32 kB, in which the process did nothing else."""

    async def attack(peer, code):
        await peer.repeat(code + b"-\n")

    started = process_time()
    async with Hostile(until(state, attack)) as server, mailer(server.address) as client:
        result = await client.send()

    check_legible(result, state)
    assert process_time() - started < 5


@pytest.mark.parametrize("state", ORDER)
async def test_of_ten_thousand_lines_the_code_counts(state):
    async def attack(peer, code):
        await peer.say((code + b"-line\r\n") * 10_000 + code + b" end\r\n")

    async with Hostile(until(state, attack)) as server, mailer(server.address) as client:
        result = await client.send()

    check_legible(result, state)


@pytest.mark.parametrize("state", ORDER)
@pytest.mark.parametrize("piece", [b"x", b"-\r\n", b""], ids=["octets", "lines", "silence"])
async def test_the_clock_is_for_the_whole_reply_however_it_drips(piece, state):
    async def attack(peer, code):
        if piece:
            await peer.say(code + b"-x\r\n")
            await peer.repeat(code + piece if piece.endswith(b"\n") else piece, pause=SOON / 10)

    clocks = {"timeouts": {state: SOON}}
    async with Hostile(until(state, attack)) as server, mailer(server.address, clocks) as client:
        result = await client.send()

    assert (result.state, result.kind) == (state, Kind.TIMEOUT)
    assert SOON * 1000 <= result.timing[state] < SOON * 8000
    assert result.in_doubt is (state is State.MESSAGE)


@pytest.mark.parametrize("state", [State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE])
async def test_a_flood_of_replies_is_not_taken_for_answers(state):
    async def attack(peer, code):
        await peer.repeat((code + b" flood\r\n") * 1000)

    async with Hostile(until(state, attack)) as server, mailer(server.address) as client:
        result = await client.send()
        assert not client.pool._idle

    assert result.kind is Kind.INVALID or result.delivered
    assert server.said < TAKEN
    # What comes after the one reply that was asked for may still be unread when that has been taken.
    assert result.state in ORDER[ORDER.index(state) :]


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ([b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n250 f\r\n"], State.EHLO),
        ([b"220 a\r\n", PLAIN + b"250 c\r\n250 d\r\n354 e\r\n250 f\r\n"], State.MAILFROM),
        ([b"220 a\r\n", PLAIN, b"250 c\r\n250 d\r\n354 e\r\n250 f\r\n"], State.RCPTTO),
        ([b"220 a\r\n", PLAIN, b"250 c\r\n", b"250 d\r\n354 e\r\n250 f\r\n"], State.DATA),
        ([b"220 a\r\n", PLAIN, b"250 c\r\n", b"250 d\r\n", b"354 e\r\n250 f\r\n"], State.MESSAGE),
    ],
)
async def test_nothing_is_delivered_by_answers_that_came_before_their_commands(script, state):
    async def speak(peer):
        await peer.say(script[0])
        for said in script[1:]:
            await peer.hear()
            await peer.say(said)

    async with Hostile(speak) as server, mailer(server.address) as client:
        result = await client.send()
        assert not client.pool._idle

    assert not result.delivered
    assert (result.state, result.kind) == (state, Kind.INVALID)


async def test_of_a_long_list_of_extensions_the_first_hundred_count():
    hello = b"250-mx.test\r\n" + b"".join(b"250-X%d y\r\n" % number for number in range(2000)) + b"250 PIPELINING\r\n"
    assert len(hello) < MAX_REPLY

    async def attack(peer, _code):
        await peer.say(hello)
        for answer in (b"250 a\r\n", b"250 b\r\n", b"354 c\r\n"):
            await peer.hear()
            await peer.say(answer)
        await peer.hear(b"\r\n.\r\n")
        await peer.say(b"250 taken\r\n")

    async with Hostile(until(State.EHLO, attack)) as server, mailer(server.address) as client:
        result = await client.send()
        opened = [held.session for idle in client.pool._idle.values() for held in idle]

    assert result.delivered
    assert [len(each.offered) for each in opened] == [100]
    assert "pipelining" not in opened[0].offered


def test_extensions_are_bounded_whatever_they_are():
    reply = opening.Reply(250, None, "\n".join(["mx", *(f"{number}={'z' * 100}" for number in range(1000))]))
    assert len(opening.extensions(reply)) == 100


CA = trustme.CA()


def context(*, copies=1):
    """Return a server's TLS settings; with `copies` its chain is so many times longer than it should be."""
    leaf = CA.issue_cert("127.0.0.1", "mx.test")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with leaf.private_key_and_cert_chain_pem.tempfile() as path:
        with open(path, "ab") as file:  # noqa: PTH123 - trustme gives a path as text
            file.write(CA.cert_pem.bytes() * (copies - 1))
        made.load_cert_chain(path)
    return made


OFFER = b"250-mx.test\r\n250 STARTTLS\r\n"
REQUIRED = {"tls": {"mode": "required"}, "timeouts": {"starttls": SOON}}


def offering(attack):
    """Return a script that offers STARTTLS, says yes, and then attacks."""

    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(OFFER)
        assert await peer.hear() == b"STARTTLS"
        await peer.say(b"220 go ahead\r\n")
        await attack(peer)

    return script


async def noise(peer):
    await peer.repeat(Random(2).randbytes(20_000))


async def records(peer):
    await peer.repeat(b"\x16\x03\x03\x00\x04\x02\x00\x00\x00" * 100)


async def drip(peer):
    await peer.say(b"\x16")  # so far a record of a handshake
    await peer.say(b"\x03")
    await asyncio.sleep(SOON / 2)
    await peer.say(b"\x03\x00")


async def text(peer):
    await peer.repeat(b"250 ok\r\n" * 100)


async def endless_chain(peer):
    await peer.starttls(context(copies=400))


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (noise, Kind.INVALID),
        (records, Kind.INVALID),
        (text, Kind.INVALID),
        (drip, Kind.TIMEOUT),
        (endless_chain, Kind.INVALID),
    ],
)
async def test_a_handshake_that_is_none(attack, kind):
    # Only a server that drips is to meet the clock: to read 400 certificates takes a busy machine a while.
    tables = REQUIRED if kind is Kind.TIMEOUT else REQUIRED | {"timeouts": {"starttls": 10}}
    async with Hostile(offering(attack)) as server, mailer(server.address, tables) as client:
        result = await client.send()

    assert (result.state, result.kind) == (State.STARTTLS, kind)
    assert result.code // 100 == 4
    assert server.said < TAKEN


async def test_rubbish_between_tls_records_ends_the_session():
    async def attack(peer):
        await peer.starttls(context())
        await peer.hear()
        peer.raw(Random(3).randbytes(20_000))

    tables = REQUIRED | {"timeouts": {"ehlo": 2}}
    async with Hostile(offering(attack)) as server, mailer(server.address, tables) as client:
        result = await client.send()

    assert result.state is State.EHLO
    assert result.kind in (Kind.LOST, Kind.INVALID)


async def test_octets_smuggled_before_tls_are_no_answer_after_it():
    """RFC 3207 section 4.2: what came with the 220 is forgotten, or a man in the middle could speak for the server."""

    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(OFFER)
        await peer.hear()
        await peer.say(b"220 go ahead\r\n250-mx.test\r\n250 AUTH PLAIN\r\n")
        await peer.starttls(context())
        await peer.hear()
        await peer.say(PLAIN)
        await peer.hear()
        await peer.say(b"550 5.7.1 true\r\n")

    async with Hostile(script) as server, mailer(server.address, {"tls": {"mode": "required"}}) as client:
        result = await client.send()

    assert (result.state, result.description) in ((State.MAILFROM, "true"), (State.STARTTLS, "TLS handshake failed"))


@pytest.mark.parametrize("answer", [b"220 go ahead\r\n", b"454 not now\r\n", b"22"])
async def test_an_answer_to_starttls_that_came_before_it_was_asked_is_none(answer):
    async def script(peer):
        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(OFFER + answer)

    async with Hostile(script) as server, mailer(server.address, REQUIRED) as client:
        result = await client.send()

    assert (result.state, result.kind) == (State.STARTTLS, Kind.INVALID)
    assert server.peers[0].heard == b"EHLO client.example\r\n"


class Deceiver:
    """Answers each transaction by dice, and glues replies that nobody asked for to the answers to `verbs`.

    Every word of it names its recipient.
    """

    def __init__(self, seed, *, pipelining, verbs=(b"DATA", b".")):
        self._dice = Random(seed)
        self._hello = PIPELINING if pipelining else PLAIN
        self._verbs = verbs
        self.taken = []

    def answer(self, code, name, verb):
        """Return a reply, and sometimes more of them in the same octets."""
        dice = self._dice
        said = [code] if dice.random() < 0.9 else [dice.choice([250, 354, 421, 450, 550])]
        if verb in self._verbs and dice.random() < 0.25:
            said += dice.choices([250, 354, 450, 550], k=dice.randint(1, 5))
        strays = [b"\n", b"\0\r\n", b"250", b"250-x\r\n"] if verb in self._verbs and dice.random() < 0.1 else [b""]
        return said[0], b"".join(b"%d of %s\r\n" % (each, name) for each in said) + dice.choice(strays)

    async def __call__(self, peer):
        name = b"nobody"
        await peer.say(b"220 mx.test\r\n")
        while line := await peer.hear():
            verb = line[:4]
            if verb == b"EHLO":
                await peer.say(self._hello)
                continue
            if verb == b"QUIT":
                await peer.say(b"250 done\r\n")
                continue
            if verb == b"MAIL":
                name = line.partition(b"<")[2].partition(b"@")[0]
            code, said = self.answer(354 if verb == b"DATA" else 250, name, verb)
            await peer.say(said)
            if verb == b"DATA" and code == 354:
                message = await peer.hear(b"\r\n.\r\n")
                code, said = self.answer(250, name, b".")
                subject = message.partition(b"Subject: ")[2].partition(b"\r\n")[0]
                self.taken += [(name.decode(), subject.decode())] * (code == 250)
                await peer.say(said)


# Of what was asked in one write nobody can tell to which question an answer too many belongs.
@pytest.mark.parametrize(
    ("pipelining", "verbs"),
    [(True, (b"DATA", b".", b"RSET")), (False, (b"MAIL", b"RCPT", b"DATA", b".", b"RSET"))],
    ids=["pipelining", "no-pipelining"],
)
@pytest.mark.parametrize("seed", range(4))
async def test_no_job_gets_the_answer_of_another(seed, pipelining, verbs):
    deceiver = Deceiver(seed, pipelining=pipelining, verbs=verbs)
    tables = {"timeouts": dict.fromkeys(("mailfrom", "rcptto", "data", "message"), SOON)}
    async with Hostile(deceiver) as server, mailer(server.address, tables) as client:

        async def send(number):
            name = f"j{number}"
            result = await client.send(
                envelope=f"{name}@a.test", recipient=f"{name}@b.test", mime=f"Subject: {name}\n\n."
            )
            return name, result

        results = [await send(number) for number in range(20)]
        results += await asyncio.gather(*(send(number) for number in range(20, 40)))

    for name, result in results:
        words = result.description.rpartition("of ")
        assert not words[1] or words[2] == name
        assert not result.delivered or (name, name) in deceiver.taken
    assert any(result.delivered for _, result in results)
    assert any(first.heard.count(b"MAIL") > 1 for first in server.peers)
