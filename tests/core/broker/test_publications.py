"""What is published when an attempt is settled."""

import gzip
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from mailq.core.answers.classify import Classification
from mailq.core.answers.flags import Flags
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.bounce_classes import About, Category
from mailq.core.broker.application_headers import DROPPED, MOST_DROPPED, MOST_ROUNDS, ROUNDS, rounds
from mailq.core.broker.messages import Application, Consumed, Fallback
from mailq.core.broker.provenance import HEADER, UNKNOWN, Outbox, Provenance
from mailq.core.broker.publications import (
    Names,
    delay,
    held_back,
    poison,
    poison_event,
    public,
    settle,
    until_due,
    with_result,
)
from mailq.core.jobs.document import read_document
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed
from mailq.core.smtp.failure import Cause, Delayed, Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.webhooks.event_facts import Context
from mailq.core.webhooks.events import event_of
from mailq.edges.amqp.poison_browser import revived

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
NAMES = Names()
OUTBOX = Outbox("/", "outbox", "secret")
MARKED = Provenance(mark="m")


def job(**properties):
    document = {"recipient": "b@b.test", "envelope": "a@a.test", "mime": "Subject: x\n\nhi", **properties}
    body = orjson.dumps(document)
    return Job.parse(body, limit=10_000, message_id="m1"), Consumed(
        body, 1, message_id="m1", headers={"traceparent": "t", "x-death": []}
    )


def delivered():
    trail = Trail(extracted={"subject": "x"})
    return accepted(trail, Reply(250, "2.0.0", "ok"), time=NOW, attempt=1)


def refused(code=450):
    failure = Failure(State.RCPTTO, Kind.ERROR, reply=Reply(code, None, "no"))
    return failed(Trail(), failure, time=NOW, attempt=1)


def published(job_and_consumed, result, verdict, names=NAMES):
    publications = settle(*(job_and_consumed[0], result, verdict, names, job_and_consumed[1], NOW))
    return {(publication.exchange, publication.routing_key): publication for publication in publications}


def test_a_success_is_published_once_through_the_exchange():
    publications = published(job(custom={"a": 1}), delivered(), Verdict(Outcome.SUCCESS))

    assert list(publications) == [("mailq", "success")]
    document = orjson.loads(publications["mailq", "success"].body)
    assert document["custom"] == {"a": 1}
    assert document["extracted"] == {
        "subject": "x",
        "envelope": {"local": "a", "domain": "a.test"},
        "recipient": {"local": "b", "domain": "b.test"},
    }
    assert document["results"][0]["state"] == "message"
    assert "mime" not in document


def test_keepmime_keeps_the_message():
    publications = published(job(keepmime=True), delivered(), Verdict(Outcome.SUCCESS))

    assert orjson.loads(publications["mailq", "success"].body)["mime"] == "Subject: x\n\nhi"


def test_a_retry_goes_to_the_delay_queue_with_its_message_and_to_retry_without():
    at = NOW + timedelta(seconds=600)

    publications = published(job(delayed="2029-01-01 00:00:00"), refused(), Verdict(Outcome.RETRY, at))

    assert set(publications) == {("mailq", "retry"), ("", "outbox.delay.10m")}
    delayed = orjson.loads(publications["", "outbox.delay.10m"].body)
    assert delayed["mime"] == "Subject: x\n\nhi"
    assert delayed["nextattempt"] == {"time": "2030-01-01 12:10:00"}
    assert delayed["seen"] == "2030-01-01 12:00:00"
    assert "delayed" not in delayed
    copy = orjson.loads(publications["mailq", "retry"].body)
    assert "mime" not in copy
    assert copy["nextattempt"] == {"time": "2030-01-01 12:10:00"}


