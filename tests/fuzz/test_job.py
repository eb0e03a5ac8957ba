"""Any body as a job: refused with a reason, or taken all the way to the wire and to the result queues."""

import string
import tracemalloc
import zlib
from datetime import timedelta

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fuzz import targets
from mailq.core.answers.deadline import deadline
from mailq.core.broker.messages import Consumed
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.delivery.smtp.envelope import rcpt_to

SECRET = "hunter2 is no word of a fuzzer"

EVIL = [
    "\r\n", "\n", "\r", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\u061c", "\ufeff", "\U000e0041", "é",
    " ", ".", "\n.\n", "\r\n.\r\n", "\r.\r", "<", ">", '"', "\\", "@", ";", "=", "+", ",", "%", "[", "]", "/", "~",
    "RCPT TO:<x@x.test>", "SIZE=1", "NOTIFY=NEVER", "DATA", "=?utf-8?q?=0D=0A?=", "=?utf-7?q?+2AA-?=", "xn--", "İ",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(EVIL) | st.text(string.ascii_letters, max_size=4), max_size=8).map("".join)
ADDRESS = (
    st.builds("{}@{}".format, TEXT, st.sampled_from(["b.test", "[192.0.2.1]", "[IPv6:::1]", "bücher.test", ""]) | TEXT)
    | st.builds('"{}"@b.test'.format, TEXT)
    | st.sampled_from(["b@b.test", "é@b.test", "<>", '"> SIZE=1"@b.test'])
)
TIMES = st.sampled_from(
    [
        "2031-01-01 00:00:00",
        "9999-12-31 23:59:59",
        "0001-01-01 00:00:00",
        "9999-12-31T23:59:59-23:59",
        "2030-W01-1",
        "x",
    ]
)
NUMBERS = (
    st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0, 1, 25])
)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DSN = st.fixed_dictionaries(
    {},
    optional={
        "notify": st.sampled_from(
            ["NEVER", "success,\tdelay", "\u017fUCCE\u017f\u017f", "SUCCESS\r\n,FAILURE", "FAILURE\u2028,DELAY"]
        )
        | ANY,
        "ret": st.sampled_from(["FULL", "HDRS", "FULL\r\n"]) | ANY,
        "orcpt": st.builds("{};{}".format, TEXT, TEXT) | TEXT | ANY,
        "envid": TEXT | ANY,
    },
)
SMARTHOST = st.fixed_dictionaries(
    {"hostname": TEXT | st.just("h.test")}, optional={"password": st.just(SECRET), "port": NUMBERS, "username": TEXT}
)
QUEUES = st.dictionaries(
    st.sampled_from(["results", "success", "failure", "retry", "x"]) | TEXT, TEXT | st.none(), max_size=3
)
SHAPED = {
    "envelope": ADDRESS | st.none(),
    "dsn": DSN,
    "smarthost": SMARTHOST,
    "queues": QUEUES,
    "seen": TIMES,
    "maxdelivertime": TIMES,
    "delayed": TIMES,
    "nextattempt": st.fixed_dictionaries({"time": TIMES}),
    "results": st.lists(
        st.dictionaries(st.sampled_from(["code", "description", "state"]), ANY, max_size=3), max_size=2
    ),
    "id": TEXT,
    "keepmime": st.booleans(),
    "retries": st.lists(NUMBERS, max_size=3),
}
NAMES = sorted(Job.model_fields)
SOUND = st.fixed_dictionaries(
    {"recipient": ADDRESS, "mime": st.builds("{}\n\n{}".format, TEXT, TEXT) | TEXT}, optional=SHAPED
)
WRONG = st.dictionaries(st.sampled_from(NAMES) | TEXT, ANY, max_size=5).map(
    lambda more: {"recipient": "b@b.test"} | more
)


@settings(deadline=None, max_examples=250)
@given(SOUND | WRONG)
def test_what_a_producer_writes_is_refused_or_goes_all_the_way_soundly(document):
    body = orjson.dumps(document)

    targets.job(b"x" + body)

    for publication in told(body):
        assert SECRET.encode() not in publication.body


def told(body):
    """Return what result consumers get for a body."""
    consumed = Consumed(body, 1)
    try:
        parsed = Job.parse(body, limit=targets.LIMIT)
    except InvalidJobError as error:
        return targets.refused(error, consumed)
    return targets.sent(parsed, consumed)[:-1]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(SOUND, st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=3), st.integers(0, 3)), max_size=4))
def test_mutated_json(document, changes):
    body = bytearray(orjson.dumps(document))
    for place, octets, removed in changes:
        body[place % len(body) : place % len(body) + removed] = octets

    targets.job(b"x" + bytes(body))
    targets.job(b"Z" + bytes(body))


