"""Results as events: the examples of EmailEngine's documentation property by property, and the table of error codes."""

import copy
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.answers.actions import Actions
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.broker.messages import Consumed
from mailq.core.broker.publications import Names, settle
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed, pack, unpack
from mailq.core.results.schema import ResultRecord
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import make_reply
from mailq.core.states import AUTH_STATES, Kind, State
from mailq.core.webhooks.endpoint import (
    Answer,
    AnswerMeaning,
    Endpoint,
    Item,
    Wait,
    Waits,
    emailengine_signature,
    rest,
    signature,
)
from mailq.core.webhooks.event_facts import Context
from mailq.core.webhooks.event_schema import events_schema
from mailq.core.webhooks.events import error_code, event_of, events_of, identity

NOW = datetime(2025, 10, 17, 8, 15, 32, 456000, UTC)
CONTEXT = Context("https://emailengine.example.com", "user123", 10)
SCHEMA = jsonschema.Draft202012Validator(json.loads(events_schema()))


def document(*, attempt=1, retry=None, sender="sender@example.com", to="recipient@destination.com",
             message_id="<abc123@example.com>", job=None, smarthost=None, **last):  # fmt: skip
    earlier = {"state": "rcptto", "result": "error", "time": "2025-10-17 08:00:00", "attempt": 1, "code": 451,
               "status": "4.7.1", "description": "later"}  # fmt: skip
    record = {"time": "2025-10-17 08:15:32", "attempt": attempt, **last}
    found = {
        "envelope": sender,
        "recipient": to,
        "results": [*[earlier] * (attempt - 1), record],
        "extracted": {"headers": {"message-id": message_id}},
    }
    found |= {"smarthost": smarthost} if smarthost else {}
    return found | ({"nextattempt": {"time": retry}} if retry else {}) | ({"id": job} if job else {})


def told(found, message_id="183e4b18f0ffe977476", context=CONTEXT):
    event = event_of(found, message_id, context, NOW)
    SCHEMA.validate(event.body)
    body = copy.deepcopy(event.body)
    assert body.pop("x-mailq")["result"] == found["results"][-1]
    assert (body.pop("serviceUrl"), body.pop("account")) == ("https://emailengine.example.com", "user123")
    assert body.pop("date") == "2025-10-17T08:15:32.456Z"
    return body


