"""What mailq publishes, as models: one result, and a job given back with its results.

Nothing is made with these models at run time (`core.results.result` makes results); they say what consumers
may rely on, generate `schemas/*.json`, and tests hold real results against them. Absent means not
known: no property of a result is ever null.
"""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mailq.core.bounce_classes import About, Category
from mailq.core.jobs.job import Job
from mailq.core.states import Kind, State

TIME = r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$"

Time = Annotated[str, StringConstraints(pattern=TIME), Field(examples=["2030-01-31 12:00:00"])]
"""A moment in UTC, whole seconds."""

Milliseconds = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False)


class CipherRecord(_Record):
    """The encryption of the session; only there if it was encrypted."""

    name: str = Field(description="OpenSSL's name of the cipher suite.", examples=["ECDHE-RSA-AES128-GCM-SHA256"])
    bits: int = Field(description="Secret bits in use.", examples=[128])
    algbits: int = Field(description="Bits that the algorithm has.", examples=[128])
    version: str = Field(description="Protocol family that the cipher suite belongs to.", examples=["TLSv1.2"])
    id: int = Field(description="Number of the cipher suite in the IANA registry.", examples=[49199])
    protocol: str = Field(description="TLS version that was negotiated.", examples=["TLSv1.3"])


class NameRecord(_Record):
    """Subject or issuer of a certificate."""

    common: str | None = Field(None, description="Common name.", examples=["mx.example.net"])
    country: str | None = Field(None, description="Two-letter country code.", examples=["NL"])
    locality: str | None = Field(None, description="Town.", examples=["Amsterdam"])
    state: str | None = Field(None, description="State or province.", examples=["Noord-Holland"])
    organization: str | None = Field(None, description="Organisation.", examples=["Example B.V."])


class CertificateRecord(_Record):
    """The receiving server's certificate. `verified` informs, it does not decide on delivery."""

    notbefore: Time | None = Field(None, description="Valid from, UTC.")
    notafter: Time | None = Field(None, description="Valid until, UTC.")
    version: int | None = Field(None, description="X.509 version.", examples=[3])
    verified: bool = Field(description="Whether chain, dates and name are right for the MX host.")
    result: str = Field(description='"ok", or why it is not verified.', examples=["ok", "certificate has expired"])
    keyusage: int | None = Field(None, description="Bit i for bit i of the key usage (RFC 5280).", examples=[1])
    self_signed: bool | None = Field(None, alias="self-signed", description="Whether subject and issuer are one.")
    subject: NameRecord | None = Field(None, description="Whose it is.")
    issuer: NameRecord | None = Field(None, description="Who signed it.")
    altnames: list[str] | None = Field(None, max_length=100, description="DNS names and IP addresses it is for.")
    fingerprint: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the certificate, hex.")


class SentRecord(_Record):
    """Octets given to the connection; inside TLS those before encryption."""

    connection: int = Field(ge=0, description="On the connection since it was opened.", examples=[15234])
    data: int = Field(ge=0, description="Of this message, if it was sent to its end; else 0.", examples=[14120])


class TriedRecord(_Record):
    """The connection that did not come about."""

    from_: str = Field(alias="from", description="Local IP address.")
    from_port: int = Field(ge=1, le=65535, description="Local port.", examples=[54321])
    to: str = Field(description="Remote IP address.")