def test_the_smarthost_password_stays_on_the_way_back_and_never_reaches_a_result_queue():
    smarthost = {"hostname": "h.test", "username": "u", "password": "geheim"}

    publications = published(job(smarthost=smarthost), refused(), Verdict(Outcome.RETRY, NOW + timedelta(seconds=60)))

    assert b"geheim" in publications["", "outbox.delay.1m"].body
    assert b"geheim" not in publications["mailq", "retry"].body
    assert orjson.loads(publications["mailq", "retry"].body)["smarthost"] == {"hostname": "h.test", "username": "u"}


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
    publications = published(job(queues={"retry": None}), refused(), Verdict(Outcome.RETRY, NOW + timedelta(seconds=5)))

    assert set(publications) == {("", "outbox.delay.5s")}


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
    body, headers = gzip.compress(b"{}"), {"traceparent": "t", "x-death": []}
    consumed = Consumed(body, 1, content_encoding="x-gzip", headers=headers)

    publication = until_due(parsed, {"a": 1}, NOW + timedelta(seconds=30), NAMES, consumed, NOW, MARKED)

    assert orjson.loads(gzip.decompress(publication.body)) == {"a": 1}
    assert publication.content_encoding == "gzip"
    assert publication.headers == {"traceparent": "t", HEADER: MARKED}
    assert publication.message_id == parsed.identity


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("queues", [None, {"results": "mine", "retry": "mine"}])
def test_every_result_has_the_identity_of_its_job_from_the_first_on(outcome, queues):
    body = orjson.dumps({"recipient": "b@b.test", "mime": "x", "queues": queues})
    parsed = Job.parse(body, limit=10_000)
    at = NOW + timedelta(seconds=30) if outcome is Outcome.RETRY else None
    first = published((parsed, Consumed(body, 1)), refused(), Verdict(outcome, at))

    assert {publication.message_id for publication in first.values()} == {parsed.identity}
    if outcome is Outcome.RETRY:
        publication = first["", "outbox.delay.30s"]
        again = Job.parse(publication.body, limit=10_000, message_id=publication.message_id)
        second = published(
            (again, Consumed(publication.body, 2, message_id=publication.message_id)), refused(), Verdict(outcome)
        )
        assert {publication.message_id for publication in second.values()} == {parsed.identity}


def test_an_id_of_the_producer_is_the_message_id_of_its_results():
    body = b'{"recipient":"b@b.test","id":"order-7"}'
    parsed = Job.parse(body, limit=10_000)
    (publication,) = published((parsed, Consumed(body, 1)), delivered(), Verdict(Outcome.SUCCESS)).values()

    assert publication.message_id == "order-7"


def test_of_a_gzipped_job_the_result_is_plain_and_the_job_on_its_way_back_gzipped():
    parsed, consumed = job()
    zipped = consumed._replace(body=gzip.compress(consumed.body), content_encoding="GZIP:utf-8")
    publications = published((parsed, zipped), refused(), Verdict(Outcome.RETRY, NOW + timedelta(seconds=30)))

    told, back = publications["mailq", "retry"], publications["", "outbox.delay.30s"]
    assert (told.content_encoding, back.content_encoding) == (None, "gzip")
    assert orjson.loads(told.body)["results"] == orjson.loads(gzip.decompress(back.body))["results"]
    assert (told.headers, back.headers) == ({"traceparent": "t", ROUNDS: 4}, {"traceparent": "t", HEADER: UNKNOWN})


@pytest.mark.parametrize(
    ("wanted", "consumed", "own", "told", "back"),
    [(False, 7, 5, None, None), (True, 7, None, 7, 7), (True, 7, 5, 7, 5), (True, None, 5, None, 5)],
)
@pytest.mark.parametrize("queues", [{}, {"queues": {"retry": "mine"}}])
def test_a_priority_is_written_only_where_the_operator_wants_it(wanted, consumed, own, told, back, queues):
    names = Names(priorities=wanted)
    parsed, message = job(**queues, **({} if own is None else {"priority": own}))
    message = message._replace(priority=consumed)
    later = NOW + timedelta(seconds=30)
    result, job_again = published((parsed, message), refused(), Verdict(Outcome.RETRY, later), names).values()
    delayed = delay(parsed, later, names, message, NOW, UNKNOWN)
    assert (result.priority, job_again.priority, delayed.priority) == (told, back, back)


