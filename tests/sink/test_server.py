"""The sink speaks SMTP as its options say; each test is a conversation on a real connection."""

import asyncio
import base64
import hmac
import json
import smtplib
import ssl

import pytest

from mailq.sink.server import Sink

CONTENT = b"From: <a@x.test>\r\nTo: <b@y.test>\r\nSubject: one\r\n\r\nhello\r\n"


class Client:
    """A raw SMTP client: says exactly what it is told to."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def reply(self):
        lines = []
        while not lines or lines[-1][3:4] == "-":
            line = await asyncio.wait_for(self.reader.readline(), 10)
            if not line:
                raise EOFError
            lines.append(line.decode().rstrip("\r\n"))
        return lines

    async def ask(self, line):
        self.writer.write(line.encode() + b"\r\n")
        return (await self.reply())[-1]

    async def open(self, recipient="b@y.test", sender="a@x.test"):
        await self.reply()
        await self.ask("EHLO c.test")
        await self.ask(f"MAIL FROM:<{sender}>")
        return await self.ask(f"RCPT TO:<{recipient}>")

    async def send(self, payload):
        assert (await self.ask("DATA")).startswith("354")
        self.writer.write(payload)
        return (await self.reply())[-1]


@pytest.fixture
async def connect(dial):
    async def start(sink: Sink, **tls):
        return Client(*await dial(sink, **tls))

    return start


async def test_ehlo_names_what_is_offered_and_nothing_that_was_switched_off(sink, connect):
    everything = await connect(await sink(tls=True, users={"u": "p"}, plaintext_auth=True, max_size=4096))
    await everything.reply()
    everything.writer.write(b"EHLO c.test\r\n")
    words = {line[4:] for line in (await everything.reply())[1:]}
    assert words == {
        "PIPELINING",
        "8BITMIME",
        "SMTPUTF8",
        "SIZE 4096",
        "DSN",
        "ENHANCEDSTATUSCODES",
        "STARTTLS",
        "AUTH PLAIN LOGIN CRAM-MD5",
    }
    nothing = await connect(
        await sink(without=["PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "DSN", "ENHANCEDSTATUSCODES"])
    )
    await nothing.reply()
    nothing.writer.write(b"EHLO c.test\r\n")
    assert await nothing.reply() == ["250 sink.test"]
    assert await nothing.ask("MAIL FROM:<a@x.test> SIZE=3") == "555 parameter SIZE is not known here"
    assert await nothing.ask("MAIL FROM:<a@x.test>") == "250 ok"


async def test_a_message_is_recorded_with_envelope_parameters_and_session(sink, connect):
    server = await sink()
    client = await connect(server)
    await client.reply()
    await client.ask("EHLO c.test")
    await client.ask("MAIL FROM:<é@x.test> SIZE=60 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb")
    await client.ask("RCPT TO:<b@y.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b@y.test")
    assert await client.ask('RCPT TO:<"a b>"@y.test>') == "250 2.1.5 ok"
    assert await client.send(CONTENT + b".\r\n") == "250 2.0.0 taken as 1"
    (message,) = await server.wait(1, 5)
    assert (message.sender, message.recipient, message.content) == ("é@x.test", "b@y.test", CONTENT)
    assert message.parameters == {"SIZE": "60", "BODY": "8BITMIME", "SMTPUTF8": None, "RET": "HDRS", "ENVID": "a+2Bb"}
    assert message.recipients[0].parameters == {"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;b@y.test"}
    assert message.recipients[1].address == '"a b>"@y.test'
    assert (message.session.peer, message.session.helo, message.session.tls) == ("127.0.0.1", "c.test", None)
    assert (message.number, message.nth, message.session.connection) == (1, 1, 1)


async def test_a_pipelined_group_is_answered_in_order_and_sessions_go_on(sink, connect):
    server = await sink()
    client = await connect(server)
    await client.reply()
    await client.ask("EHLO c.test")
    for nth in (1, 2, 3):
        client.writer.write(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<reject-551@y.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        assert [(await client.reply())[-1][:3] for _ in range(4)] == ["250", "551", "250", "354"]
        client.writer.write(CONTENT + b".\r\n")
        assert await client.reply() == [f"250 2.0.0 taken as {nth}"]
    assert [message.nth for message in server.messages] == [1, 2, 3]
    assert server.connections == 1


async def test_pipelining_is_refused_where_it_was_not_offered(sink, connect):
    client = await connect(await sink(without=["PIPELINING"]))
    await client.reply()
    await client.ask("EHLO c.test")
    client.writer.write(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n")
    assert await client.reply() == ["503 5.5.0 improper command pipelining"]
    with pytest.raises(EOFError):
        await client.reply()


@pytest.mark.parametrize(
    ("payload", "content"),
    [
        (b".\r\n", b""),
        (b"..\r\n...\r\n.\r\n", b".\r\n..\r\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n"),
        (b"a\r.\rb\r\n.\r\n", b"a\r.\rb\r\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n"),
        (b"a\r\n.\nMAIL FROM:<x@x.test>\r\n.\r\n", b"a\r\n\nMAIL FROM:<x@x.test>\r\n"),
        (b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n"),
    ],
)
async def test_only_crlf_dot_crlf_ends_a_message_and_dots_are_unstuffed(sink, connect, payload, content):
    server = await sink()
    client = await connect(server)
    await client.open()
    assert await client.send(payload) == "250 2.0.0 taken as 1"
    assert server.messages[0].content == content


async def test_a_message_is_the_same_however_it_is_cut_into_segments(sink, connect):
    server = await sink()
    client = await connect(server)
    await client.open()
    await client.ask("DATA")
    payload = b"..a\r\n\r\n..\r\nb\r\n.\r\n"
    for octet in payload:
        client.writer.write(bytes([octet]))
        await client.writer.drain()
        await asyncio.sleep(0)
    await server.wait(1, 5)
    assert server.messages[0].content == b".a\r\n\r\n.\r\nb\r\n"


async def test_sizes_are_bounded(sink, connect):
    server = await sink(max_size=2000)
    client = await connect(server)
    await client.reply()
    await client.ask("EHLO c.test")
    assert await client.ask("MAIL FROM:<a@x.test> SIZE=2001") == "552 5.3.4 message too big"
    await client.ask("MAIL FROM:<a@x.test>")
    await client.ask("RCPT TO:<b@y.test>")
    assert await client.send(b"x" * 500_000 + b"\r\n.\r\n") == "552 5.3.4 message too big"
    await client.ask("MAIL FROM:<a@x.test>")
    await client.ask("RCPT TO:<b@y.test>")
    dots = b"..\r\n" * 666
    assert await client.send(dots + b".\r\n") == "250 2.0.0 taken as 1"
    assert len(server.messages[0].content) == 1998
    client.writer.write(b"NOOP " + b"x" * 10_000)
    assert await client.reply() == ["500 5.5.6 line too long"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("MAIL FROM: <a@x.test>", "501"),
        ("MAIL FROM:a@x.test", "501"),
        ("MAIL FROM:<a@x.test>SIZE=1", "501"),
        ("MAIL FROM:<a@x.test> SIZE=x", "501"),
        ("MAIL FROM:<a@x.test> SIZE=1 SIZE=1", "555"),
        ("MAIL FROM:<a@x.test> SMTPUTF8=1", "501"),
        ("MAIL FROM:<a@x.test> FOO", "555"),
        ("MAIL FROM:<é@x.test>", "553"),
        ("MAIL FROM:<a@x.test> ENVID=a+b", "501"),
        ("MAIL FROM:<a\x01@x.test>", "500"),
        ("MAIL FROM:<>", "250"),
        ("mail from:<a@x.test> body=8bitmime", "250"),
        ("RCPT TO:<b@y.test>", "503"),
        ("DATA", "503"),
        ("STARTTLS", "502"),
        ("AUTH PLAIN", "504"),
        ("BDAT 3", "500"),
        ("VRFY b", "252"),
        ("NOOP", "250"),
        ("RSET", "250"),
        ("NOOP\nMAIL FROM:<a@x.test>", "500"),
    ],
)
async def test_commands_are_read_strictly(sink, connect, line, code):
    client = await connect(await sink())
    await client.reply()
    await client.ask("EHLO c.test")
    assert (await client.ask(line))[:3] == code


async def test_mail_needs_a_greeting_and_data_needs_a_recipient(sink, connect):
    client = await connect(await sink())
    await client.reply()
    assert (await client.ask("MAIL FROM:<a@x.test>"))[:3] == "503"
    assert await client.ask("HELO c.test") == "250 sink.test"
    assert await client.ask("MAIL FROM:<a@x.test>") == "250 ok"
    assert await client.ask("DATA") == "554 no valid recipients"
    assert await client.ask("QUIT") == "221 bye"


async def test_starttls_encrypts_and_forgets_what_was_said_before(sink, certificates):
    server = await sink(tls=True, require_tls=True)

    def talk():
        with smtplib.SMTP(server.host, server.port, local_hostname="c.test", timeout=10) as smtp:
            smtp.ehlo()
            assert smtp.docmd("MAIL FROM:<a@x.test>")[0] == 530
            smtp.starttls(context=certificates.client_context())
            assert smtp.docmd("MAIL FROM:<a@x.test>")[0] == 503
            smtp.sendmail("a@x.test", ["b@y.test"], CONTENT)
            assert "starttls" not in smtp.esmtp_features

    await asyncio.to_thread(talk)
    (message,) = server.messages
    assert message.content == CONTENT
    assert (message.session.tls, message.session.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")


async def test_what_was_injected_behind_starttls_is_refused(sink, connect):
    client = await connect(await sink(tls=True))
    await client.reply()
    await client.ask("EHLO c.test")
    client.writer.write(b"STARTTLS\r\nNOOP\r\n")
    assert await client.reply() == ["503 5.5.0 improper command pipelining"]


async def test_implicit_tls(sink, connect, certificates):
    server = await sink(tls=True, implicit_tls=True)
    client = await connect(server, ssl=certificates.client_context())
    assert await client.open() == "250 2.1.5 ok"
    await client.send(b".\r\n")
    assert server.messages[0].session.tls == "TLSv1.3"


async def test_a_client_that_does_not_trust_the_certificate_harms_nobody(sink, connect):
    server = await sink(tls=True, implicit_tls=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(server, ssl=ssl.create_default_context())
    upgraded = await sink(tls=True)

    def refuse():
        with smtplib.SMTP(upgraded.host, upgraded.port, timeout=10) as smtp, pytest.raises(ssl.SSLError):
            smtp.starttls(context=ssl.create_default_context())

    await asyncio.to_thread(refuse)


@pytest.mark.parametrize("mechanism", ["plain", "login", "cram_md5"])
async def test_auth(sink, certificates, mechanism):
    server = await sink(tls=True, users={"jo@x.test": "pässword"}, require_auth=True)
    name = mechanism.upper().replace("_", "-")

    def talk():
        with smtplib.SMTP(server.host, server.port, timeout=10) as smtp:
            smtp.ehlo()
            assert "auth" not in smtp.esmtp_features
            assert smtp.docmd("AUTH PLAIN AAA=")[0] == 538
            smtp.starttls(context=certificates.client_context())
            smtp.ehlo()
            assert smtp.docmd("MAIL FROM:<a@x.test>")[0] == 530
            assert _log_in(smtp, mechanism, "wrong")[0] == 535
            assert _log_in(smtp, mechanism, "pässword")[0] == 235
            assert smtp.docmd("AUTH PLAIN AAA=")[0] == 503
            smtp.sendmail("a@x.test", ["b@y.test"], CONTENT)

    await asyncio.to_thread(talk)
    assert (server.messages[0].session.user, server.messages[0].session.mechanism) == ("jo@x.test", name)


def _log_in(smtp, mechanism, password):
    """Speak the exchange in UTF-8, which smtplib's own login cannot."""
    user, secret = "jo@x.test", password.encode()

    def encode(text):
        return base64.b64encode(text).decode()

    if mechanism == "plain":
        return smtp.docmd("AUTH PLAIN " + encode(b"\0" + user.encode() + b"\0" + secret))
    if mechanism == "login":
        assert smtp.docmd("AUTH LOGIN") == (334, b"VXNlcm5hbWU6")
        assert smtp.docmd(encode(user.encode())) == (334, b"UGFzc3dvcmQ6")
        return smtp.docmd(encode(secret))
    code, challenge = smtp.docmd("AUTH CRAM-MD5")
    assert code == 334
    digest = hmac.new(secret, base64.b64decode(challenge), "md5").hexdigest()
    return smtp.docmd(encode(f"{user} {digest}".encode()))


