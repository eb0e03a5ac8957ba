"""Producers that mean harm: one job is one envelope and one message, for lax receivers too, and the log stays whole."""

import gzip
import re

import orjson
import pytest
from support.hostile import Hostile, mailer
from support.system import until

from mailq.core.broker.publications import public
from mailq.core.content.mime import normalize
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.states import State

ENDS = [
    "\r\n.\r\n", "\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\n.\r", "\r.\r\n", "\n.\r", "\r.\n", "\n\r.\r\n",
    "\r\r\n.\r\r\n",
    "\r\n\0.\r\n", "\r\n.\0\r\n", "\r\n..\r\n", "\r\n.\r\n.\r\n", "\x0b.\x0b", "\x85.\x85", "\u2028.\u2028",
    "\r\n .\r\n",
    "\u560a.\u560a", "\r\n.\r\n\r\n.\r\n", "\r\n.",
]  # fmt: skip
"""Ends of a message as lax receivers see them: SMTP smuggling of 2023, and relatives."""

SECRET = "hunter2"

EVIL = "MAIL FROM:<evil@evil.test>\r\nRCPT TO:<victim@{domain}>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled"


def smuggling(end, domain):
    return f"Subject: true\n\nbefore{end}{EVIL.format(domain=domain)}{end}QUIT\r\n"


def arrives(end):
    """Return what a receiver gets: line ends are CR LF, and NUL octets are removed before dots are doubled."""
    return normalize(smuggling(end, "b.test").replace("\0", ""))


async def recorder(peer):
    """Take whatever comes, in good faith."""
    await peer.say(b"220 mx.test\r\n")
    while (line := await peer.hear()) != b"QUIT":
        offers = b"250-mx.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-AUTH PLAIN LOGIN\r\n250 PIPELINING\r\n"
        await peer.say({b"EHLO": offers, b"DATA": b"354 go\r\n", b"AUTH": b"235 in\r\n"}.get(line[:4], b"250 ok\r\n"))
        if line == b"DATA":
            await peer.hear(b"\r\n.\r\n")
            await peer.say(b"250 taken\r\n")


@pytest.mark.parametrize("end", ENDS, ids=[repr(end) for end in ENDS])
async def test_however_lax_the_receiver_there_is_one_end(end):
    async with Hostile(recorder) as server, mailer(server.address) as client:
        result = await client.send(mime=smuggling(end, "b.test"))

    assert result.delivered
    (peer,) = server.peers
    heard = peer.heard
    assert heard.count(b"\r") == heard.count(b"\n") == heard.count(b"\r\n")
    assert len(re.findall(rb"(?:^|[\r\n])\.(?:[\r\n]|$)", heard)) == 1
    commands, _, rest = heard.partition(b"DATA\r\n")
    message, _, rest = rest.partition(b"\r\n.\r\n")
    assert [line[:4] for line in commands.splitlines()] == [b"EHLO", b"MAIL", b"RCPT"]
    assert rest == b"QUIT\r\n"
    assert re.sub(rb"(?m)^\.", b"", message + b"\r\n") == arrives(end)


async def test_the_sink_gets_one_message_of_each(sink):
    receiver = await sink()
    async with mailer((receiver.host, receiver.port)) as client:
        for number, end in enumerate(ENDS):
            result = await client.send(recipient=f"accept+{number}@b.test", mime=smuggling(end, "b.test"))
            assert result.delivered

    assert [message.recipients[0].address for message in receiver.messages] == [
        f"accept+{number}@b.test" for number in range(len(ENDS))
    ]
    assert [message.content for message in receiver.messages] == [arrives(end) for end in ENDS]


NUL_FREE = [end for end in ENDS if "\0" not in end]  # Postfix strips NULs, and Exim turns them into spaces