@given(st.binary(max_size=200), st.booleans())
@example(b"", True)
@example(zlib.compress(b"{}", wbits=31)[:-4], False)
def test_rubbish(body, packed):
    targets.job(b"z" + (zlib.compress(body, wbits=31)[: len(body)] if packed else body))


HOSTILE = {
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "as deep as can be given back": b"[" * 252 + b"]" * 252,
    "one deeper": b"[" * 254 + b"]" * 254,
    "huge integer": b"9" * 4000,
    "huge exponent": b"1e999999999",
    "tiny": b"1e-999999999",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "lone surrogate": b'"\\ud800"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "NUL": b'"\\u0000"',
    "long text": b'"' + b"y" * 1_000_000 + b'"',
}


@pytest.mark.parametrize("name", [*NAMES, "x", "", "\\u0000", "y" * 100_000])
def test_every_property_with_every_hostile_value(name):
    for value in HOSTILE.values():
        targets.job(b'x{"mime":"x","recipient":"b@b.test","' + name.encode() + b'":' + value + b"}")


def test_of_two_properties_of_one_name_the_last_counts_everywhere():
    body = b'{"recipient":"a@a.test","recipient":"b@b.test","mime":"x","smarthost":{"password":"1","hostname":"h"}}'

    job = Job.parse(body, limit=targets.LIMIT)

    assert str(job.recipient) == job.document["recipient"] == "b@b.test"


def peak(body, **options):
    """Return the octets of memory that refusing a body takes."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidJobError):
            Job.parse(body, limit=targets.LIMIT, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["tags", "ips", "results", "retries"])
def test_a_million_wrong_items_are_not_all_reported(name):
    body = orjson.dumps({"recipient": "b@b.test", name: [0] * 90_000})
    assert peak(body) < 20 * len(body)


def test_a_million_unknown_queues_are_not_all_reported():
    body = orjson.dumps({"recipient": "b@b.test", "queues": {f"q{number}": 1 for number in range(50_000)}})
    assert peak(body) < 30 * len(body)


def test_an_unknown_queue_is_named():
    with pytest.raises(InvalidJobError) as caught:
        Job.parse(b'{"recipient":"b@b.test","queues":{"result":"x"}}', limit=targets.LIMIT, strict=True)
    assert caught.value.pointer == "/queues/result"


@pytest.mark.parametrize("size", [1_000_000, 30_000_000])
def test_a_gzip_bomb_takes_the_memory_of_the_limit_whatever_its_size(size):
    pack = zlib.compressobj(9, wbits=31)
    bomb = b"".join(pack.compress(b"[" * 1_000_000) for _ in range(size // 1_000_000)) + pack.flush()
    assert (
        peak(bomb + b"\0" * 100, encoding="gzip") < 3.5 * targets.LIMIT
    )  # pieces, what they are joined to, and little else


@pytest.mark.parametrize("year", ["0001", "1969", "9001", "9999"])
def test_a_first_consumption_that_cannot_be_reckoned_with_is_refused(year):
    with pytest.raises(InvalidJobError) as caught:
        Job.parse(orjson.dumps({"recipient": "b@b.test", "seen": f"{year}-12-31 23:59:59"}), limit=targets.LIMIT)
    assert caught.value.pointer == "/seen"


def test_the_last_first_consumption_has_a_deadline():
    job = Job.parse(b'{"recipient":"b@b.test","seen":"9000-12-31 23:59:59"}', limit=targets.LIMIT)
    assert deadline(job, targets.POLICY, targets.NOW) == job.seen + timedelta(days=1)


@pytest.mark.parametrize(
    ("orcpt", "parameter"),
    [
        ("rfc822 NOTIFY=NEVER;x", "ORCPT=rfc822;rfc822+20NOTIFY+3DNEVER;x"),
        ("a=b;c", "ORCPT=rfc822;a+3Db;c"),
        (";x", "ORCPT=rfc822;;x"),
        ("rfc822;", "ORCPT=rfc822;rfc822;"),
        ("utf-8;\\x{E9}", "ORCPT=utf-8;\\x{E9}"),
        ("X-a;b c", "ORCPT=X-a;b+20c"),
    ],
)
def test_the_type_of_an_original_recipient_brings_no_parameters_along(orcpt, parameter):
    job = Job.parse(orjson.dumps({"recipient": "b@b.test", "dsn": {"orcpt": orcpt}}), limit=targets.LIMIT)
    assert rcpt_to(job.recipient, job.dsn, {"dsn": ""}) == f"RCPT TO:<b@b.test> {parameter}"
