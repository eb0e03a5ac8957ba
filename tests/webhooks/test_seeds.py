"""The seeds' situations made to happen: job in, real worker, misbehaving mail server, event out."""

import pytest
from support.hooks import until

from mailq.core.times import parse_time

MIME = "From: a@a.test\nTo: b@a.test\nSubject: x\nMessage-ID: <305eabf4@example.com>\n\nhello\n"


@pytest.fixture
async def told(system, sink, hooks, receiver):
    """Send a job through the whole of mailq and return the events it makes."""

    async def send(recipient, *, events=1, faults=(), **job):
        crm = await receiver()
        running = await hooks(crm={"url": crm.url})
        mail = await system(await sink(faults=faults), delivery={"retries": [1, 3600], "max_attempts": 10},
                            timeouts={"intro": 0.3, "rcptto": 0.3, "message": 0.3})  # fmt: skip
        await mail.send(
            recipient=recipient, mime=MIME, id="job", maxattempts=10, properties={"message_id": "queue-id"}, **job
        )
        await until(lambda: len(crm.taken) >= events)
        assert running.watching.deaths == []
        return crm.taken

    return send


ENVELOPE = {"from": "a@a.test"}


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


async def test_recipient_unknown(told):
    (event,) = await told("reject@a.test")
    description = event["x-mailq"]["result"]["description"]
    assert data_of(event, "messageFailed") == {
        "error": f"Error: 550 {event['x-mailq']['result']['status']} {description}"
    }


@pytest.mark.parametrize(
    ("recipient", "faults", "code", "command"),
    [
        ("stall@a.test", (), "ETIMEDOUT", "RCPT TO"),
        ("drop@a.test", (), "ESOCKET", "RCPT TO"),
        ("garbage@a.test", (), "EPROTOCOL", "RCPT TO"),
        ("stall-message@a.test", (), "ESTREAM", "DATA"),
        ("accept@a.test", ("intro=stall",), "ETIMEDOUT", None),
    ],
)
async def test_delivery_errors(told, recipient, faults, code, command):
    event = (await told(recipient, faults=faults))[0]
    data = data_of(event, "messageDeliveryError")
    assert (data["errorCode"], data.get("smtpCommand")) == (code, command)
    assert "smtpResponse" not in data
    assert data["job"]["attemptsMade"] == 1
    assert data["job"]["nextAttempt"]


async def test_connection_refused(told):
    event = (await told("accept@a.test", smarthost={"hostname": "127.0.0.1", "port": 1}))[0]
    data = data_of(event, "messageDeliveryError")
    assert data["errorCode"] == "ECONNECTION"
    assert data["error"] == "mailq failed to establish TCP connection against 127.0.0.1"


async def test_network_routing(told):
    event = (await told("reject@a.test", ips=["127.0.0.1"]))[0]
    assert data_of(event, "messageFailed")["networkRouting"] == {"localAddress": "127.0.0.1"}