def error(job_id, made, following, *, sender="sender@example.com", to, message_id, **data):
    return {
        "event": "messageDeliveryError",
        "data": {
            "queueId": "183e4b18f0ffe977476",
            "envelope": {"from": sender, "to": [to]},
            "messageId": message_id,
            **data,
            "job": {"id": job_id, "attemptsMade": made, "attempts": 10, "nextAttempt": following},
        },
    }


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        pytest.param(
            {"job": "42", "retry": "2025-10-17 08:20:32", "state": "connect", "result": "timeout", "code": 451,
             "status": "4.4.1", "description": "connection timed out", "to": "recipient@destination.com",
             "message_id": "<305eabf4-9538-2747-acec-dc32cb651a0e@example.com>"},
            error("42", 1, "2025-10-17T08:20:32.000Z", to="recipient@destination.com",
                  message_id="<305eabf4-9538-2747-acec-dc32cb651a0e@example.com>",
                  error="Request timed out. Possibly a firewall issue or a wrong hostname/port (destination.com).",
                  errorCode="ETIMEDOUT"),
            id="connection timeout",
        ),
        pytest.param(
            {"job": "42", "retry": "2025-10-17 08:20:32", "state": "connect", "result": "timeout", "code": 451,
             "status": "4.4.1", "description": "connection timed out", "to": "recipient@destination.com",
             "smarthost": {"hostname": "smtp.destination.com", "port": 587},
             "message_id": "<305eabf4-9538-2747-acec-dc32cb651a0e@example.com>"},
            error("42", 1, "2025-10-17T08:20:32.000Z", to="recipient@destination.com",
                  message_id="<305eabf4-9538-2747-acec-dc32cb651a0e@example.com>",
                  error="Request timed out. Possibly a firewall issue or a wrong hostname/port"
                  " (smtp.destination.com:587).",
                  errorCode="ETIMEDOUT"),
            id="connection timeout of a smarthost",
        ),
        pytest.param(
            {"job": "43", "attempt": 2, "retry": "2025-10-17 09:40:15", "state": "authpassword", "result": "error",
             "code": 535, "status": "5.7.8", "description": "Authentication credentials invalid",
             "mta": "smtp.destination.com"},
            error("43", 2, "2025-10-17T09:40:15.000Z", to="recipient@destination.com",
                  message_id="<abc123@example.com>", error="Authentication failed", errorCode="EAUTH",
                  smtpResponse="535 5.7.8 Authentication credentials invalid", smtpResponseCode=535,
                  smtpCommand="AUTH"),
            id="authentication failure",
        ),
        pytest.param(
            {"job": "44", "retry": "2025-10-17 10:50:00", "state": "starttls", "result": "error", "code": 454,
             "status": "4.7.0", "description": "certificate refused: certificate has expired",
             "mta": "smtp.external.com", "sender": "sender@company.com", "to": "customer@external.com",
             "message_id": "<msg-456@company.com>"},
            error("44", 1, "2025-10-17T10:50:00.000Z", sender="sender@company.com", to="customer@external.com",
                  message_id="<msg-456@company.com>", errorCode="ESOCKET",
                  error="Certificate check for smtp.external.com failed."
                  " certificate refused: certificate has expired"),
            id="TLS certificate",
        ),
        pytest.param(
            {"job": "44", "retry": "2025-10-17 10:50:00", "state": "starttls", "result": "error", "code": 454,
             "status": "4.7.0", "description": "certificate refused: certificate has expired",
             "mta": "mx7.external.com", "sender": "sender@company.com", "to": "customer@external.com",
             "smarthost": {"hostname": "smtp.external.com", "port": 465}, "message_id": "<msg-456@company.com>"},
            error("44", 1, "2025-10-17T10:50:00.000Z", sender="sender@company.com", to="customer@external.com",
                  message_id="<msg-456@company.com>", errorCode="ESOCKET",
                  error="Certificate check for smtp.external.com:465 failed."
                  " certificate refused: certificate has expired"),
            id="TLS certificate of a smarthost",
        ),
        pytest.param(
            {"job": "45", "attempt": 3, "retry": "2025-10-17 11:42:33", "state": "dns", "result": "error",
             "code": 451, "status": "4.4.3", "description": "SERVFAIL", "to": "user@typo-domain.com"},
            error("45", 3, "2025-10-17T11:42:33.000Z", to="user@typo-domain.com", message_id="<abc123@example.com>",
                  error="mailq failed to resolve DNS record for typo-domain.com", errorCode="EDNS"),
            id="DNS",
        ),
        pytest.param(
            {"job": "45", "attempt": 3, "retry": "2025-10-17 11:42:33", "state": "dns", "result": "error",
             "code": 451, "status": "4.4.3", "description": "SERVFAIL", "to": "user@typo-domain.com",
             "smarthost": {"hostname": "smtp.typo-domain.com", "port": 587}},
            error("45", 3, "2025-10-17T11:42:33.000Z", to="user@typo-domain.com", message_id="<abc123@example.com>",
                  error="mailq failed to resolve DNS record for smtp.typo-domain.com", errorCode="EDNS"),
            id="DNS of a smarthost",
        ),
        pytest.param(
            {"job": "46", "retry": "2025-10-17 12:05:00", "state": "rcptto", "result": "error", "code": 450,
             "status": "4.7.1", "description": "Client host rejected: cannot find your hostname",
             "to": "blocked@strict-server.com"},
            error("46", 1, "2025-10-17T12:05:00.000Z", to="blocked@strict-server.com",
                  message_id="<abc123@example.com>", error="Message rejected by server", errorCode="EMESSAGE",
                  smtpResponse="450 4.7.1 Client host rejected: cannot find your hostname", smtpResponseCode=450,
                  smtpCommand="RCPT TO"),
            id="rejection",
        ),
    ],
)  # fmt: skip
def test_delivery_errors_as_documented(given_, expected):
    assert told(document(**given_)) == expected


