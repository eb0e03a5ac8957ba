"""Generated files are current, and the published models say what the program really publishes."""

import importlib.util
import json
import random
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import orjson
import pytest
from support.limits import private_table

from mailq.cli.contracts import documents
from mailq.config import Config
from mailq.config.example import example
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.broker import publications
from mailq.core.broker.messages import Consumed
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed
from mailq.core.results.schema import MessageRecord, ResultRecord, schemas
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.edges.observers import Observers
from mailq.service.build import build

ROOT = Path(__file__).parent.parent
NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=UTC)
FACTS = {
    "mta": "mx.example.net",
    "from": "192.0.2.1",
    "to": "198.51.100.25",
    "authentication": "PLAIN",
    "cipher": {
        "name": "ECDHE-RSA-AES128-GCM-SHA256",
        "bits": 128,
        "algbits": 128,
        "version": "TLSv1.2",
        "id": 49199,
        "protocol": "TLSv1.2",
    },
    "certificate": {
        "notbefore": "2029-01-01 00:00:00",
        "notafter": "2031-01-01 00:00:00",
        "version": 3,
        "verified": True,
        "result": "ok",
        "keyusage": 1,
        "self-signed": False,
        "subject": {"common": "mx.example.net", "country": "NL", "locality": "A", "state": "B", "organization": "C"},
        "issuer": {"common": "CA"},
        "altnames": ["mx.example.net"],
        "fingerprint": "0" * 64,
    },
    "messages": 1,
    "sent": {"connection": 200, "data": 100},
    "command": "DATA",
    "dsn": True,
}
"""Every fact that a session can learn."""


def trail():
    learnt = Trail(facts=dict(FACTS), extracted={"subject": "hi"})
    learnt.spent(State.DNS, 0.0015)
    learnt.spent(State.MESSAGE, 0.02)
    return learnt


def results():
    yield accepted(trail(), Reply(250, None, "queued"), time=NOW, attempt=2)
    yield failed(trail(), Failure(State.RCPTTO, Kind.ERROR, reply=Reply(550, "5.1.1", "no")), time=NOW, attempt=1)
    for state in State:
        for kind in Kind:
            if kind is not Kind.ACCEPTED:
                yield failed(Trail(), Failure(state, kind, pointer="/mime"), time=NOW, attempt=1)
    doubtful = trail()
    doubtful.in_doubt = True
    yield failed(doubtful, Failure(State.MESSAGE, Kind.LOST), time=NOW, attempt=1)


class Granted:
    """A `ports.journal.HandoverGuard` that nobody contests."""

    def begin(self):
        pass

    def hand_over(self):
        pass


@pytest.fixture(scope="module")
def validators():
    parsed = {name: json.loads(text) for name, text in schemas().items()}
    for schema in parsed.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {name: jsonschema.Draft202012Validator(schema) for name, schema in parsed.items()}


def test_the_example_configuration_is_current():
    assert (ROOT / "etc/mailq.toml").read_text("utf-8") == example(), "run `make schemas`"


def test_the_schemas_are_current():
    made = documents()
    assert {file.stem for file in (ROOT / "schemas").glob("*.json")} == set(made)
    for name, text in made.items():
        assert (ROOT / f"schemas/{name}.json").read_text("utf-8") == text, "run `make schemas`"


def test_schemas_say_what_they_are():
    for name, text in schemas().items():
        schema = json.loads(text)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == f"urn:mailq:schema:{name}"
        assert schema["title"]
        assert schema["description"]
        for property_name, property_schema in schema["properties"].items():
            assert property_schema.get("description"), f"{name}: {property_name}"


def test_names_are_those_of_the_json():
    properties = json.loads(schemas()["result"])["properties"]
    assert "from" in properties
    assert "from_" not in properties
    assert "self-signed" in json.loads(schemas()["result"])["$defs"]["CertificateRecord"]["properties"]


def test_every_result_is_as_published(validators):
    for result in results():
        record = json.loads(json.dumps(result.as_json()))
        validators["result"].validate(record)
        assert ResultRecord.model_validate(record).model_dump(by_alias=True, exclude_none=True, mode="json") == record


