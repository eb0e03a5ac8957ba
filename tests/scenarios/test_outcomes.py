"""What becomes of jobs: the whole worker, with the exact documents on each queue."""

import asyncio
import email.policy
import gzip
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from support.system import stable, until

from mailq.config.dns import DnsConfig
from mailq.core.times import format_time
from mailq.sink.server import Sink

SUBJECT = "Grüße"


async def test_success(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test", custom={"x": [1, "ä"]}, tags=["t"])

    document = await mail.get("results")
    assert await mail.get("success") == document
    assert await mail.rabbit.count("failures") == await mail.rabbit.count("retry") == 0
    result = document["results"].pop()
    assert result["time"] >= document.pop("seen")
    assert document == {
        "envelope": "a@a.test",
        "recipient": "accept@a.test",
        "custom": {"x": [1, "ä"]},
        "tags": ["t"],
        "results": [],
        "extracted": {
            "from": "a@a.test",
            "to": ["b@a.test", "c@a.test"],
            "subject": SUBJECT,
            "headers": {"from": "Anna <a@a.test>", "to": "b@a.test, c@a.test", "subject": SUBJECT},
            "envelope": {"local": "a", "domain": "a.test"},
            "recipient": {"local": "accept", "domain": "a.test"},
        },
    }
    content = receiver.messages[0].content
    assert content.endswith(b"\r\n\r\nhello\r\n")
    assert set(result["timing"]) == {"dns", "bind", "connect", "intro", "ehlo", "mailfrom", "rcptto", "data", "message"}
    sent = result.pop("sent")
    assert sent["data"] == len(content)
    assert sent["connection"] > len(content)
    assert stable(result) == {
        "state": "message",
        "result": "accepted",
        "attempt": 1,
        "mta": "sink.test",
        "from": "127.0.0.1",
        "to": "127.0.0.1",
        "messages": 1,
        "command": "DATA",
        "code": 250,
        "status": "2.0.0",
        "description": "taken as 1",
        "dsn": True,
    }


async def test_success_over_tls_tells_cipher_and_certificate(system, sink):
    receiver = await sink(tls=True)
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test")

    result = (await mail.get("results"))["results"][0]
    assert result["cipher"]["protocol"] == "TLSv1.3"
    assert result["cipher"]["name"] == receiver.messages[0].session.cipher
    assert result["certificate"]["verified"] is False
    assert "sink.test" in result["certificate"]["altnames"]
    assert result["timing"]["starttls"] > 0


async def test_4xx_comes_back_through_the_delay_queue_and_is_delivered(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="greylist@a.test", retries=[1], id="job-1")

    copy = await mail.get("retry")
    assert "mime" not in copy
    assert copy["nextattempt"]["time"] > copy["results"][0]["time"]
    assert (copy["results"][0]["state"], copy["results"][0]["result"]) == ("rcptto", "error")
    document = await mail.get("success")
    assert [result["attempt"] for result in document["results"]] == [1, 2]
    assert [result["code"] // 100 for result in document["results"]] == [4, 2]
    assert document["results"][0] == copy["results"][0]
    assert "nextattempt" not in document
    assert len(receiver.messages) == 1
    assert await mail.rabbit.count("results") == 1


async def test_5xx_fails(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="reject-550@a.test")

    document = await mail.get("failures")
    assert await mail.get("results") == document
    result = document["results"][0]
    assert (result["state"], result["result"], result["code"], result["status"]) == ("rcptto", "error", 550, "5.1.1")
    assert result["command"] == "RCPT TO:<reject-550@a.test>"
    assert "mime" not in document
    assert "expired" not in result


async def test_a_job_past_its_time_is_expired_without_an_attempt(system, sink):
    receiver = await sink()
    mail = await system(receiver)
    earlier = {"state": "intro", "result": "error", "code": 451, "description": "later"}

    await mail.send(recipient="accept@a.test", maxdelivertime="2020-01-01 00:00:00", results=[earlier])

    result = (await mail.get("failures"))["results"][1]
    assert (result["state"], result["result"], result["attempt"]) == ("process", "timeout", 2)
    assert (result["code"], result["status"]) == (554, "5.4.7")
    assert result["description"] == "[internal] message timeout (last transfail: 451 later)"
    assert "to" not in result
    assert receiver.messages == []


async def test_a_retry_that_would_come_too_late_fails_now(system, sink):
    mail = await system(await sink())
    soon = format_time(datetime.now(UTC) + timedelta(seconds=30))

    await mail.send(recipient="tempfail-450@a.test", maxdelivertime=soon, retries=[600])

    result = (await mail.get("failures"))["results"][0]
    assert (result["code"], result["expired"]) == (450, True)
    assert await mail.rabbit.count("retry") == 0


async def test_maxattempts_ends_it(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="tempfail-450@a.test", maxattempts=2, retries=[1])

    results = (await mail.get("failures"))["results"]
    assert [result.get("expired") for result in results] == [None, True]


async def test_queues_of_a_job_override_and_null_switches_off(system, sink):
    mail = await system(await sink())
    await mail.rabbit.declare("mine")

    await mail.send(recipient="accept@a.test", queues={"results": "mine", "success": None})

    assert (await mail.get("mine"))["results"][0]["state"] == "message"
    await mail.send(recipient="accept+last@a.test", queues={"results": None})
    assert (await mail.get("success"))["recipient"] == "accept+last@a.test"
    assert await mail.rabbit.count("results") == 0


async def test_a_queue_that_cannot_be_had_is_told_before_anything_is_sent(system, sink, rabbit):
    receiver = await sink()
    mail = await system(receiver)
    await mail.stop()
    mail = await system(receiver, rabbitmq={"declare": False})

    await mail.send(recipient="accept@a.test", queues={"results": "nowhere"})

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"], result["pointer"]) == ("process", "invalid", "/queues/results")
    assert receiver.messages == []


async def test_gzip_is_read_and_stays_gzip_in_the_outbox(system, sink):
    receiver = await sink()
    mail = await system(receiver)
    body = gzip.compress(orjson.dumps({"recipient": "greylist@a.test", "mime": "Subject: z\n\nhi", "retries": [1]}))

    await mail.rabbit.publish("outbox", body, content_encoding="gzip")

    assert len((await mail.get("success"))["results"]) == 2
    assert receiver.messages[0].content == b"Subject: z\r\n\r\nhi\r\n"


async def test_a_job_is_not_attempted_before_its_time(system, sink):
    receiver = await sink()
    mail = await system(receiver)
    due = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)

    await mail.send(recipient="accept@a.test", nextattempt={"time": format_time(due)})

    result = (await mail.get("success"))["results"][0]
    assert result["time"] >= format_time(due)
    assert result["attempt"] == 1
    assert mail.seen.parks >= 1


@pytest.mark.parametrize("body", [b"\x00\xff", b"[1]", b'"text"', b"{", b""])
async def test_what_is_no_document_goes_to_poison_with_the_reason(body, system, sink):
    mail = await system(await sink())

    await mail.rabbit.publish("outbox", body)

    message = await mail.rabbit.get("outbox.poison")
    assert message.body == body
    assert str(message.headers["x-mailq-reason"]).startswith("body is")
    assert message.headers["x-mailq-state"] == "process"
    assert message.headers["x-mailq-delivery-count"] == 0
    assert "x-mailq-exception" not in message.headers
    await mail.send(recipient="accept@a.test")
    await mail.get("success")


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({}, "/recipient"),
        ({"recipient": "a@b.test\r\nDATA"}, "/recipient"),
        ({"recipient": "a@a.test", "envelope": "x\n@a.test"}, "/envelope"),
        ({"recipient": "a@a.test", "mime": "x", "maxattempts": "three"}, "/maxattempts"),
        ({"recipient": "a@a.test", "mime": "x", "smarthost": {"hostname": "h", "port": 0}}, "/smarthost/port"),
        ({"recipient": "a@a.test", "mime": "x", "dkim": {"domain": "a.test"}}, "/dkim"),
        ({"recipient": "a@a.test", "mime": {"subject": "x"}}, "/mime"),
        ({"recipient": "a@a.test", "mime": "x", "data": {}}, "/data"),
        ({"recipient": "a@a.test", "mime": "x" * 3000}, "/mime"),
        ({"recipient": "a@a.test", "mime": "x", "ips": ["nonsense"]}, "/ips/0"),
    ],
)
async def test_a_job_that_cannot_be_processed_gets_one_result_that_points(document, pointer, system, sink):
    receiver = await sink()
    mail = await system(receiver, delivery={"max_message_size": 2048})

    await mail.rabbit.publish("outbox", orjson.dumps(document | {"mine": 1}))

    answer = await mail.get("failures")
    assert await mail.get("results") == answer
    assert answer["mine"] == 1
    (result,) = answer["results"]
    assert (result["state"], result["result"], result["pointer"]) == ("process", "invalid", pointer)
    assert result["code"] // 100 == 5
    assert receiver.messages == []