def test_network_routing_as_documented():
    found = document(
        attempt=2, job="47", retry="2025-10-17 13:25:45", state="connect", result="error", code=451, status="4.4.1",
        description="Connection refused", sender="marketing@company.com", to="customer@email.com",
        message_id="<campaign-123@company.com>",
    )  # fmt: skip
    found["results"][-1] |= {"from": "192.168.1.100", "proxy": "socks5://user:secret@proxy.company.com:1080"}
    expected = error(
        "47", 2, "2025-10-17T13:25:45.000Z", sender="marketing@company.com", to="customer@email.com",
        message_id="<campaign-123@company.com>", errorCode="ECONNECTION",
        error="mailq failed to establish TCP connection against email.com",
        networkRouting={"localAddress": "192.168.1.100", "proxy": "socks5://proxy.company.com:1080"},
    )  # fmt: skip
    routed = Context("https://emailengine.example.com", "user123", 10, routed=True)
    found["results"][-1]["proxy"] = "socks5://proxy.company.com:1080"
    assert told(found, context=routed) == expected
    found["results"][-1]["proxy"] = "socks5://user:secret@proxy.company.com:1080"
    event = event_of(found | {"ips": ["192.168.1.100"]}, "x", CONTEXT, NOW)
    assert event.body["data"]["networkRouting"] == expected["data"]["networkRouting"]
    found["results"][-1]["proxy"] = "http://["
    assert "proxy" not in event_of(found, "x", routed, NOW).body["data"]["networkRouting"]
    del found["results"][-1]["proxy"]
    assert "networkRouting" not in event_of(found, "x", CONTEXT, NOW).body["data"]


def routing(context=CONTEXT, ips=None, **last):
    found = document(
        **{"state": "rcptto", "result": "error", "code": 550, "status": "5.1.1", "description": "no"} | last
    )
    return told(found | ({} if ips is None else {"ips": ips}), context=context)["data"].get("networkRouting")


def test_network_routing_of_a_failure_as_documented():
    routed = Context("https://emailengine.example.com", "user123", 10, routed=True)
    left = {"from": "192.168.1.100", "from_port": 54321, "to": "198.51.100.25"}
    expected = {"localAddress": "192.168.1.100", "localPort": 54321}
    assert routing(**left, ips=["192.168.1.100"]) == routing(**left, context=routed) == expected
    assert routing(**left) is None
    assert routing(**{**left, "from_port": "54321"}, ips=["192.168.1.100"]) == {"localAddress": "192.168.1.100"}


@pytest.mark.parametrize("name", ["messageSent", "messageDeliveryError", "messageFailed"])
def test_every_event_tells_the_local_port(name):
    last = {"from": "192.168.1.100", "from_port": 54321}
    last |= {"state": "message", "result": "accepted"} if name == "messageSent" else {"state": "data", "result": "lost"}
    found = document(retry="2025-10-17 08:20:32" if name == "messageDeliveryError" else None, **last)
    event = told(found | {"ips": ["192.168.1.100"]})
    assert event["event"] == name
    assert event["data"]["networkRouting"] == {"localAddress": "192.168.1.100", "localPort": 54321}


def test_where_a_refused_connection_was_to_leave_from_is_told_if_the_job_leaves_no_choice():
    refused = {
        "state": "connect",
        "result": "error",
        "code": 451,
        "status": "4.4.1",
        "description": "Connection refused",
    }
    assert routing(**refused, ips=["192.168.1.100"]) == {"localAddress": "192.168.1.100"}
    for ips in ([], ["192.168.1.100", "192.168.1.101"], [True], {}, None):
        assert routing(**refused, ips=ips) is None
    for state in ("process", "dns", "bind"):
        assert routing(**refused | {"state": state}, ips=["192.168.1.100"]) is None


def test_the_local_port_outlives_the_journal_and_the_way_to_consumers():
    job = Job.parse(orjson.dumps({"recipient": "b@a.test", "ips": ["192.0.2.1"], "mime": "x"}), limit=1000)
    trail = Trail(State.RCPTTO, facts={"from": "192.0.2.1", "from_port": 54321, "to": "198.51.100.25"})
    result = failed(trail, Failure(State.RCPTTO, Kind.LOST), time=NOW, attempt=1)
    unpacked = unpack(pack(result), job, NOW)
    assert unpacked.facts == result.facts
    for verdict in (Verdict(Outcome.FAILURE), Verdict(Outcome.RETRY, NOW)):
        publications = settle(job, unpacked, verdict, Names(), Consumed(b"", 1), NOW)
        for publication in publications:
            record = orjson.loads(publication.body)["results"][-1]
            assert list(record)[4:7] == ["from", "from_port", "to"]
            assert ResultRecord.model_validate(record).from_port == record["from_port"] == 54321
        event = event_of(orjson.loads(publications[0].body), "x", CONTEXT, NOW)
        assert event.body["data"]["networkRouting"] == {"localAddress": "192.0.2.1", "localPort": 54321}


