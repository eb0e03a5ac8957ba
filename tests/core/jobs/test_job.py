"""Jobs: every property read or refused at its place, the producer's document kept as it came."""

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.jobs.address import Address
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job, NextAttempt, Smarthost

LIMIT = 1_000_000
MOMENT = datetime(2030, 1, 31, 12, tzinfo=UTC)
TIME = "2030-01-31 12:00:00"


def parse(document=None, /, *, encoding=None, message_id=None, limit=LIMIT, **properties):
    """Return the job in a body, or in a document of a recipient and the given properties; only in form it is one."""
    body = document if isinstance(document, bytes) else orjson.dumps({"recipient": "to@example.org", **properties})
    return Job.parse(body, encoding=encoding, message_id=message_id, limit=limit, strict=True)


def refusal(*args, **properties):
    with pytest.raises(InvalidJobError) as caught:
        parse(*args, limit=10 * LIMIT, **properties)
    return caught.value


def test_a_pointer_into_a_long_name_is_cut():
    trouble = refusal(queues={"x" * 1_000_000: "y"})
    assert trouble.pointer == "/queues/" + "x" * 247 + "…"
    assert len(trouble.reason) <= 1000


GOOD = [
    ("recipient", "Info@EXAMPLE.org", Address("Info", "example.org")),
    ("envelope", "from@example.org", Address("from", "example.org")),
    ("envelope", "", None),
    ("envelope", "<>", None),
    ("envelope", None, None),
    ("mime", "Subject: a\r\n\r\nb", "Subject: a\r\n\r\nb"),
    ("mime", "", ""),
    ("mime", None, None),
    ("keepmime", True, True),
    ("ips", ["192.0.2.1", "2001:db8::1"], ["192.0.2.1", "2001:db8::1"]),
    ("ips", [], []),
    ("ips", ["192.0.2.1"] * 256, ["192.0.2.1"] * 256),
    ("nextattempt", {"time": TIME, "other": 1}, NextAttempt(time=TIME)),
    ("nextattempt", None, None),
    ("delayed", TIME, MOMENT),
    ("maxdelivertime", TIME, MOMENT),
    ("maxdelivertime", "2030-01-31T13:00:00+01:00", MOMENT),
    ("maxdelivertime", "2030-01-31T12:00:00Z", MOMENT),
    ("maxdelivertime", None, None),
    ("maxattempts", 0, 0),
    ("maxattempts", 3, 3),
    ("retries", [1, 31_536_000], [1, 31_536_000]),
    ("force", True, True),
    ("tags", ["a", "b"], ["a", "b"]),
    ("priority", 255, 255),
    ("id", "job-1", "job-1"),
    ("on_doubt", "retry", "retry"),
    ("seen", TIME, MOMENT),
    ("results", [{"state": "dns", "anything": None}], [{"state": "dns", "anything": None}]),
    ("smarthost", {"hostname": "mx.example"}, Smarthost(hostname="mx.example")),
    ("inlinecss", False, False),
    ("dryrun", False, False),
    ("data", None, None),
]


@pytest.mark.parametrize(("name", "value", "read"), GOOD)
def test_reads(name, value, read):
    assert getattr(parse(**{name: value}), name) == read


@pytest.mark.parametrize(
    ("dsn", "name", "read"),
    [
        ({"notify": "NEVER"}, "notify", "NEVER"),
        ({"notify": "success, Failure,DELAY"}, "notify", "success, Failure,DELAY"),
        ({"ret": "HDRS"}, "ret", "HDRS"),
        ({"orcpt": "rfc822;a@b.c"}, "orcpt", "rfc822;a@b.c"),
        ({"envid": "x" * 100}, "envid", "x" * 100),
        ({"unknown": 1}, "notify", None),
    ],
)
def test_reads_dsn(dsn, name, read):
    assert getattr(parse(dsn=dsn).dsn, name) == read


def test_reads_queues_and_tells_null_from_absent():
    queues = parse(queues={"results": "mine", "success": None}).queues
    assert (queues.results, queues.success) == ("mine", None)
    assert queues.model_fields_set == {"results", "success"}