class ResultRecord(_Record):
    """What one attempt came to. Properties about a connection are absent where there was none."""

    model_config = ConfigDict(frozen=True, extra="allow", validate_by_name=False)  # patterns may add properties

    state: State = Field(description="Where the attempt stood.")
    result: Kind = Field(description="How it ended there; `accepted` with state `message`, or in a dry run `rcptto`.")
    time: Time = Field(description="When it ended, UTC.")
    attempt: int = Field(ge=1, description="Number of the attempt, counted from 1.", examples=[1])
    mta: str | None = Field(None, description="Name in the server's greeting.", examples=["mx.example.net"])
    from_: str | None = Field(None, alias="from", description="Local IP address.", examples=["192.0.2.1"])
    from_port: int | None = Field(None, ge=1, le=65535, description="Local port.", examples=[54321])
    to: str | None = Field(None, description="Remote IP address.", examples=["198.51.100.25"])
    tried: TriedRecord | None = Field(None, description="Ends of the connection that did not come about.")
    authentication: str | None = Field(None, description="Mechanism of the login, if any.", examples=["PLAIN"])
    cipher: CipherRecord | None = Field(None, description="Encryption of the session.")
    certificate: CertificateRecord | None = Field(None, description="The server's certificate.")
    session: str | None = Field(None, description="Identity of the SMTP session, as in the log.")
    messages: int | None = Field(None, ge=1, description="Number of this message on its connection.", examples=[4])
    sent: SentRecord | None = Field(None, description="Octets sent.")
    command: str | None = Field(None, description="The last command, secrets masked: the one refused, if one was.")
    dsn: bool | None = Field(None, description="Whether the server offered DSN (RFC 3461).")
    code: int = Field(ge=200, le=599, description="SMTP code of the answer, or mailq's own.", examples=[250])
    status: str = Field(
        pattern=r"^[245]\.\d{1,3}\.\d{1,3}$", description="Enhanced status (RFC 3463).", examples=["2.0.0"]
    )
    reply: str | None = Field(
        None,
        description="The server's answer as the server wrote it, all its lines; absent where it is just code, status"
        " and description.",
        examples=["450-4.2.1 mailbox full\n450 4.2.1 try later"],
    )
    untried: float | None = Field(
        None,
        ge=0,
        description="The target was not tried, for it took no connections lately: this is what others were told, and"
        " one is tried again in so many seconds.",
        examples=[27.5],
    )
    description: str = Field(description="Text of the answer, or mailq's own; lines joined by newlines.")
    class_: int | None = Field(
        None, alias="class", ge=1, le=100, description="Bounce class, SparkPost's number.", examples=[10]
    )
    class_name: str | None = Field(None, description="Name of the bounce class.", examples=["Invalid Recipient"])
    category: Category | None = Field(None, description="What kind of trouble: hard will not pass, soft may.")
    about: About | None = Field(None, description="Who or what the trouble is with.")
    rule: str | None = Field(None, description="Id of the rule that decided on class, category and about.")
    ruleset: str | None = Field(None, description="Version of the rules.", examples=["2026.1"])
    pointer: str | None = Field(None, description="For process/invalid: the place in the job (RFC 6901).")
    in_doubt: bool | None = Field(
        None, description="True: the connection ended between the final dot and its answer; it may have arrived."
    )
    redelivered: bool | None = Field(
        None, description="True: told by the journal, since the worker that made the attempt ended or lost the broker."
    )
    duplicate: bool | None = Field(
        None, description="True: another publication of the id was consumed lately (delivery.unique_for); not sent."
    )
    duplicate_of: str | None = Field(None, description="The id, `message_id` or else `id`, of the other publication.")
    first_consumed: Time | None = Field(None, description="When the other publication of the id was consumed, UTC.")
    dryrun: bool | None = Field(None, description="True: the job asked for a dry run, so no message was sent.")
    warnings: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="What mailq mended in the job or in the message, a sentence each; absent if nothing was.",
        examples=[["Blanks around the recipient were removed."]],
    )
    bug: str | None = Field(None, description="The attempt met a bug of mailq: the exception.")
    timing: dict[State, Milliseconds] | None = Field(
        None, description="Milliseconds spent in each state, over all targets of the attempt."
    )
    transcript: list[str] | None = Field(
        None,
        description="Failed attempts: the last lines said on the last connection, 2 kB at most, secrets masked. C: the"
        " client, S: the server, *: an event; the first is `...` if there were more.",
        examples=[["* session 5f0c62d1b7a94e38, message 2", "C: MAIL FROM:<a@example.com>", "S: 250 2.1.0 ok"]],
    )
    fatal: bool | None = Field(None, description="Set by a response pattern: permanent or not.")
    individual: bool | None = Field(None, description="Set by a response pattern: about this message only or not.")
    strange: bool | None = Field(None, description="Set by a response pattern: a strange answer or not.")
    greylisted: bool | None = Field(None, description="Set by a response pattern: greylisting or not.")
    fallback: bool | None = Field(None, description="Set by a response pattern: next target at once or not.")
    patterns: list[str] | None = Field(None, description="Ids of the response patterns that matched.")
    expired: bool | None = Field(
        None, description="True: transient, but the job's time or number of attempts is used up, so this is final."
    )
    delayed: str | None = Field(
        None,
        description="Why the job was held back; then no attempt was made, and no later result holds this record.",
        examples=["rate"],
    )
    reason: str | None = Field(
        None,
        description="Only with `expired`: the timeout as one SMTP answer, with the last answer of a server.",
        examples=["554 5.4.7 [internal] message timeout (last transfail: 450 4.2.1 Mailbox full)"],
    )