def test_flags_that_patterns_set_are_in_the_event():
    job = Job.parse(b'{"recipient":"b@a.test","mime":"x"}', limit=1000)
    result = failed(Trail(State.RCPTTO), Failure(State.RCPTTO, Kind.ERROR), time=NOW, attempt=1)
    for strange in (True, False):
        verdict = Verdict(Outcome.FAILURE, effects=Actions(strange=strange, patterns=("odd",)))
        (publication,) = settle(job, result, verdict, Names(), Consumed(b"", 1), NOW)
        event = event_of(orjson.loads(publication.body), "x", CONTEXT, NOW)
        assert event.body["x-mailq"]["result"]["strange"] is strange
        assert event.body["x-mailq"]["result"]["patterns"] == ["odd"]
        SCHEMA.validate(event.body)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ({"state": "authpassword", "result": "error", "code": 535, "status": "5.7.8",
          "description": "Error: authentication failed"},
         "Error: Invalid login: 535 5.7.8 Error: authentication failed"),
        ({"state": "connect", "result": "timeout", "code": 451, "status": "4.4.1",
          "description": "connection timed out"}, "Error: Connect timeout"),
        ({"state": "rcptto", "result": "error", "code": 550, "status": "5.1.1",
          "description": "The email account that you tried to reach does not exist"},
         "Error: 550 5.1.1 The email account that you tried to reach does not exist"),
        ({"state": "connect", "result": "error", "code": 451, "status": "4.4.1",
          "description": "Connection refused"}, "Error: Connection refused"),
        ({"state": "rcptto", "result": "error", "code": 550, "status": "5.7.1", "description": "no\nsee http://x"},
         "Error: 550 5.7.1 no"),
    ],
)  # fmt: skip
def test_failures_as_documented(last, text):
    assert told(document(**last)) == {
        "event": "messageFailed",
        "data": {"messageId": "<abc123@example.com>", "queueId": "183e4b18f0ffe977476", "error": text},
    }


def test_sent():
    assert told(document(state="message", result="accepted", code=250, status="2.0.0", description="Ok")) == {
        "event": "messageSent",
        "data": {
            "queueId": "183e4b18f0ffe977476",
            "envelope": {"from": "sender@example.com", "to": ["recipient@destination.com"]},
            "messageId": "<abc123@example.com>",
            "response": "250 2.0.0 Ok",
        },
    }


CODES = {
    "ETIMEDOUT": [(state, Kind.TIMEOUT) for state in State if state is not State.MESSAGE],
    "EDNS": [(State.DNS, Kind.ERROR), (State.DNS, Kind.INVALID)],
    "ECONNECTION": [(State.BIND, Kind.ERROR), (State.CONNECT, Kind.ERROR), (State.CONNECT, Kind.LOST)],
    "ESOCKET": [(State.EHLO, Kind.LOST), (State.RCPTTO, Kind.LOST), (State.AUTHPLAIN, Kind.LOST)],
    "ETLS": [(State.STARTTLS, kind) for kind in (Kind.LOST, Kind.INVALID, Kind.ERROR)],
    "EAUTH": [(state, Kind.ERROR) for state in AUTH_STATES],
    "EPROTOCOL": [(State.INTRO, Kind.INVALID), (State.MESSAGE, Kind.INVALID)],
    "ESTREAM": [(State.MESSAGE, Kind.LOST), (State.MESSAGE, Kind.TIMEOUT)],
    "EMESSAGE": [(State.DATA, Kind.ERROR), (State.MESSAGE, Kind.ERROR), (State.PROCESS, Kind.INVALID),
                 (State.INTRO, Kind.ERROR), (State.STORAGE, Kind.ERROR)],
}  # fmt: skip


@pytest.mark.parametrize(("code", "endings"), CODES.items())
def test_error_codes(code, endings):
    for state, kind in endings:
        assert error_code({"state": state.value, "result": kind.value, "status": "4.3.0"}) == code, (state, kind)