KNOWN = Classification(30, "Generic Bounce: No RCPT", Category.HARD, About.RECIPIENT, "g1")


def test_what_failed_is_routed_by_category_and_class_and_says_where_that_comes_from():
    verdict = Verdict(Outcome.FAILURE, classification=KNOWN, ruleset="2030.1")
    (key, publication), = published(job(), refused(550), verdict).items()  # fmt: skip

    assert key == ("mailq", "failure.hard.30")
    told = orjson.loads(publication.body)["results"][0]
    assert {name: told[name] for name in ("class", "class_name", "category", "about", "rule", "ruleset")} == {
        "class": 30,
        "class_name": "Generic Bounce: No RCPT",
        "category": "hard",
        "about": "recipient",
        "rule": "g1",
        "ruleset": "2030.1",
    }


def test_a_success_is_of_no_class():
    (publication,) = published(job(), delivered(), Verdict(Outcome.SUCCESS)).values()
    told = orjson.loads(publication.body)["results"][0]

    assert not {"class", "class_name", "category", "about", "rule", "ruleset"} & set(told)


def test_a_greylisted_job_is_tried_again_from_the_same_source():
    trail = Trail(facts={"from": "192.0.2.1"})
    result = failed(trail, Failure(State.RCPTTO, Kind.ERROR, reply=Reply(450, None, "no")), time=NOW, attempt=1)
    at = NOW + timedelta(seconds=60)

    following = with_result({}, result, Verdict(Outcome.RETRY, at, flags=Flags(greylisted=True)))["nextattempt"]
    assert following == {"time": "2030-01-01 12:01:00", "ip": "192.0.2.1"}
    assert with_result({}, result, Verdict(Outcome.RETRY, at))["nextattempt"] == {"time": "2030-01-01 12:01:00"}


def test_what_the_limits_send_away_goes_first_when_it_is_back_and_stays_so():
    parsed, consumed = job()
    publication = OUTBOX.signed(delay(parsed, NOW + timedelta(seconds=5), NAMES, consumed, NOW, MARKED))

    back = Consumed(publication.body, 1, message_id=publication.message_id, headers=publication.headers)
    found = OUTBOX.read(back)
    assert (found.mark, found.returned) == ("m", True)
    assert (
        OUTBOX.signed(until_due(parsed, parsed.document, NOW, NAMES, back, NOW, found)).headers.keys()
        == publication.headers.keys()
    )


def test_poison_keeps_the_bytes_and_says_why():
    headers = {"traceparent": "t", "x-delivery-count": 3, "x-death": []}
    consumed = Consumed(b"\x00nonsense", 1, message_id="m", content_encoding="gzip", headers=headers, redelivered=True)
    publication = poison(consumed, "body is not JSON", NAMES, NOW, state="process", exception=None, provenance=UNKNOWN)

    assert publication.body == b"\x00nonsense"
    assert publication.routing_key == "outbox.poison"
    assert (publication.message_id, publication.content_encoding) == ("m", "gzip")
    assert OUTBOX.signed(publication).headers == {
        "traceparent": "t",
        "x-mailq-reason": "body is not JSON",
        "x-mailq-state": "process",
        "x-mailq-time": "2030-01-01 12:00:00",
        "x-mailq-delivery-count": 3,
    }


def test_a_first_delivery_has_no_count_whatever_its_producer_says():
    consumed = Consumed(b"{}", 1, headers={"x-delivery-count": 50})
    assert (consumed.delivery_count, consumed._replace(redelivered=True).delivery_count) == (0, 50)
    assert consumed._replace(redelivered=True, headers={"x-delivery-count": "a"}).delivery_count == 0