def test_a_password_is_not_shown():
    job = parse(smarthost={"hostname": "mx", "port": 587, "username": "u", "password": "secret"})
    assert (job.smarthost.port, job.smarthost.password) == (587, "secret")
    assert "secret" not in repr(job)


BAD = [
    ("recipient", None, "/recipient"),
    ("recipient", 5, "/recipient"),
    ("recipient", "", "/recipient"),
    ("recipient", ["to@example.org"], "/recipient"),
    ("recipient", "a@example.org\r\nDATA", "/recipient"),
    ("recipient", "a@[IPv6:fe80::1%> SIZE=1]", "/recipient"),
    ("envelope", "no address", "/envelope"),
    ("envelope", False, "/envelope"),
    ("mime", 5, "/mime"),
    ("mime", ["a"], "/mime"),
    ("keepmime", "yes", "/keepmime"),
    ("keepmime", 1, "/keepmime"),
    ("ips", "192.0.2.1", "/ips"),
    ("ips", ["192.0.2.1", 5], "/ips/1"),
    ("ips", ["192.0.2.1"] * 257, "/ips"),
    ("nextattempt", TIME, "/nextattempt"),
    ("nextattempt", {}, "/nextattempt/time"),
    ("nextattempt", {"time": "soon"}, "/nextattempt/time"),
    ("delayed", 1_900_000_000, "/delayed"),
    ("delayed", "2030-01-31", "/delayed"),
    ("maxdelivertime", "2030-01-31T12:00:00", "/maxdelivertime"),
    ("maxdelivertime", "2030-02-30 12:00:00", "/maxdelivertime"),
    ("maxdelivertime", "0001-01-01T00:00:00+14:00", "/maxdelivertime"),
    ("maxdelivertime", "9999-12-31T23:59:59-14:00", "/maxdelivertime"),
    ("maxattempts", -1, "/maxattempts"),
    ("maxattempts", "3", "/maxattempts"),
    ("maxattempts", True, "/maxattempts"),
    ("maxattempts", 1.5, "/maxattempts"),
    ("retries", [], "/retries"),
    ("retries", [0], "/retries/0"),
    ("retries", [60, 31_536_001], "/retries/1"),
    ("retries", [1] * 101, "/retries"),
    ("retries", 60, "/retries"),
    ("force", "no", "/force"),
    ("dsn", "NEVER", "/dsn"),
    ("dsn", {"notify": "SOMETIMES"}, "/dsn/notify"),
    ("dsn", {"notify": "NEVER,SUCCESS"}, "/dsn/notify"),
    ("dsn", {"notify": "SUCCESS," * 200_000 + "DELAY"}, "/dsn/notify"),
    ("dsn", {"ret": "ALL"}, "/dsn/ret"),
    ("dsn", {"orcpt": "a\r\nb"}, "/dsn/orcpt"),
    ("dsn", {"envid": "x" * 101}, "/dsn/envid"),
    ("dsn", {"envid": "ü"}, "/dsn/envid"),
    ("queues", {"bounces": "x"}, "/queues/bounces"),
    ("queues", {"results": ""}, "/queues/results"),
    ("queues", {"results": "a\nb"}, "/queues/results"),
    ("queues", {"results": "x" * 256}, "/queues/results"),
    ("queues", [], "/queues"),
    ("smarthost", {}, "/smarthost/hostname"),
    ("smarthost", {"hostname": "a b"}, "/smarthost/hostname"),
    ("smarthost", {"hostname": "a", "port": 0}, "/smarthost/port"),
    ("smarthost", {"hostname": "a", "port": 65536}, "/smarthost/port"),
    ("smarthost", {"hostname": "a", "password": "x\r\ny"}, "/smarthost/password"),
    ("smarthost", {"hostname": "a", "username": "x\x00y"}, "/smarthost/username"),
    ("smarthost", "mx", "/smarthost"),
    ("tags", "a", "/tags"),
    ("tags", [1], "/tags/0"),
    ("tags", ["a"] * 1001, "/tags"),
    ("priority", 256, "/priority"),
    ("priority", "5", "/priority"),
    ("id", "", "/id"),
    ("id", 5, "/id"),
    ("id", "a\nb", "/id"),
    ("on_doubt", "maybe", "/on_doubt"),
    ("seen", 5, "/seen"),
    ("results", {}, "/results"),
    ("results", [1], "/results/0"),
    ("inlinecss", "yes", "/inlinecss"),
    ("dryrun", 1, "/dryrun"),
]