def test_finer_error_codes():
    refused = {"result": "error", "description": "certificate refused: it is self-signed"}
    assert error_code({"state": "starttls", **refused}) == error_code({"state": "handshake", **refused}) == "ESOCKET"
    for state in ("mailfrom", "rcptto"):
        assert error_code({"state": state, "result": "error", "status": "5.1.1"}) == "EENVELOPE"
        assert error_code({"state": state, "result": "error", "status": "5.7.1"}) == "EMESSAGE"


def test_what_mailq_said_itself_is_no_smtp_response():
    for state, status, text in (("starttls", "4.7.0", "TLS is required and the server does not offer STARTTLS"),
                                ("starttls", "4.7.0", "TLS is not available")):  # fmt: skip
        found = document(state=state, result="error", code=454, status=status, description=text,
                         retry="2025-10-17 08:20:32")  # fmt: skip
        assert "smtpResponse" not in told(found)["data"]


def test_an_event_is_the_same_each_time_and_no_other_is():
    found = document(state="message", result="accepted", code=250)
    first, later = event_of(found, "x", CONTEXT, NOW), event_of(found, "x", CONTEXT, datetime.now(UTC))
    assert first.id == later.id
    another = document(attempt=2, state="dns", result="error")
    others = [event_of(found, "y", CONTEXT, NOW), event_of(another, "x", CONTEXT, NOW)]
    assert len({first.id, *(other.id for other in others)}) == 3


def test_identity_is_stable_over_attempts():
    first = document(state="dns", result="error", retry="2025-10-17 08:20:32")
    second = document(attempt=2, state="message", result="accepted")
    assert identity(first, None) == identity(second, None) != identity(first | {"recipient": "else@b.test"}, None)
    assert identity(first | {"id": "mine"}, None) == "mine"
    assert identity(first | {"id": "mine"}, "amqp") == "amqp"


def test_the_producers_properties_come_along_and_nothing_else():
    found = document(state="message", result="accepted", code=250) | {
        "order": 42, "mime": "secret text", "smarthost": {"hostname": "x"}, "tags": ["a", 7],
    }  # fmt: skip
    body = event_of(found, "x", CONTEXT, NOW).body
    assert body["x-mailq"]["properties"] == {"order": 42}
    assert body["x-mailq"]["tags"] == ["a", "7"]
    assert "secret" not in json.dumps(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["code", "status", "description", "mta", "to", "from", "from_port", "proxy", "time", "category"]
)
RECORDS = st.builds(
    lambda state, kind, more: {**more, "state": state, "result": kind},
    st.sampled_from([*State, "moon", 7]), st.sampled_from([*Kind, None]), st.dictionaries(NAMES, JSON, max_size=4),
)  # fmt: skip
DOCUMENTS = st.builds(
    lambda more, results: {**more, "results": results},
    st.dictionaries(
        st.sampled_from(["envelope", "recipient", "extracted", "nextattempt", "tags", "id", "maxattempts", "smarthost",
                         "ips", "account", "x"]), JSON, max_size=6),
    st.lists(RECORDS, max_size=2) | JSON,
)  # fmt: skip


@given(DOCUMENTS | JSON)
def test_any_document_makes_an_event_or_none(found):
    event = event_of(orjson.loads(json.dumps(found)), None, CONTEXT, NOW)
    assert event is None or event.body["event"] in ("messageSent", "messageDeliveryError", "messageFailed")
    assert event is None or orjson.loads(orjson.dumps(event.body)) == event.body


def test_numbers_beyond_64_bits_in_anybodys_results_make_an_event():
    body = b'{"results":[{"state":"rcptto","result":"error","code":123456789012345678901234567890}]}'
    event = event_of(orjson.loads(body), None, CONTEXT, NOW)
    assert event.name == "messageFailed"
    assert orjson.loads(orjson.dumps(event.body))["x-mailq"]["result"]["code"] == 1.2345678901234568e29


def test_meanings():
    for status in (200, 201, 204, 299):
        assert Answer(status).meaning is AnswerMeaning.DONE
    for status in (400, 413, 415, 422):
        assert Answer(status).meaning is AnswerMeaning.REFUSED
    for status in (None, 101, 301, 307, 401, 403, 404, 408, 425, 429, 500, 503, 599, 600):
        assert Answer(status).meaning is AnswerMeaning.TROUBLE
    assert Answer(410).meaning is AnswerMeaning.GONE