def test_a_mark_stays_through_the_poison_queue_and_back():
    """Octets that nobody reads may come back changed, with the results of attempts that met a bug."""
    publication = poison(
        Consumed(b"{}", 1, headers={"mine": 1}), "why", NAMES, NOW, state="-", exception=None, provenance=MARKED
    )
    publication = OUTBOX.signed(publication)
    put_aside = Consumed(
        publication.body, 1, message_id=publication.message_id, headers=publication.headers | {"x-death": []}
    )
    back = revived(put_aside, OUTBOX)
    assert (back.routing_key, back.headers.keys()) == ("outbox", {"mine", HEADER})
    found = OUTBOX.read(Consumed(back.body, 1, message_id=back.message_id, headers=back.headers))
    assert (found.mark, found.requeued) == ("m", True)
    plain = revived(put_aside._replace(headers={}), OUTBOX)
    found = OUTBOX.read(Consumed(plain.body, 1, headers=plain.headers))
    assert (found.mark, found.requeued) == ("", True)


def test_poison_says_what_the_exception_was_and_is_not_long_about_it():
    publication = poison(
        Consumed(b"{}", 1),
        "r" * 1000,
        NAMES,
        NOW,
        state="mailfrom",
        exception="KeyError: " + "x" * 1000,
        provenance=UNKNOWN,
    )

    assert publication.headers["x-mailq-state"] == "mailfrom"
    assert publication.headers["x-mailq-exception"].startswith("KeyError: xxx")
    assert {len(publication.headers[name]) for name in ("x-mailq-reason", "x-mailq-exception")} == {500}


APPLICATION = Application("c-1", "replies", "order", "shop")
STEERING = ["CC", "BCC", "cc", "bCc", "x-delay", "X-Delay", "x-match", "x-death", "X-Mailq-Anything", "x-mailq-rounds"]
"""Headers that a broker, one of its plug-ins or mailq acts on."""


def everything_published(headers, application=APPLICATION):
    """Return each kind of publication that a job with these headers leads to."""
    parsed, consumed = job(queues={"failure": "mine"})
    consumed = consumed._replace(headers=headers, application=application)
    at = NOW + timedelta(seconds=30)
    put_aside = poison(consumed, "r", NAMES, NOW, state="process", exception=None, provenance=MARKED)
    return [
        *settle(parsed, refused(), Verdict(Outcome.FAILURE), NAMES, consumed, NOW, MARKED),
        *settle(parsed, refused(), Verdict(Outcome.RETRY, at), NAMES, consumed, NOW, MARKED),
        until_due(parsed, parsed.document, at, NAMES, consumed, NOW, MARKED),
        delay(parsed, at, NAMES, consumed, NOW, MARKED),
        put_aside,
        revived(consumed._replace(headers=put_aside.headers), OUTBOX),
        revived(consumed, OUTBOX),
    ]


@pytest.mark.parametrize("name", STEERING)
def test_no_header_that_steers_a_broker_is_passed_on(name):
    for publication in everything_published({name: ["outbox"], "mine": 1}):
        assert publication.headers.get(name) != ["outbox"]
        assert publication.headers["mine"] == 1


def test_what_is_between_applications_comes_back_on_every_way():
    headers = {"traceparent": "t", "c c": 1, "ccc": 2, "xx": {"CC": ["within"]}, "number": 1.5}
    for publication in everything_published(headers):
        assert publication.application == APPLICATION
        assert {name: publication.headers[name] for name in headers} == headers


def test_a_direct_reply_to_is_left_out_since_the_broker_refuses_it_of_anybody_but_its_consumer():
    for publication in everything_published({}, APPLICATION._replace(reply_to="amq.rabbitmq.reply-to")):
        assert publication.application == APPLICATION._replace(reply_to=None)
    encoded = APPLICATION._replace(reply_to="amq.rabbitmq.reply-to.g1h2AA==")
    assert all(publication.application == encoded for publication in everything_published({}, encoded))


@pytest.mark.parametrize("count", [1, MOST_ROUNDS])
def test_results_count_how_many_came_one_from_the_other_and_other_publications_do_not(count):
    own, configured, copy, back, *others = everything_published({ROUNDS: count})
    assert {publication.headers[ROUNDS] for publication in (own, configured)} == {count + 1}
    assert copy.headers[ROUNDS] == MOST_ROUNDS + 1  # never a job: the job itself is on its way
    assert {publication.headers.get(ROUNDS) for publication in [back, *others[:3]]} == {count}
    assert {publication.headers.get(ROUNDS) for publication in others[3:]} == {None}  # from poison it begins anew