@pytest.mark.parametrize(
    ("recipient", "options", "properties"),
    [
        ("accept@any.test", {"tls": True}, {"mta", "from", "to", "cipher", "certificate", "messages", "sent", "dsn"}),
        ("reject-550@any.test", {}, {"mta", "from", "to", "messages", "command"}),
        ("drop-after-dot@any.test", {"tls": True}, {"in_doubt", "sent"}),
        ("accept@any.test", {"tls": True, "users": {"me": "hunter2"}, "require_auth": True}, {"authentication"}),
        ("accept@any.test", {"faults": ["intro=554"]}, {"from", "to"}),
    ],
)
async def test_results_of_real_attempts_are_as_published(validators, sink, recipient, options, properties):
    server = await sink(**options)
    config = Config(
        delivery={"ehlo": "mta.example.com"},
        dns={"overrides": {"*": [f"127.0.0.1:{server.port}"]}},
        smarthost={"hostname": "127.0.0.1", "port": server.port, "username": "me", "password": "hunter2"}
        if "users" in options
        else {},
    )
    worker = build(config, Observers(), private_table())
    job = Job.parse(json.dumps({"recipient": recipient, "mime": "Subject: hi\r\n\r\nx"}).encode(), limit=1000)
    record = orjson.loads(orjson.dumps((await worker._delivery.attempt(job, Trail(), Granted())).as_json()))
    validators["result"].validate(record)
    assert properties <= set(record)
    assert ResultRecord.model_validate(record).model_dump(by_alias=True, exclude_none=True, mode="json") == record


@pytest.mark.parametrize(
    "change",
    [{"mta": None}, {"state": "idle"}, {"result": "fine"}, {"code": 99}, {"time": "2030-01-31"},
     {"status": "4.7"}, {"attempt": 0}, {"timing": {"total": 1}}, {"cipher": {}}],
)  # fmt: skip
def test_what_is_not_promised_is_refused(validators, change):
    record = next(results()).as_json() | change
    assert not validators["result"].is_valid(json.loads(json.dumps(record)))


def test_patterns_may_add_what_they_like(validators):
    record = next(results()).as_json() | {"bounce-type": {"of": "mine"}}
    assert validators["result"].is_valid(json.loads(json.dumps(record)))
    assert ResultRecord.model_validate(json.loads(json.dumps(record))).model_dump()["bounce-type"] == {"of": "mine"}


@pytest.mark.parametrize("missing", ["state", "result", "time", "attempt", "code", "status", "description"])
def test_what_is_always_there(validators, missing):
    record = json.loads(json.dumps(next(results()).as_json()))
    assert validators["result"].is_valid(record)
    del record[missing]
    assert not validators["result"].is_valid(record)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_letter_to_a_result_queue_is_as_published(validators, outcome):
    body = json.dumps({"recipient": "jo@example.org", "mime": "x", "order": 42}).encode()
    job = Job.parse(body, limit=1000)
    result = next(results())
    verdict = Verdict(outcome, NOW if outcome is Outcome.RETRY else None, expired=outcome is Outcome.FAILURE)
    sent = publications.settle(job, result, verdict, publications.Names(), Consumed(body, 1), NOW)
    document = json.loads(sent[0].body)
    validators["message"].validate(document)
    validators["result"].validate(document["results"][-1])
    message = MessageRecord.model_validate(document)
    assert isinstance(message.results[-1], ResultRecord)
    assert message.results[-1].expired is (True if outcome is Outcome.FAILURE else None)
    assert (message.nextattempt is not None) == (outcome is Outcome.RETRY)
    assert message.extracted.subject == "hi"
    assert document["order"] == 42


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"mine": {"any": "thing"}}, True),
        ({"envelope": ""}, True),
        ({"queues": {"success": None, "failure": "mine"}}, True),
        ({"queues": {"failures": "mine"}}, False),
        ({"retries": [0]}, False),
        ({"recipient": 3}, False),
        ({"smarthost": {"port": 25}}, False),
        ({"nextattempt": {"time": "2030-01-31 12:00:00"}}, True),
    ],
)
def test_the_schema_of_a_job_agrees_with_what_is_taken(validators, change, valid):
    document = {"recipient": "jo@example.org", "mime": "Subject: hi\r\n\r\nx"} | change
    assert validators["job"].is_valid(document) is valid
    if valid:
        Job.parse(json.dumps(document).encode(), limit=1000)
    else:
        with pytest.raises(InvalidJobError):
            Job.parse(json.dumps(document).encode(), limit=1000, strict=True)


def test_schemas_are_the_same_each_time():
    names = list(schemas())
    random.shuffle(names)
    first, second = schemas(), schemas()
    assert [first[name] for name in names] == [second[name] for name in names]


def test_the_reference_pages_are_current():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for page, content in reference.pages().items():
        assert (ROOT / page).read_text("utf-8") == content, f"{page}: run `make reference`"