def test_rest_doubles_and_listens():
    assert [rest(failures, Answer(500), 1, 60) for failures in (0, 1, 5, 6, 1000)] == [1, 2, 32, 60, 60]
    assert rest(0, Answer(503, retry_after=120), 1, 60) == 120
    assert rest(0, Answer(503, retry_after=1e9), 1, 60) == 3600
    assert rest(3, Answer(503, retry_after=0), 1, 60) == 8


def test_signature_is_as_published():
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac key
    mac = "9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
    moment, first, second = signature([b"key", b"old"], 1700000000, b"{}").split(",")
    assert (moment, first) == ("t=1700000000", f"v1={mac}")
    assert second == signature([b"old"], 1700000000, b"{}").split(",")[1] != first


def test_filters():
    event = event_of(document(state="dns", result="error") | {"tags": ["a"]}, "x", CONTEXT, NOW)
    sent = event_of(document(state="message", result="accepted"), "x", CONTEXT, NOW)
    assert Endpoint("x").wants(event)
    assert Endpoint("x", events=("messageFailed",), tags=("b", "a")).wants(event)
    assert not Endpoint("x", events=("messageSent",)).wants(event)
    assert not Endpoint("x", tags=("b",)).wants(event)
    assert not Endpoint("x", categories=("soft",)).wants(event)
    assert Endpoint("x", categories=("soft",)).wants(sent)


def test_waits():
    waits = Waits()
    waits.add("job", "a", Wait(1, "30s", 100))
    waits.add("job", "b", Wait(2, "2m", 200))
    assert waits.before("job", 1, 50) is None
    assert waits.before("job", 2, 50).step == "30s"
    assert waits.before("job", 3, 50).step == "2m"
    assert waits.before("other", 3, 50) is None
    assert waits.before("job", 2, 150) is None
    waits.remove("job", "b")
    assert waits.jobs == {}


def names(found, **settings):
    return [event.name for event in events_of(found, "x", replace(CONTEXT, **settings), NOW)]


def test_the_last_failed_attempt_is_a_delivery_error_and_then_the_failure():
    refused = document(state="rcptto", result="error", code=550, status="5.7.1", description="no")
    error, failure = events_of(refused, "x", CONTEXT, NOW)
    assert (error.name, failure.name) == ("messageDeliveryError", "messageFailed")
    assert error.body["data"]["job"]["nextAttempt"] is False
    assert error.body["data"]["smtpResponse"] == "550 5.7.1 no"
    assert error.id != failure.id
    for event in (error, failure):
        SCHEMA.validate(event.body)
    assert names(refused, last_error=False) == ["messageFailed"]
    assert names(document(state="dns", result="error", code=550)) == ["messageDeliveryError", "messageFailed"]
    # No receiver had a part in these, or the attempt's own event was there before.
    for state, kind in (("process", "timeout"), ("process", "invalid"), ("process", "error"), ("storage", "error")):
        assert names(document(state=state, result=kind, code=550)) == ["messageFailed"]
    assert names(refused | {"nextattempt": {"time": "2025-10-17 08:20:32"}}) == ["messageDeliveryError"]


def test_a_failure_waits_for_the_delivery_error_of_its_attempt():
    events = events_of(document(state="rcptto", result="error", code=550), "x", CONTEXT, NOW)
    error, failure = (Item.made_of(event, 0, again=False) for event in events)
    waits = Waits()
    waits.add("x", error.id, Wait(error.place, "30s", 100))
    assert waits.before("x", failure.place, 50).step == "30s"
    assert waits.before("x", error.place, 50) is None


def test_a_message_without_a_message_id_has_one_in_every_event():
    found = document(state="rcptto", result="error", code=550, message_id=None)
    ids = {event.body["data"]["messageId"] for event in events_of(found, "x", CONTEXT, NOW)}
    sent = event_of(document(state="message", result="accepted", message_id=None), "x", CONTEXT, NOW)
    assert ids == {sent.body["data"]["messageId"]}
    (synthetic,) = ids
    assert re.fullmatch(r"<[0-9a-f]{32}@mailq\.invalid>", synthetic)
    assert synthetic != event_of(found, "y", CONTEXT, NOW).body["data"]["messageId"]


