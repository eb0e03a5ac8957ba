"""Sessions used again, told by the receivers: each message arrives once, with its own sender, recipient and octets."""

import asyncio
import contextlib
import hashlib
import json
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import orjson
import pytest
from support.receivers import PostfixReceiver
from support.system import until

from bench.servers import Server, program, relay
from mailq.core.content.mime import normalize
from mailq.testbed.free_port import free_port

JOBS = 1000
CONNECTIONS = 5
PIPELINING = pytest.mark.parametrize("pipelining", [True, False], ids=["pipelining", "no-pipelining"])


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it was asked for, or as it was found at the receiver."""

    identity: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Receiver:
    """What the test needs of a receiver: `raw` gives the files it has delivered, `idle` whether that is all."""

    port: int
    domain: str
    raw: Callable[[], list[bytes]]
    idle: Callable[[], bool] = lambda: True


def mime(number):
    """Return a message like no other: dots, 8-bit text, lines that look like commands, up to 300 kB."""
    head = f"From: f{number}@sender.test\nMessage-ID: <m{number}@sender.test>\nSubject: message {number}\n\n"
    count = 5000 if number % 250 == 7 else number % 50
    lines = [hashlib.sha256(f"{number} {line}".encode()).hexdigest() for line in range(count)]
    odd = [f".{number}", ".", "..", "RSET", "MAIL FROM:<x@x.test>", "From here", "é ü €" if number % 7 == 0 else ""]
    return head + f"this is {number}\n" + "\n".join(lines + odd) + "\n" * (number % 3)


def refused(number):
    return number % 10 == 4


def publications(domain):
    """Return the jobs to send; a tenth is for recipients that no receiver here takes."""
    # smtp-sink refuses nobody, but does not know SMTPUTF8.
    bad = "refusé+{}" if domain == "sink.test" else "refused+{}"
    return [
        Letter(
            f"m{number}@sender.test",
            f"bounce-{number}@sender.test",
            ((bad if refused(number) else "user-{}").format(number) + f"@{domain}",),
            normalize(mime(number)),
        )
        for number in range(JOBS)
    ]


def arrived(raw):
    """Return a delivered file as the letter that came: what the receiver put on top tells the envelope."""
    head = re.match(rb"((?:[A-Za-z-]+: .*\n)+?)Received: .*\n(?:[ \t].*\n)*", raw)
    assert head, raw[:500]
    fields = [line.split(": ", 1) for line in head[1].decode().splitlines()]
    senders = [value for name, value in fields if name.lower() in ("return-path", "x-mail-args")]
    recipients = [value for name, value in fields if name.lower() in ("x-original-to", "envelope-to", "x-rcpt-args")]
    content = raw[head.end() :].replace(b"\n", b"\r\n")
    (identity,) = re.findall(rb"^Message-ID: <(.*)>", content, re.MULTILINE)
    (sender,) = senders
    bare = tuple(value.removeprefix("<").partition(">")[0] for value in recipients)
    return Letter(identity.decode(), re.match("<(.*?)>", sender)[1], bare, content)


class Postfix(PostfixReceiver):
    """Postfix that refuses some recipients, and offers PIPELINING or not."""

    def __init__(self, certificate, *, pipelining):
        super().__init__(certificate)
        self._pipelining = pipelining

    def _write_files(self):
        super()._write_files()
        main = self._home / "etc/main.cf"
        refusal = "check_recipient_access inline:{refused@postfix.test=REJECT}"
        text = main.read_text().replace("smtpd_recipient_restrictions =", f"smtpd_recipient_restrictions = {refusal}")
        keywords = "" if self._pipelining else "pipelining"
        main.write_text(f"{text}recipient_delimiter = +\nsmtpd_discard_ehlo_keywords = {keywords}\n")

    def all(self):
        return [file.read_bytes() for file in (self._home / "mail/all/new").iterdir()]

    def idle(self):
        log = self.log()
        return len(re.findall(r"/smtpd\[\d+\]: \w+: client=", log)) == log.count(": removed\n")


@pytest.fixture
def postfix_receiver(certificates):
    with contextlib.ExitStack() as stack:

        def start(*, pipelining):
            server = Postfix(certificates.issue("mx.postfix.test", "127.0.0.1"), pipelining=pipelining)
            server.start()
            stack.callback(server.stop)
            return Receiver(server.port, "postfix.test", server.all, server.idle)

        yield start


@pytest.fixture
def exim_receiver(exim):
    def start(*, pipelining):
        server = exim(pipelining=pipelining)
        return Receiver(server.port, "exim.test", server.raw, server.idle)

    return start


@pytest.fixture
def smtp_sink(tmp_path):
    """Start smtp-sink, which writes each message to a file."""
    with contextlib.ExitStack() as stack:

        def start(*, pipelining):
            port, dumps = free_port(), tmp_path / "dumps"
            dumps.mkdir()
            command = [program("smtp-sink", "postfix"), "-d", "dump.", *([] if pipelining else ["-p"])]
            if os.getuid() == 0:  # root has to become somebody else
                os.chown(dumps, pwd.getpwnam("nobody").pw_uid, -1)
                command += ["-u", "nobody"]
            with contextlib.chdir(dumps):  # where `nobody` may be, but could not go
                sink = stack.enter_context(Server("sink", [*command, f"127.0.0.1:{port}", "100"], tmp_path))
            sink.listening(port)
            return Receiver(port, "sink.test", lambda: [dump.read_bytes()[:-1] for dump in dumps.iterdir()])

        yield start


async def documents(mail, count):
    """Take so many documents from `results`."""
    found = []

    async def take(message):
        found.append(orjson.loads(message.body))

    queue = await (await mail.rabbit.channel()).get_queue("results", ensure=False)
    await queue.consume(take, no_ack=True)
    await until(lambda: len(found) >= count, deadline=60)
    return found


async def send(mail, wanted):
    """Publish a job for each letter, some at a time, since the worker lives in the same loop."""

    async def one(publication):
        job = {
            "envelope": publication.sender,
            "recipient": publication.recipients[0],
            "mime": publication.content.decode(),
            "id": publication.identity,
        }
        await mail.rabbit.publish("outbox", orjson.dumps(job))

    for start in range(0, len(wanted), 50):
        await asyncio.gather(*map(one, wanted[start : start + 50]))


@PIPELINING
@pytest.mark.parametrize(
    ("kind", "tls", "refusal"),
    [
        ("postfix_receiver", "required", ("rcptto", 554)),
        ("exim_receiver", "required", ("rcptto", 550)),
        ("smtp_sink", "none", ("mailfrom", 550)),
    ],
    ids=["postfix", "exim", "smtp-sink"],
)
async def test_every_message_arrives_once_and_as_itself(kind, tls, refusal, pipelining, request, system):
    receiver = request.getfixturevalue(kind)(pipelining=pipelining)
    mail = await system(
        receiver.port,
        dns={"overrides": {"*": ("127.0.0.1",)}},
        limits=[{"connections": CONNECTIONS}],
        tls={"mode": tls},
        worker={"prefetch": 10 * CONNECTIONS},  # a line too short for anybody to be sent away
    )
    wanted = publications(receiver.domain)

    await send(mail, wanted)

    found = await documents(mail, JOBS)
    await mail.stop()  # with QUIT: what was on the way has arrived
    assert sorted(document["id"] for document in found) == sorted(publication.identity for publication in wanted)
    results = {document["id"]: document["results"][-1] for document in found}
    taken = [publication for number, publication in enumerate(wanted) if not refused(number)]
    await until(lambda: receiver.idle() and len(receiver.raw()) >= len(taken))
    there = sorted(map(arrived, receiver.raw()), key=lambda publication: publication.identity)
    assert there == sorted(taken, key=lambda publication: publication.identity)
    told = [results.pop(publication.identity) for publication in taken]
    assert {(result["state"], result["code"]) for result in results.values()} == {refusal}
    assert {(result["state"], result["code"]) for result in told} == {("message", 250)}
    assert {"cipher" in result for result in told} == {tls == "required"}
    places = [(result["session"], result["messages"]) for result in told]
    assert len(set(places)) == len(taken)
    assert sum(place > 1 for _, place in places) > 0.95 * len(taken)


async def test_exim_refuses_commands_sent_ahead_without_leave(exim):
    server = exim(pipelining=False)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"EHLO client.test\r\n")
    await asyncio.wait_for(reader.readuntil(b"\r\n250 "), 10)
    writer.write(b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@exim.test>\r\nDATA\r\n")
    assert b"554 SMTP synchronization error\r\n" in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()


@PIPELINING
async def test_round_trips_of_a_message_on_a_used_session(pipelining, smtp_sink, system, tmp_path):
    port, sink = free_port(), smtp_sink(pipelining=pipelining)
    with relay(tmp_path, SimpleNamespace(latency=50.0, tls=False), port, sink.port) as network:
        network.listening(port)
        limits = {"connections": 1, "idle_timeout": 60}
        mail = await system(
            port,
            dns={"overrides": {"*": ("127.0.0.1",)}},
            limits=[limits],
            tls={"mode": "none"},
            worker={"prefetch": 4},
        )
        wanted = publications(sink.domain)[:4]  # the fifth is refused

        for _ in range(4):
            await send(mail, wanted)
        found = await documents(mail, 16)

        assert network.stop() == 0
    counts = json.loads((tmp_path / "relay.log").read_text().splitlines()[-1])
    assert sorted(document["results"][0]["messages"] for document in found) == list(range(1, 17))
    assert counts["round_trips"] == 1 + 16 * (2 if pipelining else 4)  # EHLO, then the messages
