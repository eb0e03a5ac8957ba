"""Forms with a plain meaning are taken and told; strict mode, schema and worker agree; nothing more is sent for it."""

import asyncio
import json
import math
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailq.core.answers.actions import Actions, Edit, apply_to_document
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.broker import publications
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.broker.shrink import shrink
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import NOT_BUILT, Job
from mailq.core.jobs.tolerance import ABSENT, EMPTY, QUEUES, TABLE, as_markdown, means_true, mend
from mailq.core.results.result import Trail, accepted
from mailq.core.results.schema import schemas
from mailq.core.smtp.reply import Reply
from mailq.worker.reading import Reading

ROOT = Path(__file__).parents[3]
LIMIT = 1_000_000
NOW = datetime(2030, 1, 31, tzinfo=UTC)
TIME = "2030-01-31 12:00:00"


def parse(*, strict=False, **properties):
    return Job.parse(orjson.dumps({"recipient": "to@example.org", **properties}), limit=LIMIT, strict=strict)


def view(job):
    return {name: getattr(job, name) for name in Job.model_fields}


def refused(*, strict=False, **properties):
    """Return the pointer of the refusal, None for a job that is taken."""
    try:
        parse(strict=strict, **properties)
    except InvalidJobError as trouble:
        return trouble.pointer
    return None


TAKEN = [
    ("maxattempts", "3", 3),
    ("maxattempts", " 3 ", 3),
    ("maxattempts", "", None),
    ("priority", "5", 5),
    ("priority", [], None),
    ("retries", "600,1800", [600, 1800]),
    ("retries", "600", [600]),
    ("retries", 600, [600]),
    ("retries", ["600", 1800.0], [600, 1800]),
    ("retries", [], None),
    ("retries", {"0": 600, "2": 1800}, [600, 1800]),
    ("keepmime", 1, True),
    ("keepmime", 0, False),
    ("keepmime", "TRUE", True),
    ("keepmime", "", False),
    ("force", "1", True),
    ("inlinecss", 0, False),
    ("inlinecss", "", False),
    ("dryrun", 1, True),
    ("dryrun", "true", True),
    ("dryrun", "0", False),
    ("ips", "192.0.2.1", ["192.0.2.1"]),
    ("ips", {}, None),
    ("ips", "", None),
    ("ips", {"1": "192.0.2.1"}, ["192.0.2.1"]),
    ("pool", "", None),
    ("pool", 7, "7"),
    ("tags", "a", ["a"]),
    ("tags", ["a", 7], ["a", "7"]),
    ("tags", {}, []),
    ("tags", {"3": "a"}, ["a"]),
    ("id", 42, "42"),
    ("id", "", None),
    ("on_doubt", "", None),
    ("dsn", [], None),
    ("queues", [], None),
    ("smarthost", [], None),
    ("smarthost", {}, None),
    ("nextattempt", [], None),
    ("nextattempt", {}, None),
    ("delayed", "", None),
    ("headers", {}, None),
    ("dkim", {}, None),
    ("results", {}, []),
]


@pytest.mark.parametrize(("name", "value", "read"), TAKEN)
def test_a_plain_meaning_is_taken_and_told(name, value, read):
    job = parse(**{name: value})
    assert getattr(job, name) == read
    assert type(getattr(job, name)) is type(read)
    assert job.document[name] == value
    assert any(name in warning for warning in job.warnings)
    assert refused(strict=True, **{name: value}).startswith(f"/{name}")


def test_what_is_inside_of_objects_is_taken_too():
    job = parse(
        dsn={"notify": ["SUCCESS", "FAILURE"], "ret": "", "orcpt": "", "envid": 7},
        smarthost={"name": "mx.example", "port": "587", "username": ""},
        nextattempt=TIME,
    )
    assert (job.dsn.notify, job.dsn.ret, job.dsn.orcpt, job.dsn.envid) == ("SUCCESS,FAILURE", None, None, "7")
    assert (job.smarthost.hostname, job.smarthost.port, job.smarthost.username) == ("mx.example", 587, None)
    assert job.nextattempt == parse(nextattempt={"time": TIME}).nextattempt
    assert len(job.warnings) == 8


@pytest.mark.parametrize("port", [587.0, "587"])
def test_the_port_of_a_smarthost(port):
    assert parse(smarthost={"hostname": "mx", "port": port}).smarthost.port == 587


@pytest.mark.parametrize("port", [None, ""])
def test_an_empty_port_is_the_usual_one(port):
    assert parse(smarthost={"hostname": "mx", "port": port}).smarthost.port == 25


