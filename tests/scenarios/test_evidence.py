"""What results tell as evidence: transcripts, certificates as asked, dry runs, and jobs that are of no use any more."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest

from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.times import format_time
from mailq.edges.metrics import Metrics

PASSWORD = "hunter2"


async def test_a_refused_recipient_comes_with_the_conversation(system, sink):
    mail = await system(await sink(tls=True))

    await mail.send(recipient="reject-550@a.test", mime="Subject: x\n\nconfidential\n")

    result = (await mail.get("failures"))["results"][0]
    transcript = result["transcript"]
    assert transcript[0].startswith("* connecting to 127.0.0.1 port ")
    assert transcript[1] == "* connected from 127.0.0.1"
    assert transcript[2].startswith("S: 220 sink.test")
    assert transcript.count("C: EHLO worker.test") == 2
    assert transcript[transcript.index("C: STARTTLS") + 2] == "* encrypted: TLSv1.3"
    assert f"C: {result['command']}" in transcript
    assert f"S: 550 5.1.1 {result['description']}" in transcript
    assert "confidential" not in str(transcript)


async def test_on_a_used_session_the_conversation_begins_with_the_message(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="accept@a.test")
    first = (await mail.get("success"))["results"][0]
    await mail.send(recipient="reject-554-message@a.test", mime="Subject: x\n\nconfidential\n")
    second = (await mail.get("failures"))["results"][0]

    assert "transcript" not in first
    assert (second["session"], second["messages"]) == (first["session"], 2)
    transcript = second["transcript"]
    assert transcript[0] == f"* session {second['session']}, message 2"
    assert transcript[1].startswith("C: MAIL FROM:<a@a.test>")
    assert transcript[-2] == f"* message of {second['sent']['data']} octets"
    assert transcript[-1] == f"S: 554 {second['status']} {second['description']}"
    assert "confidential" not in str(transcript)


async def test_of_several_targets_the_ending_that_is_told_has_its_own_conversation(system, sink):
    first = await sink(host="127.0.0.2", faults=["mailfrom=421"])
    await sink(host="127.0.0.3", port=first.port, faults=["intro=554"])
    mail = await system(first)

    await mail.send(recipient="accept@twomx.test", retries=[600])

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["code"], result["to"]) == ("mailfrom", 421, "127.0.0.2")
    assert result["transcript"][0] == f"* connecting to 127.0.0.2 port {first.port}"
    assert "127.0.0.3" not in str(result["transcript"])
    assert any(line.startswith("S: 421 ") for line in result["transcript"][-2:])


async def test_without_a_conversation_there_is_no_transcript(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="accept@gone.test")

    result = (await mail.get("failures"))["results"][0]
    assert result["state"] == "dns"
    assert "transcript" not in result


async def test_silence_is_told(system, sink):
    mail = await system(await sink(), timeouts={"rcptto": 1})

    await mail.send(recipient="stall@a.test", retries=[600])

    result = (await mail.get("retry"))["results"][0]
    assert "C: RCPT TO:<stall@a.test>" in result["transcript"]
    assert result["transcript"][-1] == "* timeout in state rcptto: no answer in time"


async def test_a_refused_login_tells_no_secret(system, sink):
    server = await sink(tls=True, users={"me": "another"}, require_auth=True)
    login = {"hostname": "127.0.0.1", "port": server.port, "username": "me", "password": PASSWORD}
    mail = await system(server, smarthost=login)

    await mail.send(recipient="accept@a.test")

    document = await mail.get("retry")
    result = document["results"][0]
    assert (result["state"], result["code"]) == ("authplain", 535)
    assert "C: AUTH PLAIN ***" in result["transcript"]
    assert PASSWORD not in orjson.dumps(document).decode()


async def test_certificates_are_told_as_configured(system, sink):
    receiver = await sink(tls=True)
    told = {}
    for form in ("full", "summary", "none"):
        mail = await system(receiver, results={"certificates": form})
        await mail.send(recipient="accept@a.test")
        told[form] = (await mail.get("success"))["results"][0].get("certificate")
        await mail.stop()

    assert {"verified", "result", "altnames", "fingerprint", "notbefore"} <= set(told["full"])
    assert set(told["summary"]) <= {"verified", "result", "notafter", "subject", "issuer", "fingerprint"}
    assert {"verified", "result", "notafter", "fingerprint"} <= set(told["summary"])
    assert told["summary"]["fingerprint"] == told["full"]["fingerprint"]
    assert told["none"] is None


async def test_a_dry_run_tells_the_same_and_sends_nothing(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test", dryrun=True)
    dry = (await mail.get("success"))["results"][0]
    await mail.send(recipient="reject-550@a.test", dryrun=True)
    refused = (await mail.get("failures"))["results"][0]
    await mail.send(recipient="accept+real@a.test")
    real = (await mail.get("success"))["results"][0]

    assert (dry["state"], dry["result"], dry["code"], dry["dryrun"]) == ("rcptto", "accepted", 250, True)
    assert (dry["command"], dry["sent"]["data"], dry["dsn"]) == ("RCPT TO:<accept@a.test>", 0, True)
    assert set(dry) - {"dryrun"} == set(real)
    assert (refused["state"], refused["code"], refused["dryrun"]) == ("rcptto", 550, True)
    assert "dryrun" not in real
    assert [result["session"] for result in (refused, real)] == [dry["session"]] * 2  # in step after RSET
    assert [result["messages"] for result in (dry, refused, real)] == [1, 2, 3]
    assert [message.recipient for message in receiver.messages] == ["accept+real@a.test"]
    metrics = Metrics()
    for job, result in mail.seen.attempts:
        metrics.attempted(job, result, Verdict(Outcome.SUCCESS))
    assert metrics.registry.get_sample_value("mailq_attempts_total", {"state": "rcptto", "result": "accepted"}) == 1


@pytest.mark.parametrize("results", [[], [{"state": "rcptto", "result": "error", "code": 451, "description": "no"}]])
async def test_a_job_that_is_of_no_use_any_more_fails_at_once(results, system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test", useful_until="2020-01-01 00:00:00", results=results)

    result = (await mail.get("failures"))["results"][-1]
    assert (result["state"], result["result"], result["code"]) == ("process", "timeout", 554)
    assert result["description"].startswith("[internal] message timeout")
    assert ("451 no" in result["description"]) is bool(results)
    assert receiver.messages == []


async def test_a_job_whose_next_attempt_would_be_of_no_use_fails_early(system, sink):
    mail = await system(await sink())
    soon = format_time(datetime.now(UTC) + timedelta(seconds=40))

    await mail.send(recipient="tempfail-450@a.test", useful_until=soon, retries=[600])

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["code"], result["expired"]) == ("rcptto", 450, True)
    assert await mail.rabbit.count("retry") == 0