@pytest.mark.parametrize(("name", "value", "pointer"), BAD)
def test_refuses_at_its_place(name, value, pointer):
    trouble = refusal(**{name: value})
    assert trouble.pointer == pointer
    assert trouble.reason
    assert trouble.document == {"recipient": "to@example.org", name: value}


def test_a_reason_does_not_repeat_what_was_wrong():
    assert "hunter2" not in refusal(smarthost={"hostname": "mx", "password": "hunter2\r\n"}).reason
    assert "hunter2" not in refusal(smarthost={"hostname": "mx", "password": ["hunter2"]}).reason


ASKED = [
    ("data", {"name": "x"}),
    ("key", "store-key"),
    ("dkim", [{"domain": "example.org"}]),
    ("inlinecss", True),
    ("headers", {"x": "y"}),
    ("security", "required"),
    ("mime", {"subject": "responsive"}),
]


@pytest.mark.parametrize(("name", "value"), ASKED)
def test_refuses_what_is_not_built_yet(name, value):
    trouble = refusal(**{name: value})
    assert trouble.pointer == f"/{name}"
    assert name in trouble.reason
    assert trouble.document[name] == value


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("useful_until", TIME, MOMENT),
        ("dryrun", True, True),
        ("dryrun", False, False),
        ("pool", "bulk", "bulk"),
        ("on_doubt", "fail", "fail"),
        ("on_doubt", "retry", "retry"),
    ],
)
def test_takes_what_is_built(name, value, read):
    assert getattr(parse(**{name: value}), name) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [("useful_until", "soon"), ("dryrun", "perhaps"), ("pool", ""), ("pool", 3), ("on_doubt", "wait")],
)
def test_refuses_what_is_out_of_form(name, value):
    assert refusal(**{name: value}).pointer == f"/{name}"


@pytest.mark.parametrize("name", ["data", "key", "dkim", "headers", "security", "useful_until", "pool", "on_doubt"])
def test_null_asks_for_nothing(name):
    assert getattr(parse(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"not json", "not JSON"),
        (b'{"recipient":"a@b.c"', "not JSON"),
        (b'{"recipient":"a@b.c"} x', "not JSON"),
        (b'{"recipient":"\xff@b.c"}', "not JSON"),
        (b'{"recipient":"a@b.c","n":NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
    ],
)
def test_refuses_what_is_no_document(body, reason):
    trouble = refusal(body)
    assert reason in trouble.reason
    assert (trouble.pointer, trouble.document) == ("", None)


def test_a_recipient_is_needed():
    trouble = refusal(b"{}")
    assert (trouble.pointer, trouble.document) == ("/recipient", {})


BODY = b'{"recipient":"to@example.org"}'


def test_the_document_comes_back_untouched():
    document = {
        "unknown": {"deep": [1, 2.5, None, {"ü": "\x00"}]},
        "recipient": "To@EXAMPLE.org",
        "envelope": "<>",
        "maxdelivertime": "2030-01-31T13:00:00+01:00",
        "results": [{"state": "dns"}],
    }
    job = Job.parse(orjson.dumps(document), limit=LIMIT)
    assert job.document == document
    assert list(job.document) == list(document)


def test_identity():
    assert parse(BODY, message_id="amqp").identity == "amqp"
    assert parse(id="mine", message_id="amqp").identity == "amqp"
    assert parse(id="mine").identity == "mine"
    digest = parse(BODY).identity
    assert digest == parse(BODY, message_id="").identity
    assert digest != parse(BODY + b" ").identity
    assert len(digest) == 32


@pytest.mark.parametrize(
    ("properties", "due"),
    [
        ({}, None),
        ({"delayed": TIME}, MOMENT),
        ({"nextattempt": {"time": TIME}}, MOMENT),
        ({"nextattempt": {"time": TIME}, "delayed": "2031-01-01 00:00:00"}, MOMENT),
    ],
)
def test_due(properties, due):
    assert parse(**properties).due == due