def test_unknown_names_in_queues_are_kept_told_and_ignored():
    job = parse(queues={"results": "mine", "failures": "x", "success": "", "retry": "null"})
    assert job.queues.model_fields_set == {"results", "retry"}
    assert (job.queues.results, job.queues.retry) == ("mine", None)
    assert job.document["queues"]["failures"] == "x"
    assert "The property queues has names that mailq does not know, which were ignored: failures." in job.warnings
    assert refused(queues=dict.fromkeys(map(str, range(21)), "x")).startswith("/queues")


def test_null_as_text_switches_a_queue_off_unless_strict():
    assert parse(queues={"results": "null"}).queues.results is None
    assert parse(queues={"results": "null"}, strict=True).queues.results == "null"


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("2030-01-31t12:00:00z", False),
        ("2030-01-31T11:59:60Z", False),
        ("2030-01-31 11:59:60+00:00", False),
        ("2030-01-31T12:00:00.000Z", False),
        ("2030-01-31T14:00:00+02:00", False),
        ("2030-01-31T12:00:00", True),
        ("2030-01-31t12:00:00.000", True),
        ("2030-01-31 12:00:00.000", True),
        ("2030-01-31 12:00", True),
        (" 2030-01-31 12:00:00\n", True),
    ],
)
@pytest.mark.parametrize("name", ["delayed", "maxdelivertime", "useful_until", "seen"])
def test_times_as_people_write_them(name, text, warned):
    job = parse(**{name: text})
    assert getattr(job, name) == parse(delayed=TIME).delayed
    assert bool(job.warnings) is warned
    assert (refused(strict=True, **{name: text}) is not None) is warned


@pytest.mark.parametrize(
    "text", ["2030-01-31", "2030-02-30T12:00:00", "9999-12-31T23:59:60Z", "12:00", "2030-01-31T12:00:61Z", "soon"]
)
def test_what_is_no_time_is_refused(text):
    assert refused(delayed=text) == "/delayed"


NEVER = [
    ("recipient", ["to@example.org"]),
    ("recipient", {}),
    ("envelope", []),
    ("envelope", {}),
    ("envelope", False),
    ("envelope", 0),
    ("mime", []),
    ("mime", 5),
    ("dryrun", ""),
    ("dryrun", []),
    ("dryrun", 2),
    ("dryrun", "yes"),
    ("dryrun", "off"),
    ("smarthost", {"port": 25}),
    ("smarthost", {"hostname": ""}),
    ("smarthost", {"hostname": ["mx"]}),
    ("smarthost", "mx.example"),
    ("smarthost", {"name": 5}),
    ("smarthost", {"hostname": "mx", "port": "smtp"}),
    ("smarthost", {"hostname": "mx", "password": 5}),
    ("ips", 5),
    ("ips", [None]),
    ("ips", False),
    ("retries", [0]),
    ("retries", "soon"),
    ("maxattempts", -1),
    ("maxattempts", True),
    ("maxattempts", 1.5),
    ("maxattempts", "1e3"),
    ("priority", 300),
    ("keepmime", "perhaps"),
    ("tags", [["a"]]),
    ("data", {}),
    ("inlinecss", 1),
    ("inlinecss", "true"),
]


@pytest.mark.parametrize(("name", "value"), NEVER)
def test_nothing_is_guessed(name, value):
    assert refused(**{name: value}).startswith(f"/{name}")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("name", "value", "read"), [("maxattempts", 1.0, 1), ("priority", 5.0, 5)])
def test_an_integer_may_be_written_as_json_may(name, value, read, strict):
    job = parse(strict=strict, **{name: value})
    assert (getattr(job, name), type(getattr(job, name))) == (read, int)
    assert len(job.warnings) == 1


def test_a_property_in_form_is_left_alone_beside_others():
    job = parse(ips=[], keepmime=1, tags=[], dsn={}, queues={})
    assert (job.ips, job.tags) == ([], [])
    assert len(job.warnings) == 1


def test_a_pool_beside_ips_is_told():
    assert parse(ips=["192.0.2.1"], pool="bulk").warnings == (
        "The property pool was not looked at, since ips names the addresses.",
    )


def test_no_warning_repeats_a_value():
    job = parse(smarthost={"name": "mx", "username": "", "password": "hunter2", "port": "25"})
    assert "hunter2" not in "".join(job.warnings)


# The table


PLACES = [(path, each) for path, mends in TABLE.items() for each in mends]


@pytest.mark.parametrize(("path", "each"), PLACES, ids=[f"{'.'.join(path)} {each.told}" for path, each in PLACES])
def test_every_example_of_the_table_is_read_as_it_says(path, each):
    for given_text, meant in each.examples:
        assert each.read(json.loads(given_text)) == (json.loads(meant) if meant else ABSENT)


def test_every_property_has_a_row_or_must_not_have_one():
    without = {"recipient", "envelope", "mime", "data"}
    assert {path[0] for path in TABLE} == set(Job.model_fields) - without
    assert EMPTY not in TABLE["dryrun",]
    assert set(QUEUES) == set(Job.model_fields["queues"].annotation.__args__[0].model_fields)