@pytest.mark.parametrize("forged", [0, -5, True, "3", None, 1.0, [9]])
def test_a_forged_count_that_makes_no_sense_is_none(forged):
    assert rounds({ROUNDS: forged}) == rounds({}) == 0
    assert everything_published({ROUNDS: forged})[0].headers[ROUNDS] == 1


def test_the_note_of_lost_headers_stays_and_is_not_long():
    for publication in everything_published({DROPPED: "a, b" + "c" * 1000}):
        assert publication.headers[DROPPED] == ("a, b" + "c" * 1000)[:MOST_DROPPED]
    assert all(DROPPED not in publication.headers for publication in everything_published({DROPPED: ["x"]}))


@pytest.mark.parametrize(
    ("queues", "fallbacks"),
    [
        ({"results": "mine"}, {"mine": Fallback("", "results", True), "failures": None}),
        ({"results": "mine", "failure": None}, {"mine": Fallback("mailq", "failure", True)}),
        (
            {"results": "mine", "failure": "too"},
            {"mine": Fallback("mailq", "failure", True), "too": Fallback("mailq", "failure", True)},
        ),
        ({"failure": "results"}, {"results": None}),
        ({}, {"failure": None}),
    ],
)
def test_a_queue_of_a_jobs_own_that_is_gone_has_a_place_that_takes_its_result(queues, fallbacks):
    publications = published(job(queues=queues), refused(), Verdict(Outcome.FAILURE))
    assert {key: publication.fallback for (_, key), publication in publications.items()} == fallbacks


def test_without_result_queues_the_fallback_of_a_jobs_own_queue_may_reach_nobody():
    parsed, consumed = job(queues={"results": "mine"})
    bare = Names(results="", success="", failures="", retry="")
    (publication,) = settle(parsed, refused(), Verdict(Outcome.FAILURE), bare, consumed, NOW)
    assert publication.fallback == Fallback("mailq", "failure", False)


def test_an_attempt_that_was_the_last_for_want_of_time_tells_the_timeout_with_its_answer():
    result = failed(Trail(), Failure(State.RCPTTO, Kind.ERROR, reply=Reply(454, "4.4.4", "no MX")), time=NOW, attempt=2)
    found = with_result({}, result, Verdict(Outcome.FAILURE, expired=True, why="expired"))["results"][0]
    assert found["reason"] == "554 5.4.7 [internal] message timeout (last transfail: 454 4.4.4 no MX)"
    assert (found["code"], found["expired"]) == (454, True)


def test_the_retry_copy_tells_what_chose_the_time_and_every_result_when_it_was_seen():
    at = NOW + timedelta(seconds=600)
    publications = published(job(), refused(), Verdict(Outcome.RETRY, at, why="hint 600 s"))
    copy = orjson.loads(publications["mailq", "retry"].body)
    assert copy["nextattempt"] == {"time": "2030-01-01 12:10:00", "reason": "hint 600 s"}
    assert copy["seen"] == "2030-01-01 12:00:00"
    (final,) = published(job(), delivered(), Verdict(Outcome.SUCCESS)).values()
    assert orjson.loads(final.body)["seen"] == "2030-01-01 12:00:00"


