"""Delivery through a smarthost, with a login."""

import orjson
import pytest
from support.system import until

from mailq.config.dns import DnsConfig
from mailq.core.smtp.failure import Cause
from mailq.core.traffic import breaker
from mailq.sink.server import Sink

USERS = {"anna": "geheim"}


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_each_mechanism_logs_in_inside_tls(mechanism, system, sink, caplog):
    receiver = await sink(tls=True, users=USERS, mechanisms=[mechanism], require_auth=True)
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "geheim"}

    await mail.send(recipient="accept@gone.test", smarthost=smarthost)

    document = await mail.get("success")
    assert document["results"][0]["authentication"] == mechanism
    assert document["smarthost"] == {key: value for key, value in smarthost.items() if key != "password"}
    assert receiver.messages[0].session.user == "anna"
    assert receiver.messages[0].session.mechanism == mechanism
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("mechanism", "state"), [("PLAIN", "authplain"), ("LOGIN", "authpassword"), ("CRAM-MD5", "authresponse")]
)
async def test_a_wrong_password_keeps_the_job_and_is_shown_nowhere(mechanism, state, system, sink):
    receiver = await sink(tls=True, users=USERS, mechanisms=[mechanism])
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "falsch"}

    await mail.send(recipient="accept@a.test", smarthost=smarthost)

    message = await mail.rabbit.get("retry")
    assert b"falsch" not in message.body
    result = orjson.loads(message.body)["results"][0]
    assert (result["state"], result["result"], result["code"]) == (state, "error", 535)
    assert (result["class"], result["about"]) == (25, "us")
    assert result["command"] == f"AUTH {mechanism}"


async def test_a_rotated_password_fails_no_job_and_costs_few_attempts(system, sink, monkeypatch):
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 2.0)
    monkeypatch.setattr(breaker, "PROBE_WAIT", 1.0)
    users = {"anna": "old"}
    receiver = await sink(tls=True, users=users)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "geheim"}
    mail = await system(9, smarthost=smarthost, delivery={"retries": [1]})

    for number in range(20):
        await mail.send(recipient=f"accept-{number}@gone.test", maxattempts=2)
    await until(lambda: len(mail.seen.attempts) + mail.seen.parks >= 20)
    assert {result.code for _, result in mail.seen.attempts} == {535}
    assert Cause.LOGIN in mail.seen.causes
    users["anna"] = "geheim"
    await until(lambda: len(receiver.messages) == 20, deadline=30)

    spent = [result for _, result in mail.seen.attempts if not result.accepted]
    assert len(spent) <= breaker.THRESHOLD + 1
    for _ in range(20):
        assert (await mail.get("success"))["results"][-1]["result"] == "accepted"
    assert await mail.rabbit.count("failures") == 0


async def test_no_password_travels_without_tls(system, sink):
    receiver: Sink = await sink(users=USERS, plaintext_auth=True)
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "geheim"}

    await mail.send(recipient="accept@a.test", smarthost=smarthost)

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"]) == ("starttls", "error")
    assert "authentication" not in result


async def test_plaintext_logins_can_be_allowed_and_then_hide_the_password_if_they_can(system, sink):
    receiver = await sink(users=USERS, plaintext_auth=True)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "geheim"}
    mail = await system(9, smarthost=smarthost | {"plaintext_auth": True})

    await mail.send(recipient="accept@gone.test")

    assert (await mail.get("success"))["results"][0]["authentication"] == "CRAM-MD5"


async def test_a_smarthost_that_cannot_be_resolved_is_no_fault_of_the_recipient(system, sink):
    mail = await system(9)

    await mail.send(recipient="accept@a.test", smarthost={"hostname": "gone.test"})

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["code"]) == ("dns", 451)


async def test_the_dns_leads_to_this_host_for_the_operators_smarthost_only(system, sink):
    receiver = await sink()
    mail = await system(
        9, smarthost={"hostname": "mx.a.test", "port": receiver.port}, dns={"prohibited": DnsConfig().prohibited}
    )

    await mail.send(recipient="accept@gone.test")
    assert (await mail.get("success"))["results"][0]["to"] == "127.0.0.1"
    await mail.send(recipient="accept@gone.test", smarthost={"hostname": "127.0.0.1", "port": receiver.port})
    assert (await mail.get("success"))["results"][0]["to"] == "127.0.0.1"
    await mail.send(recipient="accept@gone.test", smarthost={"hostname": "mx.b.test", "port": receiver.port})
    result = (await mail.get("retry"))["results"][0]

    assert (result["state"], result["code"]) == ("dns", 451)
    assert result["description"] == "host mx.b.test: mx.b.test (127.0.0.1) is in 127.0.0.0/8 of dns.prohibited"


async def test_a_server_without_our_mechanisms_is_told(system, sink):
    receiver = await sink(tls=True)
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port, "username": "anna", "password": "geheim"}

    await mail.send(recipient="accept@a.test", smarthost=smarthost)

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["result"]) == ("authplain", "error")
    assert "PLAIN, LOGIN, CRAM-MD5" in result["description"]