def test_the_documented_table_is_current():
    assert (ROOT / "docs/reference/tolerance.md").read_text("utf-8") == as_markdown(), "run `make schemas`"


def test_long_lists_and_objects_are_not_looked_at():
    document = {"tags": [1] * 1001, "queues": dict.fromkeys(map(str, range(2000)), "")}
    assert mend(document, document) == (document, ())


@pytest.mark.parametrize(("value", "meant"), [(True, True), (1, True), ("true", True), (False, False), (None, False)])
def test_what_is_true(value, meant):
    assert means_true(value) is meant


# Schema and worker, in both modes


@cache
def validator():
    return jsonschema.Draft202012Validator(json.loads(schemas()["job"]))


# What a pattern of JSON Schema cannot tell apart is always right here: addresses, times, hosts, not the other texts.
TIMES = st.sampled_from([TIME, "2030-01-31T12:00:00Z", "2030-01-31t12:00:00+01:00"])
LOOSE = ("2030-01-31T12:00:00", "2030-01-31 12:00")
WORDS = st.text("abAB01 .é\x00\x7f", max_size=4)
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.sampled_from([1.0, 0.0, 5.0, 1.5, 1e300, 2.0**53]),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, [1.0], ["1"], {"0": "a"}, {"0": 1}]),
)  # fmt: skip
NUMBERS = ODD | st.sampled_from(["3", "", "x", "300", "-1", 2**53 - 1, 2**53])


def objects(**members):
    return ODD | st.fixed_dictionaries({}, optional=members)


PROPERTIES = {
    "recipient": st.just("to@example.org"),
    "envelope": st.sampled_from(["", "<>", "a@b.test", None, 5, [], {}, False]),
    "mime": st.sampled_from(["", "a: b\r\n\r\nc", None, 5, []]),
    "keepmime": ODD | st.sampled_from(["true", "0", "", "x"]),
    "ips": ODD | WORDS | st.lists(WORDS, max_size=2),
    "pool": ODD | WORDS,
    "nextattempt": st.none() | st.sampled_from([[], {}, 5]) | TIMES | st.sampled_from(LOOSE)
    | st.fixed_dictionaries({"time": TIMES | st.sampled_from(LOOSE)}, optional={"ip": ODD | WORDS}),
    "delayed": TIMES | st.sampled_from(LOOSE) | ODD,
    "maxdelivertime": TIMES | ODD,
    "useful_until": TIMES | ODD,
    "maxattempts": NUMBERS,
    "retries": NUMBERS | st.lists(NUMBERS, max_size=2),
    "force": ODD,
    "dryrun": ODD | st.sampled_from(["true", "0", "", "x"]),
    "dsn": objects(
        notify=ODD | st.sampled_from(["NEVER", "success,delay", "x", ""]) | st.just(["SUCCESS", "DELAY"]),
        ret=ODD | st.sampled_from(["FULL", "hdrs", "", "x"]), orcpt=ODD | WORDS, envid=ODD | WORDS,
    ),
    "queues": objects(**dict.fromkeys(QUEUES, ODD | WORDS | st.just("null")), other=ODD),
    "smarthost": objects(
        hostname=st.sampled_from(["mx.test", "192.0.2.1", "", None, 5, "a b"]), name=st.sampled_from(["mx.test", 5]),
        port=NUMBERS, username=ODD | WORDS, password=ODD | WORDS,
    ),
    "tags": ODD | WORDS | st.lists(ODD | WORDS, max_size=2),
    "priority": NUMBERS,
    "id": ODD | WORDS,
    "on_doubt": ODD | st.sampled_from(["retry", "fail", "", "x"]),
    "seen": TIMES | ODD,
    "results": ODD | st.lists(st.just({"state": "dns"}) | ODD, max_size=2),
    **{name: ODD | st.sampled_from(["", "x", "true", "0"]) for name in NOT_BUILT},
}  # fmt: skip


def test_the_property_test_has_every_property():
    assert set(PROPERTIES) == set(Job.model_fields)


def odd_times(document):
    """Tell whether a time has a form that strict mode refuses: to the schema any text is a time."""
    nextattempt = document.get("nextattempt")
    times = [document.get("delayed"), nextattempt.get("time") if isinstance(nextattempt, dict) else nextattempt]
    return any(isinstance(time, str) and time in LOOSE for time in times)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=PROPERTIES))