async def test_without_a_message_there_is_nothing_to_send(system, sink):
    mail = await system(await sink())

    await mail.rabbit.publish("outbox", b'{"recipient": "a@a.test"}')

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"]) == ("storage", "error")


@pytest.mark.parametrize("ips", [[], ["192.0.2.1"]])
async def test_without_a_usable_source_the_job_fails(ips, system, sink):
    mail = await system(await sink())

    await mail.send(recipient="accept@a.test", ips=ips)

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"]) == ("process", "error")


async def test_a_job_leaves_from_the_pool_it_names(system, sink):
    receiver = await sink()
    mail = await system(
        receiver,
        sources=[{"ip": "127.0.0.5", "pool": "bulk"}, {"ip": "127.0.0.6", "pool": "bulk"}, {"ip": "127.0.0.7"}],
    )

    for _ in range(12):
        await mail.send(recipient="accept@a.test", pool="bulk")
    results = [(await mail.get("success"))["results"][0] for _ in range(12)]
    await mail.send(recipient="accept@a.test", pool="slow", id="none")
    none = (await mail.get("failures"))["results"][0]

    assert {result["from"] for result in results} == {"127.0.0.5", "127.0.0.6"}
    assert (none["state"], none["result"], none["pointer"]) == ("process", "invalid", "/pool")
    assert none["description"] == "pool 'slow' is not configured (pools of this worker: bulk)"


