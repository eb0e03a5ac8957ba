"""What producers and consumers build on: schemas that other languages understand, examples that are true, AsyncAPI.

JSON Schemas are compiled by jsonschema here and by ajv under Node.js; the AsyncAPI document is held
against the specification's own schema, against the programs' tables, and against a real broker.
"""

import json
import re
from functools import cache

import aio_pika
import jsonschema
import pytest
from support.node import ROOT, node, workshop

import mailq
from mailq.cli.contracts import documents
from mailq.config import Config
from mailq.config.classify import ruleset_of
from mailq.config.rabbitmq import RabbitConfig
from mailq.config.webhooks import WebhooksConfig
from mailq.contracts.examples import EXAMPLES
from mailq.core.answers.verdict import Outcome
from mailq.core.delay_queues import STEPS
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import NOT_BUILT, Job
from mailq.core.results.schema import MessageRecord, ResultRecord
from mailq.core.states import Kind, State
from mailq.core.webhooks import endpoint
from mailq.edges.amqp import topology, webhook_broker
from mailq.webhooks.endpoint_queue import EndpointRules

AJV = """
import { readFileSync } from "node:fs";
import Ajv2020 from "ajv/dist/2020.js";
for (const file of process.argv.slice(2)) {
  const schema = JSON.parse(readFileSync(file));
  const valid = new Ajv2020({ allErrors: true, strict: true, allowUnionTypes: true }).compile(schema);
  for (const [name, document] of Object.entries(JSON.parse(readFileSync(`${file}.documents`))))
    console.log(JSON.stringify([file, name, valid(document)]));
}
"""

ASYNCAPI = """
import { readFileSync } from "node:fs";
import Ajv from "ajv";
const read = (file) => JSON.parse(readFileSync(file));
const ajv = new Ajv({ strict: false, meta: false, validateSchema: false, validateFormats: false });
const valid = ajv.compile(read("node_modules/@asyncapi/specs/schemas/3.0.0.json"));
for (const document of read("asyncapi.json.documents")) {
  const good = valid(document);
  console.log(JSON.stringify([good, good ? "" : ajv.errorsText(valid.errors)]));
}
"""


texts = cache(documents)


@cache
def made(name):
    return json.loads(texts()[name])


def schemas():
    return sorted(name for name in texts() if name != "asyncapi")


NOTIFY = [
    ("NEVER", True),
    ("never", True),
    ("Success,FAILURE", True),
    ("success , delay,Failure", True),
    ("NEVER,SUCCESS", False),
    ("", False),
    ("SUCCESS,", False),
    ("SUCCESSES", False),
    ("always", False),
]


def job(**properties):
    return {"recipient": "jo@example.org", "mime": "Subject: hi\r\n\r\nx", **properties}


# JSON Schemas


@pytest.mark.parametrize("name", schemas())
def test_every_schema_has_examples_that_it_takes(name):
    validator = jsonschema.Draft202012Validator(made(name))
    validator.check_schema(made(name))
    assert made(name)["examples"]
    for example in made(name)["examples"]:
        validator.validate(example)


def properties(schema):
    """Yield every property of a schema and its definitions."""
    for model in (schema, *schema.get("$defs", {}).values()):
        yield from model.get("properties", {}).items()


@pytest.mark.parametrize("name", schemas())
def test_every_property_is_described_and_its_examples_are_taken(name):
    for title, schema in properties(made(name)):
        reference = schema.get("$ref", "").rpartition("/")[2]
        assert schema.get("description") or made(name)["$defs"][reference]["description"], title
        validator = jsonschema.Draft202012Validator(schema | {"$defs": made(name).get("$defs", {})})
        for example in schema.get("examples", ()):
            validator.validate(example)


def test_examples_are_what_the_program_takes_and_gives():
    for example in EXAMPLES["job"]:
        Job.parse(json.dumps(example).encode(), limit=10_000)
    for result in results():
        record = ResultRecord.model_validate(result)
        assert record.model_dump(by_alias=True, exclude_none=True, mode="json") == result
    for example in EXAMPLES["message"]:
        message = MessageRecord.model_validate(example)
        assert all(isinstance(result, ResultRecord) for result in message.results)


def results():
    """Yield every result in the examples."""
    yield from EXAMPLES["result"]
    yield from (result for example in EXAMPLES["message"] for result in example["results"])
    yield from (example["x-mailq"]["result"] for example in EXAMPLES["events"])


def test_failed_results_in_the_examples_say_what_the_shipped_rules_make_of_them():
    failed = [result for result in results() if result["result"] != "accepted"]
    assert len(failed) > 5
    for result in failed:
        met = "mta" in result
        found = ruleset_of(()).classify(
            state=State(result["state"]), kind=Kind(result["result"]), code=result["code"], status=result["status"],
            text=result["description"], hosts=[result["mta"]] if met else [], from_peer=met,
        )  # fmt: skip
        told = [result.get(name) for name in ("class", "class_name", "category", "about", "rule")]
        assert told == [found.number, found.name, found.category, found.about, found.rule]
        assert result["ruleset"]
        assert ("transcript" in result) is met


