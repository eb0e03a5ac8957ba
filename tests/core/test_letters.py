"""What is published when an attempt is settled."""

import gzip
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from mailq.core.failure import Failure
from mailq.core.job import Job
from mailq.core.letters import Names, park, poison, public, settle, with_result
from mailq.core.publication import Consumed
from mailq.core.reply import Reply
from mailq.core.result import Trail, accepted, failed
from mailq.core.states import Kind, State
from mailq.core.verdict import Outcome, Verdict

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
NAMES = Names()


def job(**properties):
    document = {"recipient": "b@b.test", "envelope": "a@a.test", "mime": "Subject: x\n\nhi", **properties}
    body = orjson.dumps(document)
    return Job.parse(body, limit=10_000), Consumed(
        body, 1, message_id="m1", headers={"traceparent": "t", "x-death": []}
    )


def delivered():
    trail = Trail(extracted={"subject": "x"})
    return accepted(trail, Reply(250, "2.0.0", "ok"), time=NOW, attempt=1)


def refused(code=450):
    failure = Failure(State.RCPTTO, Kind.ERROR, reply=Reply(code, None, "no"))
    return failed(Trail(), failure, time=NOW, attempt=1)


def published(job_and_consumed, result, verdict):
    letters = settle(*(job_and_consumed[0], result, verdict, NAMES, job_and_consumed[1], NOW))
    return {(letter.exchange, letter.routing_key): letter for letter in letters}


def test_a_success_is_published_once_through_the_exchange():
    letters = published(job(custom={"a": 1}), delivered(), Verdict(Outcome.SUCCESS))

    assert list(letters) == [("mailq", "success")]
    document = orjson.loads(letters["mailq", "success"].body)
    assert document["custom"] == {"a": 1}
    assert document["extracted"] == {"subject": "x"}
    assert document["results"][0]["state"] == "message"
    assert "mime" not in document


def test_keepmime_keeps_the_message():
    letters = published(job(keepmime=True), delivered(), Verdict(Outcome.SUCCESS))

    assert orjson.loads(letters["mailq", "success"].body)["mime"] == "Subject: x\n\nhi"


def test_a_retry_goes_to_the_delay_queue_with_its_message_and_to_retry_without():
    at = NOW + timedelta(seconds=600)

    letters = published(job(delayed="2029-01-01 00:00:00"), refused(), Verdict(Outcome.RETRY, at))

    assert set(letters) == {("mailq", "retry"), ("", "outbox.delay.10m")}
    parked = orjson.loads(letters["", "outbox.delay.10m"].body)
    assert parked["mime"] == "Subject: x\n\nhi"
    assert parked["nextattempt"] == {"time": "2030-01-01 12:10:00"}
    assert parked["seen"] == "2030-01-01 12:00:00"
    assert "delayed" not in parked
    copy = orjson.loads(letters["mailq", "retry"].body)
    assert "mime" not in copy
    assert copy["nextattempt"] == {"time": "2030-01-01 12:10:00"}


def test_the_smarthost_password_stays_on_the_way_back_and_never_reaches_a_result_queue():
    smarthost = {"hostname": "h.test", "username": "u", "password": "geheim"}

    letters = published(job(smarthost=smarthost), refused(), Verdict(Outcome.RETRY, NOW + timedelta(seconds=60)))

    assert b"geheim" in letters["", "outbox.delay.1m"].body
    assert b"geheim" not in letters["mailq", "retry"].body
    assert orjson.loads(letters["mailq", "retry"].body)["smarthost"] == {"hostname": "h.test", "username": "u"}


@pytest.mark.parametrize("dkim", [{"key": "PEM", "domain": "d"}, [{"key": "PEM", "domain": "d"}]])
def test_dkim_keys_never_reach_a_result_queue(dkim):
    assert b"PEM" not in orjson.dumps(public({"dkim": dkim}, None))


@pytest.mark.parametrize(
    ("queues", "outcome", "expected"),
    [
        ({"results": "mine"}, Outcome.SUCCESS, {("", "mine"), ("", "success")}),
        ({"results": None}, Outcome.SUCCESS, {("", "success")}),
        ({"results": None, "success": None}, Outcome.SUCCESS, set()),
        ({"failure": "f"}, Outcome.SUCCESS, {("mailq", "success")}),
        ({"failure": "f"}, Outcome.FAILURE, {("", "results"), ("", "f")}),
        ({"results": "one", "failure": "one"}, Outcome.FAILURE, {("", "one")}),
        ({}, Outcome.FAILURE, {("mailq", "failure")}),
    ],
)
def test_a_jobs_own_queues_override_one_by_one(queues, outcome, expected):
    assert set(published(job(queues=queues), delivered(), Verdict(outcome))) == expected


def test_a_null_retry_queue_switches_off_only_the_copy():
    letters = published(job(queues={"retry": None}), refused(), Verdict(Outcome.RETRY, NOW + timedelta(seconds=5)))

    assert set(letters) == {("", "outbox.delay.5s")}


def test_earlier_results_stay_in_front_also_those_of_others():
    document = {"results": [{"state": "intro", "foreign": True}]}

    results = with_result(document, refused(), Verdict(Outcome.FAILURE))["results"]

    assert results[0] == {"state": "intro", "foreign": True}
    assert results[1]["code"] == 450
    assert len(document["results"]) == 1


def test_an_expired_result_says_so():
    record = with_result({}, refused(), Verdict(Outcome.FAILURE, expired=True))["results"][0]

    assert record["expired"] is True
    assert record["code"] == 450


def test_gzip_stays_gzip_on_the_way_back_and_headers_of_brokers_do_not_travel():
    parsed, _ = job()
    consumed = Consumed(b"", 1, content_encoding="gzip", priority=7, headers={"traceparent": "t", "x-death": []})

    letter = park(parsed, {"a": 1}, NOW + timedelta(seconds=30), NAMES, consumed, NOW)

    assert orjson.loads(gzip.decompress(letter.body)) == {"a": 1}
    assert letter.content_encoding == "gzip"
    assert letter.priority == 7
    assert letter.headers == {"traceparent": "t"}
    assert letter.message_id == parsed.identity


def test_poison_keeps_the_bytes_and_says_why():
    letter = poison(Consumed(b"\x00nonsense", 1), "body is not JSON", NAMES)

    assert letter.body == b"\x00nonsense"
    assert letter.routing_key == "outbox.poison"
    assert letter.headers["x-mailq-reason"] == "body is not JSON"