async def test_auth_can_be_cancelled_and_nonsense_is_refused(sink, connect):
    client = await connect(await sink(users={"u": "p"}, plaintext_auth=True))
    await client.reply()
    await client.ask("EHLO c.test")
    assert await client.ask("AUTH PLAIN") == "334 "
    assert await client.ask("*") == "501 5.7.0 cancelled"
    assert await client.ask("AUTH LOGIN") == "334 VXNlcm5hbWU6"
    assert await client.ask("?") == "501 5.5.2 not base64"
    assert await client.ask("AUTH CRAM-MD5 abcd") == "501 5.7.0 this mechanism takes no initial response"
    assert (await client.ask("AUTH PLAIN AHUAcA=="))[:3] == "235"


async def test_messages_are_on_disk_before_they_are_acknowledged(sink, connect, tmp_path):
    client = await connect(await sink(directory=tmp_path / "mail"))
    await client.open()
    await client.send(CONTENT + b".\r\n")
    (eml,), (facts,) = (sorted((tmp_path / "mail").glob(f"*.{kind}")) for kind in ("eml", "json"))
    assert eml.read_bytes() == CONTENT
    record = json.loads(facts.read_text())
    assert (record["sender"], record["size"], record["session"]["helo"]) == ("a@x.test", len(CONTENT), "c.test")