async def test_postfix_gets_one_message_of_each(postfix):
    async with mailer((postfix.host, postfix.port)) as client:
        for number, end in enumerate(NUL_FREE):
            result = await client.send(recipient=f"smuggled-{number}@postfix.test", mime=smuggling(end, "postfix.test"))
            assert result.delivered

    for number, end in enumerate(NUL_FREE):
        assert await postfix.wait(f"smuggled-{number}@postfix.test") == [normalize(smuggling(end, "postfix.test"))]
    assert postfix.raw("victim@postfix.test") == []


async def test_exim_gets_one_message_of_each(exim):
    receiver = exim()
    async with mailer(("127.0.0.1", receiver.port)) as client:
        for number, end in enumerate(NUL_FREE):
            result = await client.send(recipient=f"smuggled-{number}@exim.test", mime=smuggling(end, "exim.test"))
            assert result.delivered

    await until(receiver.idle)
    arrived = receiver.raw()
    assert len(arrived) == len(NUL_FREE)
    assert not any(b"victim@" in raw.partition(b"\n\n")[0] for raw in arrived)


INJECTIONS = [
    "\r\nRCPT TO:<victim@b.test>",
    "\nDATA",
    "\r",
    "\0",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\u2028",
    " SIZE=1",
    ">",
    "> X=Y",
]
PLACES = {
    "recipient": lambda evil: {"recipient": f"b{evil}@b.test"},
    "recipient's domain": lambda evil: {"recipient": f"b@b{evil}.test"},
    "recipient in quotes": lambda evil: {"recipient": f'"b{evil}"@b.test'},
    "envelope": lambda evil: {"envelope": f"a@a.test{evil}"},
    "envelope in quotes": lambda evil: {"envelope": f'"a{evil}"@a.test'},
    "notify": lambda evil: {"dsn": {"notify": f"NEVER{evil}"}},
    "ret": lambda evil: {"dsn": {"ret": f"FULL{evil}"}},
    "orcpt": lambda evil: {"dsn": {"orcpt": f"rfc822;b@b.test{evil}"}},
    "type of orcpt": lambda evil: {"dsn": {"orcpt": f"rfc822{evil};b@b.test"}},
    "envid": lambda evil: {"dsn": {"envid": f"e{evil}"}},
    "id": lambda evil: {"id": f"i{evil}"},
    "subject": lambda evil: {"mime": f"Subject: s{evil}\n\nx\n"},
}
COMMAND = re.compile(
    rb"EHLO client\.example|MAIL FROM:<[^\x00-\x1f\x7f]*>(?: (?:BODY|SMTPUTF8|RET|ENVID)[^\x00-\x20\x7f]*)*"
    rb"|RCPT TO:<[^\x00-\x1f\x7f]*>(?: (?:NOTIFY|ORCPT)=[^\x00-\x20\x7f]*)*|RSET|DATA|QUIT"
)


@pytest.mark.parametrize("place", PLACES)
async def test_nothing_that_a_job_says_becomes_a_command(place):
    async with Hostile(recorder) as server, mailer(server.address) as client:
        for evil in INJECTIONS:
            try:
                result = await client.send(**PLACES[place](evil))
            except InvalidJobError:
                continue
            assert result.delivered or result.code // 100 == 5
            assert result.description.isprintable()
            assert str(result.facts.get("command", "")).isprintable() or evil == "\u2028"

    for peer in server.peers:
        commands = re.sub(rb"DATA\r\n.*?\r\n\.\r\n", b"DATA\r\n", peer.heard, flags=re.DOTALL)
        lines = commands.split(b"\r\n")
        assert lines.pop() == b""
        assert all(COMMAND.fullmatch(line) for line in lines), lines
        assert not any(line.startswith(b"RCPT TO:<victim") for line in lines)
        assert sum(line.startswith(b"MAIL") for line in lines) == sum(line.startswith(b"RCPT") for line in lines)


