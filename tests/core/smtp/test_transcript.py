"""What a transcript tells, and what it never does."""

import base64
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed, pack, unpack
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import MAX_REPLY, Reply
from mailq.core.smtp.transcript import MAX_LINE, MAX_TRANSCRIPT, lines, masked
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Login
from mailq.delivery.smtp.auth import MECHANISMS

NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=UTC)
OK = Reply(250, None, "ok")

REPLIES = st.builds(Reply, st.integers(200, 599), st.sampled_from([None, "5.1.1"]), st.text(max_size=3000))
SAID = st.lists(REPLIES | st.lists(st.text(max_size=800)).map(tuple) | st.integers(0) | st.text(max_size=800))


def size(transcript):
    return sum(len(line.encode()) + 1 for line in transcript)


def test_everybody_is_told_apart():
    said = ["session 5f0c, message 2", ("MAIL FROM:<a@a.test>", "DATA"), Reply(250, "2.1.0", "ok"), 1234]

    assert lines(said) == (
        "* session 5f0c, message 2",
        "C: MAIL FROM:<a@a.test>",
        "C: DATA",
        "S: 250 2.1.0 ok",
        "* message of 1234 octets",
    )


def test_an_answer_of_several_lines_stands_as_it_was_sent():
    assert lines([Reply(550, "5.7.1", "go\naway")]) == ("S: 550-5.7.1 go", "S: 550 5.7.1 away")
    assert lines([Reply(354, None, "")]) == ("S: 354",)


@given(SAID)
def test_it_is_bounded_and_can_be_seen_and_written(said):
    transcript = lines(said)

    assert size(transcript) <= MAX_TRANSCRIPT
    assert all(line.isprintable() and len(line.encode()) <= MAX_LINE for line in transcript)
    assert all(line.startswith(("C: ", "S: ", "* ")) or line in ("...", "S: ", "C:", "*") for line in transcript)
    assert "..." not in transcript[1:]
    orjson.dumps(transcript)


def test_the_newest_is_kept_and_a_cut_is_told():
    said = [(f"RCPT TO:<{number:04}@a.test>",) for number in range(200)]

    transcript = lines(said)

    assert transcript[0] == "..."
    assert transcript[-1] == "C: RCPT TO:<0199@a.test>"
    assert list(transcript[1:]) == [f"C: {said[number][0]}" for number in range(201 - len(transcript), 200)]
    assert MAX_TRANSCRIPT - 60 < size(transcript) <= MAX_TRANSCRIPT


def test_what_just_fits_is_not_cut():
    line = "x" * 96  # with "C: " and its end 100
    assert lines([(line,)] * 20)[0] == f"C: {line}"
    assert lines([(line,)] * 21)[0] == "..."


def test_a_long_answer_does_not_drive_out_all_the_others():
    transcript = lines([("EHLO a.test",), Reply(550, None, "é" * 2000), "lost"])

    assert transcript[0] == "C: EHLO a.test"
    assert transcript[1].startswith("S: 550 éé")
    assert transcript[1].endswith("é...")
    assert transcript[2] == "* lost"


def test_what_a_stranger_says_is_bounded_before_it_is_kept():
    trail = Trail()

    trail.heard(Reply(550, None, "x" * MAX_REPLY))
    trail.heard(OK)

    long, short = trail.said
    assert long == (550, None, "x" * MAX_TRANSCRIPT + "...")
    assert short is OK


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_credentials_are_told(mechanism):
    name, password = "somebody", "correct horse battery staple"
    dialogue = MECHANISMS[mechanism](Login(name, password, plaintext=True))
    _, line = next(dialogue)
    sent = [line]
    while True:
        try:
            _, line = dialogue.send(Reply(334, None, base64.b64encode(b"<1.2@a.test>").decode()))
        except StopIteration:
            break
        sent.append(line)

    told = [masked(line, f"AUTH {mechanism}") for line in sent]

    assert told[0] in (f"AUTH {mechanism}", f"AUTH {mechanism} ***")
    assert set(told[1:]) <= {"***"}
    secrets = [line.removeprefix(f"AUTH {mechanism}").strip() for line in sent]
    assert any(secrets)
    assert not [secret for secret in secrets if secret and secret in "".join(told)]


def test_only_what_failed_after_something_was_said_has_a_transcript():
    trail = Trail(said=[OK])
    failure = Failure(State.RCPTTO, Kind.TIMEOUT)

    assert "transcript" not in accepted(trail, OK, time=NOW, attempt=1).as_json()
    assert "transcript" not in failed(Trail(), failure, time=NOW, attempt=1).as_json()
    assert failed(trail, failure, time=NOW, attempt=1).as_json()["transcript"] == [
        "S: 250 ok",
        "* timeout in state rcptto: no answer in time",
    ]


def test_a_refusal_is_not_told_twice():
    trail = Trail(said=[Reply(550, None, "no")])
    failure = Failure(State.RCPTTO, Kind.ERROR, reply=Reply(550, None, "no"))

    assert failed(trail, failure, time=NOW, attempt=1).transcript == ("S: 550 no",)


def test_a_connection_that_was_given_up_is_forgotten():
    trail = Trail(said=[OK])

    trail.forget_connection()

    assert trail.said == []


def test_the_journal_keeps_it():
    job = Job.parse(b'{"recipient": "a@a.test", "mime": "x"}', limit=1000)
    result = failed(Trail(said=[OK]), Failure(State.DATA, Kind.LOST), time=NOW, attempt=1)

    again = unpack(pack(result), job, NOW)

    assert again.transcript == result.transcript != ()


CERTIFICATE = {
    "notbefore": "2029-01-01 00:00:00",
    "notafter": "2031-01-01 00:00:00",
    "version": 3,
    "verified": False,
    "result": "hostname mismatch",
    "subject": {"common": "mx.example.net", "country": "NL"},
    "issuer": {"organization": "CA"},
    "altnames": ["mx.example.net"],
    "fingerprint": "0" * 64,
}


def test_certificates_are_told_as_asked():
    facts = {"mta": "mx", "certificate": CERTIFICATE, "dsn": True}
    result = accepted(Trail(facts=facts), OK, time=NOW, attempt=1)

    assert result.as_json()["certificate"] == result.as_json("full")["certificate"] == CERTIFICATE
    assert result.as_json("summary")["certificate"] == {
        "notafter": "2031-01-01 00:00:00",
        "verified": False,
        "result": "hostname mismatch",
        "subject": {"common": "mx.example.net"},
        "fingerprint": "0" * 64,
    }
    assert "certificate" not in result.as_json("none")
    assert list(result.as_json("summary")) == list(result.as_json())
    assert result.facts["certificate"] is CERTIFICATE  # what is shared is not changed


@pytest.mark.parametrize("certificates", ["full", "summary", "none"])
def test_without_encryption_there_is_no_certificate_to_shorten(certificates):
    result = accepted(Trail(facts={"mta": "mx"}), OK, time=NOW, attempt=1)

    assert result.as_json(certificates) == result.as_json()