async def test_a_job_leaves_from_the_address_it_names(system, sink):
    receiver = await sink()
    mail = await system(receiver, sources=[{"ip": "127.0.0.5", "ehlo": "five.test"}])

    await mail.send(recipient="accept@a.test", ips=["127.0.0.5", "192.0.2.1"])
    first = (await mail.get("success"))["results"][0]
    await mail.send(recipient="accept@a.test", ips=["127.0.0.6"])
    second = (await mail.get("success"))["results"][0]

    assert [first["from"], second["from"]] == ["127.0.0.5", "127.0.0.6"]
    assert [m.session.helo for m in receiver.messages] == ["five.test", "worker.test"]
    assert [m.session.peer for m in receiver.messages] == ["127.0.0.5", "127.0.0.6"]


async def test_a_message_lost_after_the_dot_is_in_doubt_and_retried(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="drop-after-dot@a.test", retries=[600])

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"], result["in_doubt"]) == ("message", "lost", True)


async def test_a_missing_envelope_is_the_null_sender(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.rabbit.publish("outbox", b'{"recipient": "accept@a.test", "mime": "Subject: x\\n\\nhi\\n"}')

    await mail.get("success")
    assert receiver.messages[0].sender == ""


async def test_dsn_is_asked_for_where_it_is_offered(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    dsn = {"notify": "SUCCESS, FAILURE", "ret": "HDRS", "envid": "a b+c", "orcpt": "rfc822;x@y.test"}
    await mail.send(recipient="accept@a.test", dsn=dsn)

    await mail.get("success")
    message = receiver.messages[0]
    assert message.parameters["RET"] == "HDRS"
    assert message.parameters["ENVID"] == "a+20b+2Bc"
    assert message.recipients[0].parameters == {"NOTIFY": "SUCCESS,FAILURE", "ORCPT": "rfc822;x@y.test"}


async def test_utf8_addresses_need_smtputf8(system, sink):
    able, unable = await sink(), await sink(without=["SMTPUTF8"])
    mail = await system(able)

    await mail.send(recipient="jörg@a.test")
    await mail.get("success")
    assert "SMTPUTF8" in able.messages[0].parameters
    await mail.stop()

    mail = await system(unable)
    await mail.send(recipient="jörg@a.test")
    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["status"]) == ("mailfrom", "5.6.7")


async def test_eight_bit_bodies_are_announced(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test", mime="Subject: x\n\nÄ\n")

    await mail.get("success")
    assert receiver.messages[0].parameters["BODY"] == "8BITMIME"
    assert receiver.messages[0].content.endswith("Ä\r\n".encode())


async def test_what_a_server_does_not_take_is_encoded_and_told(system, sink):
    receiver = await sink(without=["8BITMIME", "SMTPUTF8"])
    mail = await system(receiver)
    body = "Schöne Grüße aus Köln\n" + "lang " * 300

    await mail.send(recipient="Jö <accept@a.test>\n", mime=f"\ufeffSubject: {SUBJECT}\n\n{body}\n")

    (result,) = (await mail.get("success"))["results"]
    assert result["warnings"] == [
        "The recipient had blanks or line ends around it, which were removed.",
        "The recipient had a display name, which was removed.",
        "A byte order mark before the header was removed.",
        "Lines over 998 octets were encoded or folded.",
        "The 8-bit header was encoded, since the server does not offer SMTPUTF8.",
    ]
    content = receiver.messages[0].content
    assert (content.isascii(), max(map(len, content.split(b"\r\n"))) <= 998) == (True, True)
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert (message["subject"], message.get_content().replace("\r\n", "\n")) == (SUBJECT, f"{body}\n")

    await mail.send(recipient="accept@a.test", mime="Subject: x\n\nGrüße an alle\n")
    (result,) = (await mail.get("success"))["results"]
    assert result["warnings"] == ["The 8-bit body was encoded, since the server does not offer 8BITMIME."]
    assert "BODY" not in receiver.messages[1].parameters

    await mail.send(recipient="accept@a.test", mime="DKIM-Signature: v=1\nSubject: x\n\nÄ\n")
    (result,) = (await mail.get("failures"))["results"]
    assert (result["state"], result["code"], result["status"], result["about"]) == ("mailfrom", 554, "5.6.3", "message")


async def test_an_address_that_is_none_is_told_as_such(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    for name, status, number, about in [("recipient", "5.1.3", 10, "recipient"), ("envelope", "5.1.7", 25, "sender")]:
        await mail.send(**{"recipient": "accept@a.test", name: "a@a.test, b@a.test"})
        (result,) = (await mail.get("failures"))["results"]
        assert (result["state"], result["result"], result["pointer"]) == ("process", "invalid", f"/{name}")
        assert (result["code"], result["status"], result["class"], result["about"]) == (553, status, number, about)
    assert receiver.messages == []


async def test_a_message_larger_than_the_server_takes_is_not_sent(system, sink):
    mail = await system(await sink(max_size=2000))

    await mail.send(recipient="accept@a.test", mime="Subject: x\n\n" + "x" * 3000)

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["code"], result["status"]) == ("mailfrom", 552, "5.3.4")


async def test_the_sink_gets_every_connection_while_dns_decides_as_ever(system, sink):
    receiver = await sink()
    mail = await system(9, delivery={"sink": f"127.0.0.1:{receiver.port}"})

    await mail.send(recipient="accept@twomx.test")
    await mail.send(recipient="accept@gone.test")

    assert (await mail.get("success"))["results"][0]["to"] == "127.0.0.2"
    assert (await mail.get("failures"))["results"][0]["state"] == "dns"
    assert len(receiver.messages) == 1


async def test_the_second_mx_takes_over_when_the_first_refuses_connections(system, sink):
    second = await sink(host="127.0.0.3")
    mail = await system(second)

    await mail.send(recipient="accept@twomx.test")

    result = (await mail.get("success"))["results"][0]
    assert result["to"] == "127.0.0.3"
    assert len(await mail_results(mail)) == 1


async def mail_results(mail):
    return (await mail.get("results"))["results"]


async def test_the_second_mx_takes_over_on_421_but_not_on_a_refused_recipient(system, sink):
    first = await sink(host="127.0.0.2", faults=["ehlo=421"])
    second = await sink(host="127.0.0.3", port=first.port)
    mail = await system(second)

    await mail.send(recipient="accept@twomx.test")
    assert (await mail.get("success"))["results"][0]["to"] == "127.0.0.3"
    await mail.send(recipient="tempfail-450@twomx.test")
    await mail.get("retry")
    assert len(second.messages) == 1


async def test_a_refused_recipient_is_not_offered_to_the_next_mx(system, sink):
    first = await sink(host="127.0.0.2")
    second = await sink(host="127.0.0.3", port=first.port)
    mail = await system(second)

    await mail.send(recipient="tempfail-450@twomx.test")

    assert (await mail.get("retry"))["results"][0]["to"] == "127.0.0.2"
    assert second.messages == []


@pytest.mark.parametrize(
    ("domain", "kind", "code", "status", "queue"),
    [
        ("nullmx.test", "error", 556, "5.1.10", "failures"),
        ("gone.test", "error", 550, "5.1.2", "failures"),
        ("nodata.test", "error", 550, "5.4.4", "failures"),
        ("broken.test", "error", 451, "4.4.3", "retry"),
    ],
)
async def test_dns_endings(domain, kind, code, status, queue, system, sink):
    mail = await system(await sink())

    await mail.send(recipient=f"x@{domain}")

    result = (await mail.get(queue))["results"][0]
    assert (result["state"], result["result"], result["code"], result["status"]) == ("dns", kind, code, status)
    assert "to" not in result


PROHIBITED = DnsConfig().prohibited


@pytest.mark.parametrize("recipient", ["x@a.test", "x@implicit.test", "x@v6.test", "x@mapped.test", "x@[127.0.0.1]"])
async def test_the_dns_of_strangers_does_not_lead_to_this_host(recipient, system, sink):
    receiver = await sink()
    mail = await system(receiver, dns={"prohibited": PROHIBITED})

    await mail.send(recipient=recipient)

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"], result["code"], result["status"]) == ("dns", "error", 550, "5.4.4")
    assert (result["class"], result["about"]) == (21, "domain")
    assert "of dns.prohibited" in result["description"]
    assert "to" not in result
    assert receiver.connections == 0


async def test_an_mx_host_that_is_not_prohibited_takes_the_mail(system, sink):
    second = await sink(host="127.0.0.3")
    await sink(host="127.0.0.2", port=second.port)
    mail = await system(second, dns={"prohibited": ["127.0.0.2"]})

    await mail.send(recipient="accept@twomx.test")

    result = (await mail.get("success"))["results"][0]
    assert result["to"] == "127.0.0.3"
    assert "transcript" not in result


async def test_what_the_operator_names_may_be_on_this_host(system, sink):
    receiver = await sink()
    tables = {"prohibited": PROHIBITED, "overrides": {"a.test": ["mx.b.test"], "[127.0.0.1]": ["127.0.0.1"]}}
    mail = await system(receiver, dns=tables)

    for recipient in ("accept@a.test", "accept@[127.0.0.1]"):
        await mail.send(recipient=recipient)
        assert (await mail.get("success"))["results"][0]["to"] == "127.0.0.1"


async def test_a_silent_dns_is_a_timeout(system, sink, silent_dns):
    mail = await system(await sink(), dns={"servers": [silent_dns], "timeout": 0.2, "lifetime": 0.5})

    await mail.send(recipient="x@a.test")

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"], result["code"]) == ("dns", "timeout", 451)


async def test_a_failed_handshake_is_tried_again_in_plaintext(system, sink):
    receiver = await sink(tls=True, faults=["starttls=garbage"])
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test")

    result = (await mail.get("success"))["results"][0]
    assert "cipher" not in result
    assert receiver.messages[0].session.tls is None


async def test_required_tls_never_goes_plaintext(system, sink):
    receiver = await sink()
    mail = await system(receiver, tls={"mode": "required"})

    await mail.send(recipient="accept@a.test")

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"]) == ("starttls", "error")
    assert receiver.messages == []


async def test_a_whole_attempt_has_a_limit(system, sink):
    mail = await system(await sink(), delivery={"attempt_timeout": 0.5})

    await mail.send(recipient="stall-message@a.test")

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"], result["in_doubt"]) == ("message", "timeout", True)


async def test_many_jobs_arrive_once_each(system, sink):
    receiver: Sink = await sink()
    mail = await system(receiver)
    wanted = {f"accept+{number}@a.test" for number in range(300)}

    await asyncio.gather(*(mail.send(recipient=recipient) for recipient in wanted))

    await mail.rabbit.wait_for_count("success", len(wanted))
    await until(lambda: len(receiver.messages) >= len(wanted))
    assert sorted(m.recipients[0].address for m in receiver.messages) == sorted(wanted)