def test_attempts_are_counted_from_one():
    assert parse().attempt == 1
    assert parse(results=[{}, {}]).attempt == 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(body):
    """Return the document of a body and, if it is no job, the place in it that is wrong."""
    try:
        return Job.parse(body, limit=LIMIT).document, None
    except InvalidJobError as trouble:
        return trouble.document, trouble.pointer


@given(st.dictionaries(st.sampled_from(sorted(Job.model_fields)) | st.text(max_size=5), VALUES, max_size=5))
def test_whatever_the_document_it_is_a_job_or_refused_at_a_place_in_it(properties):
    try:
        body = orjson.dumps({"recipient": "to@example.org", **properties})
    except TypeError:  # a surrogate, which no JSON text holds
        return
    document, pointer = read(body)
    assert document == orjson.loads(body)
    assert pointer is None or pointer.split("/")[1] in Job.model_fields


@pytest.mark.parametrize("name", ["keepmime", "tags", "maxattempts", "queues", "dkim", "envelope"])
def test_null_is_as_absent(name):
    job = Job.parse(orjson.dumps({"recipient": "b@b.test", "mime": "x", name: None}), limit=10_000)

    assert getattr(job, name) == Job.model_fields[name].get_default(call_default_factory=True)
    assert job.document[name] is None


def test_what_cannot_be_given_back_is_refused():
    nested = b'{"recipient": "b@b.test", "x": ' + b"[" * 300 + b"]" * 300 + b"}"

    with pytest.raises(InvalidJobError, match="nested too deeply"):
        Job.parse(nested, limit=10_000)


def test_the_limit_holds_for_plain_bodies_too():
    with pytest.raises(InvalidJobError, match="larger than 100"):
        Job.parse(b'{"recipient": "b@b.test", "x": "' + b"y" * 100 + b'"}', limit=100)


@pytest.mark.parametrize(
    ("name", "value", "code", "status"),
    [
        ("recipient", "", 553, "5.1.3"),
        ("recipient", "Postmaster", 553, "5.1.3"),
        ("recipient", "@example.org", 553, "5.1.3"),
        ("recipient", "a@b.test, c@d.test", 553, "5.1.3"),
        ("recipient", "a(work)@b.test", 553, "5.1.3"),
        ("recipient", "<@c.test:a@b.test>", 553, "5.1.3"),
        ("recipient", '"a> SIZE=1 <b"@b.test', 553, "5.1.3"),
        ("recipient", None, None, None),
        ("recipient", 5, None, None),
        ("envelope", "news", 553, "5.1.7"),
        ("envelope", 5, None, None),
        ("id", 5, None, None),
    ],
)
def test_an_address_that_is_none_has_codes_of_its_own(name, value, code, status):
    with pytest.raises(InvalidJobError) as trouble:
        Job.parse(orjson.dumps({"recipient": "a@b.test", name: value}), limit=10_000, strict=True)
    assert (trouble.value.pointer, trouble.value.code, trouble.value.status) == (f"/{name}", code, status)


def test_what_was_taken_off_the_addresses_is_told():
    job = Job.parse(orjson.dumps({"recipient": "Jo <jo@b.test>\n", "envelope": " <news@b.test>"}), limit=10_000)
    assert (str(job.recipient), str(job.envelope)) == ("jo@b.test", "news@b.test")
    assert job.warnings == (
        "The recipient had blanks or line ends around it, which were removed.",
        "The recipient had a display name, which was removed.",
        "The envelope had blanks or line ends around it, which were removed.",
        "The envelope had angle brackets, which were removed.",
    )
    assert Job.parse(orjson.dumps({"recipient": "jo@b.test"}), limit=10_000).warnings == ()


@pytest.mark.parametrize("sender", [None, "", "<>", " ", " <>\n"])
def test_the_null_sender_may_be_written_in_several_ways(sender):
    assert Job.parse(orjson.dumps({"recipient": "jo@b.test", "envelope": sender}), limit=10_000).envelope is None