def test_what_was_said_in_the_examples_is_what_the_results_tell():
    for result in (result for result in results() if "transcript" in result):
        said = result["transcript"]
        assert f"S: {result['code']} {result['status']} {result['description']}" in said
        assert f"C: {result['command']}" in said
        assert f"* connecting to {result['to']} port 25" in said
        assert (
            sum(len(line.removeprefix("C: ")) + 2 for line in said if line[:2] == "C:") == result["sent"]["connection"]
        )


@pytest.mark.parametrize(("notify", "taken"), NOTIFY)
def test_dsn_notify(notify, taken):
    document = job(dsn={"notify": notify})
    assert jsonschema.Draft202012Validator(made("job")).is_valid(document) is taken
    try:
        Job.parse(json.dumps(document).encode(), limit=1000, strict=True)
    except ValueError:
        assert not taken
    else:
        assert taken


def test_javascript_reads_the_schemas_as_python_does(tmp_path):
    workshop(tmp_path)
    expected = []
    for name in schemas():
        cases = {f"example {number}": example for number, example in enumerate(made(name)["examples"])}
        cases |= {"empty": {}, "array": []}
        if name == "job":
            cases |= {f"notify {notify}": job(dsn={"notify": notify}) for notify, _ in NOTIFY}
            cases |= {"host": job(smarthost={"hostname": "a b"}), "queue": job(queues={"results": "a\nb"})}
        if name == "result":
            cases["status"] = EXAMPLES["result"][0] | {"status": "4.7"}
        validator = jsonschema.Draft202012Validator(made(name))
        expected += [[f"{name}.json", title, validator.is_valid(document)] for title, document in cases.items()]
        (tmp_path / f"{name}.json").write_text(texts()[name])
        (tmp_path / f"{name}.json.documents").write_text(json.dumps(cases))

    printed = node(tmp_path, AJV, *(f"{name}.json" for name in schemas()))

    assert [json.loads(line) for line in printed.splitlines()] == expected
    assert {valid for _, _, valid in expected} == {True, False}


# AsyncAPI


def broken(*path, value):
    document = json.loads(texts()["asyncapi"])
    node = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return document


def test_the_document_is_asyncapi_3(tmp_path):
    workshop(tmp_path)
    cases = [
        made("asyncapi"),
        broken("asyncapi", value="4.0.0"),
        broken("operations", "publishJob", "action", value="throw"),
        broken("channels", "outbox", "bindings", "amqp", "is", value="pigeonhole"),
        broken("channels", "outbox", "messages", value=["job"]),
    ]
    (tmp_path / "asyncapi.json.documents").write_text(json.dumps(cases))

    lines = [json.loads(line) for line in node(tmp_path, ASYNCAPI).splitlines()]

    assert lines[0] == [True, ""]
    assert [good for good, _ in lines[1:]] == [False] * 4


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_references_lead_somewhere():
    found = set(references(made("asyncapi")))
    assert {"job.json", "message.json", "events.json"} <= found
    for reference in found:
        if reference.startswith("#/"):
            node = made("asyncapi")
            for step in reference[2:].split("/"):
                node = node[step]
        else:
            assert reference.removesuffix(".json") in schemas()


def test_each_role_has_its_operations():
    document = made("asyncapi")
    assert document["info"]["version"] == mailq.__version__
    roles = {tag["name"] for tag in document["info"]["tags"]}
    assert {operation["tags"][0]["name"] for operation in document["operations"].values()} == roles
    for operation in document["operations"].values():
        sends = operation["action"] == "send"
        assert operation["bindings"]["amqp"].get("deliveryMode") == (2 if sends else None)
        assert operation["summary"]
    used = {operation["channel"]["$ref"].rpartition("/")[2] for operation in document["operations"].values()}
    assert used == set(document["channels"])


def queues():
    """Return name and arguments of every queue in the document, those of an endpoint as the endpoint "crm" has them."""
    found = {}
    for channel in made("asyncapi")["channels"].values():
        binding = channel["bindings"]["amqp"]
        if binding["is"] != "queue":
            continue
        name, arguments = binding["queue"]["name"], binding["x-arguments"]
        for step in channel.get("parameters", {}).get("step", {}).get("enum", [None]):
            own = {"x-message-ttl": arguments["x-message-ttl"][step]} if step else {}
            if "endpoint" in channel.get("parameters", {}):
                own["x-dead-letter-routing-key"] = arguments["x-dead-letter-routing-key"].format(endpoint="crm")
            found[name.format(step=step, endpoint="crm")] = arguments | own
    return found