@pytest.mark.parametrize(
    ("properties", "retry", "attempts"),
    [
        ({"maxattempts": 7}, True, 7),
        # 08:15:32 and 60 s, then each 600 s until 09:15:32
        ({"seen": "2025-10-17 08:15:32"}, True, 7),
        ({"seen": "2025-10-17 08:15:32", "maxattempts": 0}, True, 7),
        ({"seen": "2025-10-17 08:15:32"}, False, 7),
        ({"seen": "2025-10-17 07:15:32"}, False, 1),
        ({"maxdelivertime": "2025-10-17 08:16:32"}, False, 2),
        ({"useful_until": "2025-10-17 08:16:31"}, False, 1),
        ({"retries": "5*2^n"}, False, 9),
        ({"retries": [1800]}, False, 3),
        ({"retries": [1]}, False, 1000),
        ({"retries": ["x"], "seen": 7, "maxdelivertime": "soon"}, False, 7),
    ],
)
def test_attempts_are_told_as_planned(properties, retry, attempts):
    context = Context(retries=(60, 600), max_deliver_time=3600)
    found = document(state="rcptto", result="error", code=450, retry="2025-10-17 08:16:32" if retry else None)
    (error, *_) = events_of(found | properties, "x", context, NOW)
    assert error.body["data"]["job"]["attempts"] == attempts


@pytest.mark.parametrize(
    ("tolerated", "plain"),
    [
        ({"retries": 1800}, {"retries": [1800]}),
        ({"retries": ["1800"]}, {"retries": [1800]}),
        ({"maxdelivertime": ""}, {}),
        ({"useful_until": []}, {}),
    ],
)
def test_attempts_are_planned_by_the_same_values_that_the_worker_reads(tolerated, plain):
    context = Context(retries=(60, 600), max_deliver_time=36_000)
    found = document(state="rcptto", result="error", code=450, retry="2025-10-17 08:16:32")
    (told,), (expected,) = (events_of(found | each, "x", context, NOW) for each in (tolerated, plain))
    assert told.body["data"]["job"] == expected.body["data"]["job"]


def test_an_answer_is_told_as_the_server_wrote_it():
    for reply, raw in (
        (make_reply(450, ["4.2.1 full", "4.2.1 later"]), "450-4.2.1 full\n450 4.2.1 later"),
        (make_reply(550, ["no such user"]), "550 no such user"),
        (make_reply(550, ["5.1.1 no such user"]), "550 5.1.1 no such user"),
    ):
        result = failed(Trail(State.RCPTTO), Failure(State.RCPTTO, Kind.ERROR, reply=reply), time=NOW, attempt=1)
        record = result.as_json()
        assert ResultRecord.model_validate(record)
        assert record.get("reply") in (raw, None)
        error, failure = events_of({"results": [record]}, "x", CONTEXT, NOW)
        assert error.body["data"]["smtpResponse"] == raw
        assert failure.body["data"]["error"] == f"Error: {raw.partition(chr(10))[0].replace('450-', '450 ')}"
        job = Job.parse(b'{"recipient":"b@a.test","mime":"x"}', limit=1000)
        assert unpack(pack(result), job, NOW).reply == result.reply
    assert accepted(Trail(), make_reply(250, ["ok"]), time=NOW, attempt=1).as_json()["reply"] == "250 ok"
    assert "reply" not in accepted(Trail(), make_reply(250, ["2.0.0 ok"]), time=NOW, attempt=1).as_json()


def test_emailengines_signature_is_as_published():
    # printf '{}' | openssl dgst -sha256 -hmac key -binary | basenc --base64url
    assert emailengine_signature(b"key", b"{}") == "p3dyTZQ-tI3Gm8qKSm1XoE2z-ex-HeTlgehgJlvfMDI"


def test_where_a_connection_that_was_refused_left_from_is_told_with_its_port():
    tried = {"from": "192.168.1.100", "from_port": 54321, "to": "198.51.100.25"}
    for known in ({}, {"from": "192.168.1.100"}):
        last = {"state": "connect", "result": "error", "code": 451, "tried": tried, **known}
        expected = {"localAddress": "192.168.1.100", "localPort": 54321}
        assert routing(**last, ips=["192.168.1.100", "192.168.1.101"]) == expected
        assert routing(**last) is None