def test_schema_strict_and_tolerant_reading_agree(properties):
    document = {"recipient": "to@example.org", **properties}
    valid = validator().is_valid(document)
    strict = refused(strict=True, **properties)
    tolerant = refused(**properties)

    if valid and not odd_times(document):
        assert strict is None
    if strict is None:
        assert valid
        assert tolerant is None
        if "null" not in (document.get("queues") or {}).values():
            assert view(parse(**properties)) == view(parse(strict=True, **properties))
    elif tolerant is None:
        assert parse(**properties).warnings
    if tolerant is None:
        job = parse(**properties)
        assert job.document == document
        assert str(job.recipient) == "to@example.org"
        assert job.dryrun is means_true(document.get("dryrun"))


# Integers of any size


BIG = [
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**20 + 1,
    -(2**63),
    -(2**63) - 1,
    123456789012345678901234567890,
]


@pytest.mark.parametrize("number", BIG)
@pytest.mark.parametrize("place", ['{"recipient":"a@b.test","n":%d}', '{"recipient":"a@b.test","n":{"m":[%d]}}',
                                   '{"recipient":"a@b.test","n":[[[{"x":%d}]]],"f":1.5}'])  # fmt: skip
def test_an_integer_comes_back_as_it_came(number, place):
    body = (place % number).encode()
    assert orjson.dumps(Job.parse(body, limit=LIMIT).document) == body


@settings(deadline=None)
@given(st.integers() | st.integers(2**63 - 9, 2**63 + 9) | st.integers(2**64 - 9, 2**64 + 9))
def test_any_integer_comes_back(number):
    body = b'{"recipient":"a@b.test","n":%d}' % number
    assert orjson.dumps(Job.parse(body, limit=LIMIT).document) == body


def test_an_integer_beside_half_a_surrogate_pair_comes_back():
    job = Job.parse(b'{"recipient":"a@b.test","s":"\\ud83d","n":18446744073709551616}', limit=LIMIT)
    assert orjson.dumps(job.document).endswith(b'"n":18446744073709551616}')
    assert len(job.warnings) == 1


def test_an_identity_may_be_an_integer_of_any_size():
    assert (
        Job.parse(b'{"recipient":"a@b.test","id":18446744073709551617}', limit=LIMIT).identity == "18446744073709551617"
    )


def test_a_large_float_stays_a_float():
    job = Job.parse(b'{"recipient":"a@b.test","n":1e300}', limit=LIMIT)
    assert math.isclose(job.document["n"], 1e300)


def test_a_large_integer_nested_too_deeply_is_refused():
    body = b'{"recipient":"a@b.test","n":' + b"[" * 300 + b"18446744073709551616" + b"]" * 300 + b"}"
    with pytest.raises(InvalidJobError, match="nested too deeply"):
        Job.parse(body, limit=LIMIT)


# What is published


def told(**properties):
    """Return the documents that are published for an accepted attempt, and for one that is tried again."""
    body = orjson.dumps({"recipient": "to@example.org", "mime": "Subject: x\r\n\r\nx", **properties})
    job = Job.parse(body, limit=LIMIT)
    result = accepted(Trail(warnings=job.warnings), Reply(250, None, "queued"), time=NOW, attempt=1)
    final, later = Verdict(Outcome.SUCCESS, None), Verdict(Outcome.RETRY, NOW)
    made = (
        publications.settle(job, result, each, publications.Names(), Consumed(body, 1), NOW) for each in (final, later)
    )
    return [publication.body for publications in made for publication in publications]


def test_results_and_retries_have_what_the_producer_wrote():
    for body in told(keepmime=1, dryrun="1", maxattempts="3", n=orjson.Fragment(str(2**70))):
        document = json.loads(body)
        assert (document["keepmime"], document["maxattempts"], document["n"]) == (1, "3", 2**70)
        assert document["mime"]
        assert document["results"][0]["dryrun"] is True
        assert len(document["results"][0]["warnings"]) == 3


def test_a_lighter_result_keeps_its_integers():
    names = publications.Names()
    body = orjson.dumps({"recipient": "a@b.test", "results": [{}], "big": "x" * 500, "n": orjson.Fragment(str(2**70))})
    light = shrink(Publication(names.exchange, "success", body), names, 400)
    assert json.loads(light.body) == {"recipient": "a@b.test", "results": [{}], "n": 2**70}


def test_a_pattern_that_adds_a_tag_keeps_those_of_another_form():
    effects = Actions(patterns=("p",), tags=Edit(add=("new",)))
    assert apply_to_document({"tags": "a", "ips": []}, effects) == {"tags": ["a", "new"], "ips": []}


def test_the_worker_reads_as_it_is_configured():
    consumed = Consumed(orjson.dumps({"recipient": "to@example.org", "maxattempts": "3"}), 1)

    async def read(*, strict):
        reading = Reading(LIMIT, 1000, strict=strict)
        return await reading.job(await reading.unpack(consumed), consumed)

    assert asyncio.run(read(strict=False)).maxattempts == 3
    with pytest.raises(InvalidJobError):
        asyncio.run(read(strict=True))