def test_the_document_has_the_queues_that_are_declared():
    config = RabbitConfig()
    steps = EndpointRules(retries=WebhooksConfig().retries).steps
    hooked = (
        *webhook_broker.intake_queues(config, "webhooks"),
        *webhook_broker.endpoint_queues(config, "webhooks", "crm", steps),
    )
    declared = {queue.name: dict(queue.arguments) for queue in (*topology.queues(config), *hooked)}
    assert queues() == declared
    assert len(declared) > len(STEPS) + len(steps)
    assert {"webhooks", "webhooks.crm", "webhooks.crm.delay.30s", "webhooks.dead"} <= set(declared)


async def test_a_broker_takes_the_document_for_what_the_worker_declares(rabbit, system, sink):
    """Declaring anything else than what is there would be refused by the broker."""
    await system(await sink())
    channel = await rabbit.channel()
    for name, arguments in queues().items():
        await channel.declare_queue(name, durable=True, arguments=arguments)
    exchange = made("asyncapi")["channels"]["exchange"]["bindings"]["amqp"]["exchange"]
    await channel.declare_exchange(exchange["name"], exchange["type"], durable=exchange["durable"])
    with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed):
        await channel.declare_queue("outbox.delay.1s", durable=True, arguments={"x-message-ttl": 1})


def test_bindings_are_those_of_the_program():
    found = [
        (channel["address"], pattern)
        for channel in made("asyncapi")["channels"].values()
        for pattern in channel["bindings"]["amqp"].get("x-bound-to", {}).get("patterns", ())
    ]
    assert found == [
        *topology.bindings(RabbitConfig()),
        *(("webhooks", pattern) for pattern in webhook_broker.OUTCOMES),
    ]
    key = made("asyncapi")["channels"]["exchange"]["parameters"]["key"]
    assert {example.partition(".")[0] for example in key["examples"]} == {str(outcome) for outcome in Outcome}


# The page on migrating

PAGE = ROOT / "docs/how-to/migrating.md"


def section(title):
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title):
    """Return the cells of a section's tables, without their heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [place for place, row in enumerate(cells) if set(row[0]) == {"-"}]
    return [row for place, row in enumerate(cells) if place not in rules and place + 1 not in rules]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_has_every_property_of_a_job_and_no_other():
    named = [name for cell, *_ in rows("Properties of a job") for name in names(cell)]
    ours = [name for cell, *_ in rows("Properties that MailerQ does not have") for name in names(cell)]
    assert set(named + ours) == set(made("job")["properties"])
    assert len(named + ours) == len(set(named + ours))


def test_the_page_says_which_properties_are_refused():
    table = rows("Properties of a job") + rows("Properties that MailerQ does not have")
    assert {name for cell, what, *_ in table if what == "refused" for name in names(cell)} == set(NOT_BUILT)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_refused_is_refused(name):
    with pytest.raises(InvalidJobError, match=name):
        Job.parse(json.dumps(job(**{name: True})).encode(), limit=1000)


def test_the_page_has_every_property_of_a_result():
    theirs = [name for cell, *_ in rows("Results") for name in names(cell)]
    assert set(theirs) <= set(made("result")["properties"])
    assert set(theirs) == set(made("result")["properties"])
    assert len(theirs) == len(set(theirs))


def test_configuration_keys_on_the_page_exist():
    keys = [name for _, cell, *_ in rows("Configuration") for name in names(cell)]
    assert len(keys) > 15
    for key in keys:
        table, _, name = key.partition(".")
        model = Config.model_fields[table].annotation
        if name:
            assert name in model.model_fields, key


def test_events_and_error_codes_on_the_page_are_those_of_the_schema():
    schema = made("events")
    assert {name for cell, *_ in rows("Events") for name in names(cell)} >= set(schema["properties"]["event"]["enum"])
    codes = [name for cell, *_ in rows("Error codes") for name in names(cell)]
    assert set(codes) == set(schema["$defs"]["DeliveryErrorRecord"]["properties"]["errorCode"]["enum"])


def test_links_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_knows_a_genuine_signature():
    code = re.search(r"```python\n(.*?)```", section("Signatures"), re.DOTALL)[1]
    module = {}
    exec(code, module)
    body = b'{"event": "messageSent"}'
    header = endpoint.signature([b"old secret", b"new secret"], 1_900_000_000, body)
    for secret in (b"old secret", b"new secret"):
        assert module["genuine"](header, body, secret, 1_900_000_010)
    assert not module["genuine"](header, body, b"another", 1_900_000_010)
    assert not module["genuine"](header, body + b" ", b"new secret", 1_900_000_010)
    assert not module["genuine"](header, body, b"new secret", 1_900_000_301)