def test_a_job_with_queues_of_its_own_and_poison_are_told_to_webhooks_where_there_are_endpoints():
    names = Names(events="webhooks")
    asked, consumed = job(queues={"results": "mine", "success": None, "failure": "mine"})
    for verdict in (Verdict(Outcome.SUCCESS), Verdict(Outcome.FAILURE)):
        *_, last = settle(asked, delivered(), verdict, names, consumed, NOW)
        assert (last.exchange, last.routing_key, last.mandatory) == ("", "webhooks", False)
        others = settle(asked, delivered(), verdict, NAMES, consumed, NOW)
        assert "webhooks" not in {publication.routing_key for publication in others}
    plain, consumed = job()
    assert [each.exchange for each in settle(plain, delivered(), Verdict(Outcome.SUCCESS), names, consumed, NOW)] == [
        "mailq"
    ]
    told = poison_event(Consumed(b"\x00no JSON", 1), "body is not JSON", names, NOW, exception=None)
    event = event_of(orjson.loads(told.body), told.message_id, Context(), NOW)
    assert (event.name, told.routing_key, told.mandatory) == ("messageFailed", "webhooks", False)
    assert event.body["data"]["error"] == "Error: put into queue outbox.poison: body is not JSON"
    assert event.body["data"]["messageId"]


ADDRESSES = [
    ("jo@a.test", {"local": "jo", "domain": "a.test"}),
    ("<jo@a.test>", {"local": "jo", "domain": "a.test"}),
    ('"a@b"@a.test', {"local": '"a@b"', "domain": "a.test"}),
    ("", None),
    ("nobody", None),
    (None, None),
    (7, None),
]


@pytest.mark.parametrize(("address", "split"), ADDRESSES)
def test_extracted_has_both_addresses_in_two(address, split):
    found = public({"envelope": address, "recipient": address}, {"subject": "x"})["extracted"]
    assert (found.get("envelope"), found.get("recipient"), found["subject"]) == (split, split, "x")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_job_that_ended_before_its_header_was_read_has_it_extracted_all_the_same(ending):
    mime = "\ufeff" + ending.join(["Message-ID: <1@a.test>", "Subject: hi", "", "x" * 200_000])
    found = public({"mime": mime}, None)["extracted"]
    assert found == {"subject": "hi", "headers": {"message-id": "<1@a.test>", "subject": "hi"}}
    assert "extracted" not in public({"mime": {"a": 1}}, None)


def test_a_result_is_gzip_from_the_configured_size_on():
    parsed, consumed = job()
    plain, *_ = settle(parsed, delivered(), Verdict(Outcome.SUCCESS), NAMES, consumed, NOW)
    for size, encoding in ((len(plain.body), "gzip"), (len(plain.body) + 1, None)):
        made, *_ = settle(parsed, delivered(), Verdict(Outcome.SUCCESS), Names(gzip=size), consumed, NOW)
        assert made.content_encoding == encoding
        assert read_document(made.body, encoding, 10_000) == orjson.loads(plain.body)
    *_, back = settle(parsed, refused(), Verdict(Outcome.RETRY, NOW + timedelta(hours=1)), Names(gzip=1), consumed, NOW)
    assert (back.routing_key, back.content_encoding) == ("outbox.delay.1h", None)


@pytest.mark.parametrize("cause", [Cause.RATE, Cause.PAUSE, Cause.LOGIN, Cause.CONNECTIONS, Cause.SILENCE])
def test_a_job_that_is_held_back_is_told_to_the_retry_queue_and_keeps_its_attempts(cause):
    parsed, consumed = job(results=[{"attempt": 1}])
    until = NOW + timedelta(minutes=5)
    (copy,) = held_back(parsed, until, Delayed(300, cause, "for 5 minutes"), NAMES, consumed, NOW)
    document = orjson.loads(copy.body)
    record = document["results"][-1]
    assert (copy.exchange, copy.routing_key) == ("mailq", "retry")
    assert (record["code"], record["status"], record["attempt"], record["delayed"]) == (451, "4.3.0", 2, cause)
    assert record["description"].startswith("[internal] ")
    assert document["nextattempt"] == {"time": "2030-01-01 12:05:00", "reason": str(cause)}
    event = event_of(document, "id", Context(), NOW)
    assert (event.name, event.body["data"]["job"]["attemptsMade"]) == ("messageDeliveryError", 1)
    back = delay(parsed, until, NAMES, consumed, NOW, UNKNOWN)
    assert orjson.loads(back.body)["results"] == [{"attempt": 1}]
