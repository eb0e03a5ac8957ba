"""The situations of EmailEngine's documentation: job in, real worker, misbehaving mail server, event out."""

import asyncio
import contextlib
import json
import socket
import subprocess
from pathlib import Path

import pytest
from support.hooks import until

from mailq.core.times import parse_time

MIME = "From: a@a.test\nTo: b@a.test\nSubject: x\nMessage-ID: <305eabf4@example.com>\n\nhello\n"


@pytest.fixture
async def told(system, sink, hooks, receiver):
    """Send a job through the whole of mailq and return the events it makes."""

    async def send(recipient, *, events=1, faults=(), server=None, patterns=(), maxattempts=10, tables=None, **job):
        crm = await receiver()
        tables = {"delivery": {"retries": [1, 3600], "max_attempts": 10}} | (tables or {})
        running = await hooks(crm={"url": crm.url}, delivery=tables["delivery"])
        mail = await system(server or await sink(faults=faults), patterns=list(patterns), **tables,
                            timeouts=dict.fromkeys(("connect", "intro", "rcptto", "message", "quit"), 0.3))  # fmt: skip
        job = {"recipient": recipient, "mime": MIME, "id": "job", "maxattempts": maxattempts} | job
        await mail.send(properties={"message_id": "queue-id"}, **job)
        await until(lambda: len(crm.taken) >= events)
        assert running.watching.deaths == []
        return crm.taken

    return send


CONSUMER = Path(__file__).parent.parent / "data/consumer.mjs"


