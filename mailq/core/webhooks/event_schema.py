"""The events of webhooks as models: what a receiver may rely on, and where `schemas/events.json` comes from.

Nothing is made with these at run time (`core.webhooks.events` makes events); tests hold real events against them.
The shapes are EmailEngine's; `x-mailq` is ours.
"""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mailq.core.results.schema import ResultRecord, _Published

Moment = Annotated[
    str,
    StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$"),
    Field(examples=["2030-01-31T12:00:00.000Z"]),
]
ErrorCode = Literal[
    "ETIMEDOUT",
    "EAUTH",
    "ETLS",
    "EDNS",
    "ECONNECTION",
    "EPROTOCOL",
    "ESOCKET",
    "EMESSAGE",
    "ESTREAM",
    "EENVELOPE",
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False)


class EnvelopeRecord(_Record):
    """The SMTP envelope."""

    from_: str = Field(alias="from", description="MAIL FROM address; empty: the null sender.")
    to: list[str] = Field(description="RCPT TO address, one.")


class RoutingRecord(_Record):
    """Where it left from; only there if source addresses or a proxy are configured."""

    local_address: str | None = Field(None, alias="localAddress", description="Local IP address.")
    local_port: int | None = Field(None, alias="localPort", ge=1, le=65535, description="Local port, if connected.")
    proxy: str | None = Field(None, description="URL of the SOCKS proxy, without its login.")


class JobRecord(_Record):
    """The job and its next attempt."""

    id: str = Field(description="The job's `id`, else the same as queueId.")
    attempts_made: int = Field(alias="attemptsMade", ge=1, description="Attempts made so far.")
    attempts: int = Field(
        ge=0,
        description="Attempts until the job is given up: as configured, else as schedule and deadline have room for.",
    )
    next_attempt: Moment | Literal[False] = Field(
        alias="nextAttempt", description="When the job is tried again; false: not at all, messageFailed follows."
    )


class _Data(_Record):
    queue_id: str = Field(alias="queueId", description="Identity of the job: AMQP message id, `id` or a digest.")
    message_id: str = Field(
        alias="messageId", description="Message-ID of the message; one at mailq.invalid for a message without one."
    )
    routing: RoutingRecord | None = Field(None, alias="networkRouting", description="Where it left from.")


class SentRecord(_Data):
    """Data of messageSent."""

    envelope: EnvelopeRecord = Field(description="The SMTP envelope.")
    response: str = Field(description="The server's answer.", examples=["250 2.0.0 Ok: queued as 4F2A1"])


class DeliveryErrorRecord(_Data):
    """Data of messageDeliveryError."""

    envelope: EnvelopeRecord = Field(description="The SMTP envelope.")
    error: str = Field(description="What happened, for people.")
    error_code: ErrorCode = Field(alias="errorCode", description="What happened, in one word.")
    smtp_response: str | None = Field(None, alias="smtpResponse", description="The server's answer, if it gave one.")
    smtp_response_code: int | None = Field(None, alias="smtpResponseCode", description="Its code.")
    smtp_command: str | None = Field(None, alias="smtpCommand", description="The command it was about.")
    job: JobRecord = Field(description="The job and its next attempt.")


class FailedRecord(_Data):
    """Data of messageFailed."""

    error: str = Field(description="How the last attempt ended.", examples=["Error: 550 5.1.1 no such user"])


class MailqRecord(_Record):
    """What mailq has to say beyond EmailEngine's shapes."""

    id: str = Field(description="Identity of the event, the same each time it is sent.")
    result: ResultRecord | dict[str, Any] = Field(union_mode="left_to_right", description="The whole result.")
    tags: list[str] = Field(description="The job's tags.")
    properties: dict[str, Any] = Field(description="Properties that the producer added to the job.")


class EventRecord(_Record):
    """One event. Which data it has follows from its name."""

    service_url: str | None = Field(None, alias="serviceUrl", description="webhooks.service_url, if configured.")
    account: str = Field(description="The job's `account`, else webhooks.account.")
    date: Moment = Field(description="When the event was made.")
    event: Literal["messageSent", "messageDeliveryError", "messageFailed"] = Field(description="Its name.")
    data: DeliveryErrorRecord | SentRecord | FailedRecord = Field(description="What it tells.")
    mailq: MailqRecord = Field(alias="x-mailq", description="The whole result, and what else mailq knows.")


def events_schema() -> str:
    """Return the JSON Schema (2020-12) of one event, as text that is the same each time."""
    schema = EventRecord.model_json_schema(by_alias=True, schema_generator=_Published)
    schema = {"$schema": _Published.schema_dialect, "$id": "urn:mailq:schema:events", **schema}
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