@pytest.mark.parametrize("evil", ["\t", "\x01", "\x1b[2J", "\u2028", "é", " x"])
async def test_credentials_stay_within_their_line(evil):
    async with Hostile(recorder) as server:
        smarthost = {"hostname": "127.0.0.1", "port": server.address[1], "username": f"u{evil}", "password": f"p{evil}"}
        async with mailer(server.address, {"smarthost": {"plaintext_auth": True}}) as client:
            result = await client.send(smarthost=smarthost)

    assert result.delivered
    commands = server.peers[0].heard.partition(b"DATA")[0].split(b"\r\n")
    assert all(line.isascii() and line.decode().isprintable() for line in commands)
    assert [line[:4] for line in commands if line] == [b"EHLO", b"AUTH", b"MAIL", b"RCPT"]


@pytest.mark.parametrize(
    "smarthost", [f"smtp://u:{SECRET}@h", [{"password": SECRET}], {"hostname": 1, "password": SECRET}]
)
def test_a_password_out_of_place_is_not_told(smarthost):
    document = {"recipient": "b@b.test", "smarthost": smarthost}
    with pytest.raises(InvalidJobError) as caught:
        Job.parse(orjson.dumps(document), limit=1000)
    assert SECRET not in caught.value.reason
    assert SECRET not in orjson.dumps(public(caught.value.document, None)).decode()


@pytest.mark.parametrize("evil", ["\0", "é", "x", "\r\nx", "\u202e"])
@pytest.mark.parametrize("place", ["ips", "smarthost"])
async def test_a_scope_is_part_of_no_address(place, evil):
    """Python takes any text for a scope (RFC 4007), sockets do not."""
    properties = {"ips": [f"::1%{evil}"]} if place == "ips" else {"smarthost": {"hostname": f"2001:db8::1%{evil}"}}
    async with mailer(("127.0.0.1", 9)) as client:
        try:
            result = await client.send(**properties)
        except InvalidJobError:
            return
    assert result.state in (State.PROCESS, State.DNS)
    assert result.description.isprintable() or evil == "\u202e"


BODIES = [
    b'{"recipient":"b\\r\\n@b.test"}',
    b'{"recipient":"accept@b.test","queues":{"\\r\\nx":"y"},"mime":"x"}',
    b'{"recipient":"accept@b.test","queues":{"results":"a\\u0000b"},"mime":"x"}',
    b'{"recipient":"accept@b.test","tags":[' + b"1," * 100_000 + b'1],"mime":"x"}',
    b'{"recipient":"accept@b.test","id":"\\u001b[2J","mime":"x"}',
    b'{"recipient":"\\"> SIZE=1\\"@b.test","mime":"Subject: x\\n\\nx"}',
    b'{"recipient":"accept@b.test","x":' + b"[" * 100_000,
    b"\x00\xff\r\nevent=forged",
    gzip.compress(b"[" * 200_000_000, 9)[:-1],
]
SOUND = [
    b'{"recipient":"accept+1@b.test","mime":"Subject: =?utf-7?q?+2AA-?=\\n\\nx"}',
    b'{"recipient":"accept+2@b.test","mime":"Subject: \\u001b[2J\\u2028\\n.\\n"}',
]


async def test_a_whole_worker_takes_them_all_and_goes_on(system, sink, tmp_path):
    receiver = await sink()
    mail = await system(receiver)

    for body in BODIES:
        encoding = "gzip" if body.startswith(b"\x1f\x8b") else None
        await mail.rabbit.publish("outbox", body, content_encoding=encoding)
    for body in SOUND:
        await mail.rabbit.publish("outbox", body)

    found = [await mail.get("results") for _ in range(len(BODIES) - 3 + len(SOUND))]
    endings = sorted((each["results"][0]["state"], each["results"][0]["result"]) for each in found)
    assert endings == [("message", "accepted")] * 3 + [("process", "invalid")] * 5
    assert await mail.rabbit.count("success") == len(receiver.messages) == 3
    await until(lambda: len(mail.seen.poison) == 3)
    for each in found:
        description = each["results"][0]["description"]
        assert description.isprintable()
    assert all(reason.isprintable() for reason in mail.seen.poison)