async def test_memory_is_bounded_but_counting_goes_on(sink, connect):
    server = await sink(keep=5000)
    client = await connect(server)
    await client.reply()
    await client.ask("EHLO c.test")
    for _ in range(5):
        await client.ask("MAIL FROM:<a@x.test>")
        await client.ask("RCPT TO:<b@y.test>")
        await client.send(b"x" * 998 + b"\r\n.\r\n")
    assert server.accepted == 5
    assert [message.number for message in server.messages] == [4, 5]
    assert [message.number for message in server.since(4)] == [5]


async def test_waiting_in_vain_says_how_many_came(sink):
    with pytest.raises(TimeoutError, match=r"^0 of 2 messages came within 0\.05 s$"):
        await (await sink()).wait(2, timeout=0.05)


async def test_silent_clients_and_too_many_of_them_are_shown_the_door(sink, connect):
    server = await sink(timeout=0.2, max_sessions=1)
    silent = await connect(server)
    await silent.reply()
    refused = await connect(server)
    assert await refused.reply() == ["421 4.7.0 too many connections"]
    with pytest.raises((EOFError, ConnectionError)):
        await silent.reply()


async def test_a_client_that_never_reads_is_not_read_from_for_ever(sink, connect):
    server = await sink(timeout=0.5)
    client = await connect(server)
    await client.reply()
    client.writer.transport.pause_reading()

    async def flood():
        while True:
            client.writer.write(b"NOOP\r\n" * 10_000)
            await client.writer.drain()

    with pytest.raises(ConnectionError):
        await flood()


@pytest.mark.parametrize(
    "options",
    [{"without": ["CHUNKING"]}, {"mechanisms": ["GSSAPI"]}, {"implicit_tls": True}, {"faults": ["dns=drop"]}],
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=r"no such|needs a certificate|no state"):
        Sink(**options)