class AddressRecord(_Record):
    """An address of the job, split at its last @."""

    local: str = Field(description="What stands before the @.", examples=["jo"])
    domain: str = Field(description="What stands behind the @.", examples=["example.org"])


class ExtractedRecord(_Record):
    """What the message header says, for consumers that do not keep the message."""

    from_: str | None = Field(None, alias="from", description="Address in From.", examples=["news@example.com"])
    to: list[str] | None = Field(None, description="Addresses in To.")
    subject: str | None = Field(None, description="Subject, decoded.")
    headers: dict[str, str | list[str]] | None = Field(
        None, description="Every field by its name in lower case, decoded; a list where a name is repeated."
    )
    envelope: AddressRecord | None = Field(None, description="The job's `envelope` in two; absent where that is empty.")
    recipient: AddressRecord | None = Field(None, description="The job's `recipient` in two.")


class NextAttemptRecord(_Record):
    """When the job is attempted again; only in the retry queue."""

    time: Time = Field(description="Not before, UTC.")
    ip: str | None = Field(None, description="From this source address: greylisting.")
    reason: str | None = Field(
        None,
        description="What chose the time: schedule, greylisting, useful_until, `hint N s` of the server, `pattern ID`.",
        examples=["schedule", "hint 300 s"],
    )


class MessageRecord(BaseModel):
    """A job as it comes back: everything the producer put there, without `mime` unless `keepmime`."""

    model_config = ConfigDict(frozen=True, extra="allow", validate_by_name=False)

    envelope: Any = Field(None, description="As the producer gave it: the MAIL FROM address.")
    recipient: Any = Field(None, description="As the producer gave it: the RCPT TO address.")
    results: list[Annotated[ResultRecord | dict[str, Any], Field(union_mode="left_to_right")]] = Field(
        min_length=1, description="One for each attempt, oldest first; earlier ones may be of other programs."
    )
    extracted: ExtractedRecord | None = Field(None, description="Taken from the message header.")
    nextattempt: NextAttemptRecord | None = Field(None, description="When it will be attempted again.")
    seen: Time | None = Field(None, description="When mailq first consumed it, UTC.")


def schemas() -> dict[str, str]:
    """Return the JSON Schemas (2020-12) by name, as text that is the same each time."""
    return {
        "job": _text("job", Job, _Given),
        "result": _text("result", ResultRecord, _Published),
        "message": _text("message", MessageRecord, _Published),
    }


def _text(name: str, model: type[BaseModel], generator: type[GenerateJsonSchema]) -> str:
    schema = model.model_json_schema(by_alias=True, schema_generator=generator)
    schema = {"$schema": generator.schema_dialect, "$id": f"urn:mailq:schema:{name}", **schema}
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


class _Given(GenerateJsonSchema):
    """For what a producer writes, where null may stand; without a title for each property."""

    def generate(
        self, schema: core_schema.CoreSchema, mode: Literal["validation", "serialization"] = "validation"
    ) -> JsonSchemaValue:
        made = super().generate(schema, mode)
        for name, each in made["properties"].items():
            if name not in made["required"] and not _takes_null(each):
                made["properties"][name] = _nullable(each)
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002 - pydantic's signature
        return False


_BESIDE = ("default", "description", "examples")


def _takes_null(schema: JsonSchemaValue) -> bool:
    return (
        None in schema.get("enum", ())
        or "null" in schema.get("type", ())
        or {"type": "null"} in schema.get("anyOf", ())
    )


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a property that may be null as well, as pydantic writes it."""
    inner = {name: value for name, value in schema.items() if name not in _BESIDE}
    beside = {name: schema[name] for name in _BESIDE if name in schema}
    return {"anyOf": [inner, {"type": "null"}]} | beside


class _Published(GenerateJsonSchema):
    """For what mailq writes: a property that may be absent is never null."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002 - pydantic's signature
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])