def consumed(events, directory):
    """Return what a consumer of EmailEngine's events does with real ones, and what it logs."""
    file = directory / "events.json"
    file.write_text(json.dumps(events))
    done = subprocess.run(["node", CONSUMER, file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["absent"] == []
    return found["actions"], found["lines"]


ENVELOPE = {"from": "a@a.test"}
SILENT = "Request timed out. Possibly a firewall issue or a wrong hostname/port ({})."


def data_of(event, name):
    assert event["event"] == name
    assert event["account"] == "default"
    data = dict(event["data"])
    assert data.pop("queueId") == "queue-id"
    assert data.pop("messageId") == "<305eabf4@example.com>"
    return data


async def test_greylisted_then_sent(told):
    first, last = await told("greylist@a.test", events=2)
    data = data_of(first, "messageDeliveryError")
    job = data.pop("job")
    result = first["x-mailq"]["result"]
    assert (parse_time(job.pop("nextAttempt")) - parse_time(result["time"])).total_seconds() in (1, 2)
    assert job == {"id": "job", "attemptsMade": 1, "attempts": 10}
    assert data == {
        "envelope": ENVELOPE | {"to": ["greylist@a.test"]},
        "error": "Message rejected by server",
        "errorCode": "EMESSAGE",
        "smtpResponse": f"451 4.7.1 {result['description']}",
        "smtpResponseCode": 451,
        "smtpCommand": "RCPT TO",
    }
    sent = data_of(last, "messageSent")
    assert sent == {"envelope": ENVELOPE | {"to": ["greylist@a.test"]}, "response": "250 2.0.0 taken as 1"}
    assert last["x-mailq"]["result"]["attempt"] == 2


def last_error(event, **expected):
    """Hold the delivery error of a last attempt against what is expected of it."""
    data = data_of(event, "messageDeliveryError")
    assert data.pop("job")["nextAttempt"] is False
    assert data.pop("envelope")["from"] == "a@a.test"
    assert data == expected


async def test_recipient_unknown(told):
    error, event = await told("reject@a.test", events=2)
    result = event["x-mailq"]["result"]
    description = result["description"]
    last_error(error, error="Address rejected by server", errorCode="EENVELOPE", smtpResponseCode=550,
               smtpResponse=f"550 {result['status']} {description}", smtpCommand="RCPT TO")  # fmt: skip
    assert data_of(event, "messageFailed") == {
        "error": f"Error: 550 {event['x-mailq']['result']['status']} {description}"
    }


@pytest.mark.parametrize(
    ("recipient", "faults", "code", "command", "text"),
    [
        ("stall@a.test", (), "ETIMEDOUT", "RCPT TO", SILENT.format("sink.test")),
        ("drop@a.test", (), "ESOCKET", "RCPT TO", "sink.test: the server closed the connection"),
        ("garbage@a.test", (), "EPROTOCOL", "RCPT TO", "Unexpected response from sink.test: {description}"),
        ("stall-message@a.test", (), "ESTREAM", "DATA",
         "Sending the message to sink.test was interrupted: {description}"),
        ("accept@a.test", ("intro=stall",), "ETIMEDOUT", None, SILENT.format("127.0.0.1")),
        ("accept@broken.test", (), "EDNS", None, "mailq failed to resolve DNS record for broken.test"),
    ],
)  # fmt: skip
async def test_delivery_errors(told, recipient, faults, code, command, text):
    event = (await told(recipient, faults=faults))[0]
    data = data_of(event, "messageDeliveryError")
    job = data.pop("job")
    assert data == {
        "envelope": ENVELOPE | {"to": [recipient]},
        "error": text.format_map(event["x-mailq"]["result"]),
        "errorCode": code,
    } | ({"smtpCommand": command} if command else {})
    assert (job["id"], job["attemptsMade"], job["attempts"]) == ("job", 1, 10)
    assert job["nextAttempt"]


LOGIN = {"username": "anna", "password": "falsch"}
REFUSED_LOGIN = {"errorCode": "EAUTH", "error": "Authentication failed", "smtpResponseCode": 535, "smtpCommand": "AUTH"}


GIVES_UP = [{"id": "login", "codes": ["535"], "fatal": True}]
"""A refused login ends a job only where a pattern says so."""


async def test_authentication_failure(told, sink):
    server = await sink(tls=True, users={"anna": "geheim"})
    smarthost = {"hostname": "127.0.0.1", "port": server.port, **LOGIN}
    error, event = await told("accept@a.test", events=2, server=server, patterns=GIVES_UP, smarthost=smarthost)
    assert data_of(error, "messageDeliveryError")["errorCode"] == "EAUTH"
    words = event["x-mailq"]["result"]["description"]
    assert data_of(event, "messageFailed") == {"error": f"Error: Invalid login: 535 5.7.8 {words}"}


async def test_authentication_failure_that_is_tried_again(told, sink):
    server = await sink(tls=True, users={"anna": "geheim"})
    patterns = [{"id": "login", "codes": ["535"], "retry": 3600}]
    smarthost = {"hostname": "127.0.0.1", "port": server.port, **LOGIN}
    (event,) = await told("accept@a.test", server=server, patterns=patterns, smarthost=smarthost)
    data = data_of(event, "messageDeliveryError")
    assert data.pop("job")["attemptsMade"] == 1
    words = event["x-mailq"]["result"]["description"]
    assert data == REFUSED_LOGIN | {
        "envelope": ENVELOPE | {"to": ["accept@a.test"]}, "smtpResponse": f"535 5.7.8 {words}",
    }  # fmt: skip


async def test_tls_negotiation(told, sink):
    server = await sink(tls=True, users={"anna": "geheim"}, faults=["starttls=broken"])
    smarthost = {"hostname": "127.0.0.1", "port": server.port, **LOGIN}
    event = (await told("accept@a.test", server=server, smarthost=smarthost))[0]
    data = data_of(event, "messageDeliveryError")
    assert data.pop("job")["attemptsMade"] == 1
    assert data == {
        "envelope": ENVELOPE | {"to": ["accept@a.test"]},
        "error": "TLS negotiation with 127.0.0.1 failed. TLS handshake failed: WRONG_VERSION_NUMBER",
        "errorCode": "ETLS",
    }


@pytest.fixture
def full():
    """Return the port of a listener that lets no more connections come about."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_connect_timeout(told, full):
    events = await told("accept@a.test", events=3, maxattempts=2, smarthost={"hostname": "127.0.0.1", "port": full})
    data = data_of(events[0], "messageDeliveryError")
    assert data.pop("job")["attempts"] == 2
    assert data == {
        "envelope": ENVELOPE | {"to": ["accept@a.test"]},
        "error": SILENT.format(f"127.0.0.1:{full}"),
        "errorCode": "ETIMEDOUT",
    }
    last_error(events[1], error=SILENT.format(f"127.0.0.1:{full}"), errorCode="ETIMEDOUT")
    assert data_of(events[2], "messageFailed") == {"error": "Error: Connect timeout"}


async def test_connection_refused(told):
    smarthost = {"hostname": "127.0.0.1", "port": 1}
    events = await told("accept@a.test", events=3, maxattempts=2, smarthost=smarthost, ips=["127.0.0.1"])
    for event in events:
        tried = event["x-mailq"]["result"]["tried"]
        assert tried["from"] == tried["to"] == "127.0.0.1"
        routing = {"localAddress": "127.0.0.1", "localPort": tried["from_port"]}
        assert event["data"].pop("networkRouting") == routing
        assert not {"from_port", "to"} & event["x-mailq"]["result"].keys()
    data = data_of(events[0], "messageDeliveryError")
    assert data.pop("job")["attempts"] == 2
    assert data == {
        "envelope": ENVELOPE | {"to": ["accept@a.test"]},
        "error": "mailq failed to establish TCP connection against 127.0.0.1",
        "errorCode": "ECONNECTION",
    }
    last_error(events[1], error=data["error"], errorCode="ECONNECTION")
    assert data_of(events[2], "messageFailed") == {"error": "Error: Connection refused"}


@pytest.fixture
async def script():
    """Start a server that answers commands by their first word, and 250 to others; returns its port."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**answers):
            async def serve(reader, writer):
                writer.write(b"220 mx.a.test ESMTP\r\n")
                while line := await reader.readline():
                    word = line.decode().split(maxsplit=1)[0].lower()
                    writer.write(answers.get(word, "250 ok").encode() + b"\r\n")
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
            return server.sockets[0].getsockname()[1]

        yield start


async def test_rejection_in_emailengines_words(told, script):
    words = "450 4.7.1 Client host rejected: cannot find your hostname"
    data = data_of((await told("b@a.test", server=await script(rcpt=words)))[0], "messageDeliveryError")
    assert data.pop("job")["attempts"] == 10
    assert data == {
        "envelope": ENVELOPE | {"to": ["b@a.test"]},
        "error": "Message rejected by server",
        "errorCode": "EMESSAGE",
        "smtpResponse": words,
        "smtpResponseCode": 450,
        "smtpCommand": "RCPT TO",
    }


@pytest.mark.parametrize(
    "words", ["550 5.1.1 The email account that you tried to reach does not exist", "550 5.7.1 Sender rejected"]
)
async def test_final_refusal_in_emailengines_words(told, script, words):
    error, event = await told("b@a.test", events=2, server=await script(rcpt=words))
    code, text = ("EENVELOPE", "Address rejected") if "5.1.1" in words else ("EMESSAGE", "Message rejected")
    last_error(error, error=f"{text} by server", errorCode=code, smtpResponse=words, smtpResponseCode=550,
               smtpCommand="RCPT TO")  # fmt: skip
    assert data_of(event, "messageFailed") == {"error": f"Error: {words}"}


async def test_refused_login_in_emailengines_words_reaches_a_consumer(told, script, tmp_path):
    hello = "250-mx.a.test\r\n250 AUTH LOGIN"
    port = await script(ehlo=hello, auth="535 5.7.8 Error: authentication failed")
    events = await told("b@a.test", events=2, server=port, smarthost={"hostname": "127.0.0.1", "port": port, **LOGIN},
                        patterns=GIVES_UP, tables={"smarthost": {"plaintext_auth": True}})  # fmt: skip
    actions, lines = consumed(events, tmp_path)
    assert {"call-administrator", "stop-account", "warn-operator", "mark-failed", "count login refused"} <= set(actions)
    assert "no further attempt" in lines
    last_error(events[0], **REFUSED_LOGIN, smtpResponse="535 5.7.8 Error: authentication failed")
    text = "Error: Invalid login: 535 5.7.8 Error: authentication failed"
    assert data_of(events[1], "messageFailed") == {"error": text}


async def test_the_last_of_several_attempts_reaches_a_consumer_of_emailengines_events(told, script, tmp_path):
    """The job has no number of attempts and its message no Message-ID; the answer has two lines."""
    words = "450-4.2.1 Mailbox full\r\n450 4.2.1 try later"
    events = await told("b@a.test", events=3, server=await script(rcpt=words), maxattempts=None,
                        mime="Subject: x\n\nhi", tables={"delivery": {"retries": [1, 3600], "max_deliver_time": 60}},
                        )  # fmt: skip
    actions, lines = consumed(events, tmp_path)
    assert actions.count("record-error") == actions.count("count-EMESSAGE") == 2
    assert "send-by-second-provider" in actions
    assert [line for line in lines if line.startswith("attempt")] == ["attempt 1 of 2", "attempt 2 of 2"]
    assert [event["event"] for event in events] == ["messageDeliveryError", "messageDeliveryError", "messageFailed"]
    assert [event["data"].get("smtpResponse") for event in events] == [words.replace("\r", "")] * 2 + [None]
    assert len({event["data"]["messageId"] for event in events}) == 1
    assert events[2]["data"]["error"] == "Error: 450 4.2.1 Mailbox full"


async def test_an_expired_certificate_refuses_no_mail_and_is_told(told, sink, certificates):
    """EmailEngine's CERT_HAS_EXPIRED is none of mailq's: a certificate informs, no mail waits for it."""
    server = await sink(tls=certificates.issue("127.0.0.1", validity="expired").context())
    tables = {"tls": {"ca_file": str(certificates.file)}}
    smarthost = {"hostname": "127.0.0.1", "port": server.port}
    (event,) = await told("accept@a.test", server=server, smarthost=smarthost, tables=tables)
    assert event["event"] == "messageSent"
    certificate = event["x-mailq"]["result"]["certificate"]
    assert (certificate["verified"], certificate["result"]) == (False, "certificate has expired")


async def test_network_routing_tells_the_port_that_the_server_saw(told):
    peers = []

    async def refuse(reader, writer):
        peers.append(writer.get_extra_info("peername"))
        writer.write(b"554 5.7.1 not you\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error, event = await told("accept@a.test", events=2, server=port, ips=["127.0.0.9"])
    assert error["data"]["networkRouting"] == event["data"]["networkRouting"]
    ((address, local),) = peers
    assert data_of(event, "messageFailed") == {
        "error": "Error: 554 5.7.1 not you",
        "networkRouting": {"localAddress": address, "localPort": local},
    }
    assert address == "127.0.0.9"
    assert event["x-mailq"]["result"]["from_port"] == local


async def test_each_message_of_a_connection_has_its_local_port(told):
    first, second, sent = await told("greylist-2@a.test", events=3, retries=[1], ips=["127.0.0.1"])
    results = [event["x-mailq"]["result"] for event in (first, second, sent)]
    assert [result["messages"] for result in results] == [1, 2, 3]
    assert len({(result["session"], result["from_port"]) for result in results}) == 1
    for event in (first, second, sent):
        port = event["x-mailq"]["result"]["from_port"]
        assert event["data"]["networkRouting"] == {"localAddress": "127.0.0.1", "localPort": port}


async def test_consumers_see_what_a_pattern_calls_strange(told):
    patterns = [{"id": "odd", "codes": ["5xx"], "strange": True}]
    error, event = await told("reject@a.test", events=2, patterns=patterns)
    assert error["x-mailq"]["result"] == event["x-mailq"]["result"]
    assert (event["x-mailq"]["result"]["strange"], event["x-mailq"]["result"]["patterns"]) == (True, ["odd"])
