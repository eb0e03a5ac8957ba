"""Table `webhooks` and its `[webhooks.endpoints.<name>]`: who is told of results over HTTP."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from mailq.config.base import Section
from mailq.config.checks import Seconds
from mailq.core.bounce_classes import Category

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OWN_HEADERS = (
    "content-",
    "x-mailq-",
    "x-ee-wh-",
    "host",
    "transfer-encoding",
    "connection",
    "user-agent",
    "idempotency-key",
)
_SECRET_LENGTH = 16


def _url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("is not of the form https://host/path")
    if "@" in parts.netloc:
        raise ValueError("has a login in it; write it as a header instead: headers = {Authorization = ...}")
    return url


def _secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < _SECRET_LENGTH:
        raise ValueError(f"is shorter than {_SECRET_LENGTH} characters")
    return secret


def _headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower().startswith(_OWN_HEADERS):
            raise ValueError(f"{name!r} is not a header to be set here")
        if not value.get_secret_value().isascii() or not value.get_secret_value().isprintable():
            raise ValueError(f"the value of {name} holds more than printable ASCII")
    return headers


EndpointName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Secret = Annotated[SecretStr, AfterValidator(_secret)]


class EndpointConfig(Section):
    """One receiver of events."""

    url: Annotated[SecretStr, AfterValidator(_url)] = Field(description="https:// address that events are posted to.")
    secrets: tuple[Secret, ...] = Field(
        (),
        max_length=2,
        description="Keys of the signature, the new and the old one while they change; none: unsigned.",
    )
    events: tuple[Literal["messageSent", "messageDeliveryError", "messageFailed"], ...] = Field(
        (), description="Only these events; empty: all."
    )
    categories: tuple[Category, ...] = Field(
        (), description="Only errors and failures of these categories; messageSent has none and passes."
    )
    tags: tuple[str, ...] = Field((), description="Only jobs with one of these tags.")
    concurrency: int = Field(4, ge=1, le=1000, description="Requests at once; after a pause it grows from one.")
    batch: int = Field(1, ge=1, le=1000, description="Events in one request; above 1 the body is always an array.")
    batch_wait: float = Field(0.5, ge=0, le=60, description="Seconds that an event waits for others of its batch.")
    timeout: float = Field(10, gt=0, le=120, description="Seconds for a whole request.")
    headers: Annotated[dict[str, SecretStr], AfterValidator(_headers)] = Field(
        default_factory=dict, description="Headers to send, such as Authorization."
    )
    follow_redirects: bool = Field(False, description="Follow up to three redirects, never from https to http.")
    emailengine_signature: bool = Field(
        False, description="Sign with EmailEngine's header X-EE-Wh-Signature too, by the first of secrets."
    )
    allow_http: bool = Field(False, description="Allow an address without TLS.")
    allow_private: bool = Field(
        False, description="Allow loopback, private, link-local and other addresses that are not public."
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if self.url.get_secret_value().lower().startswith("http:") and not self.allow_http:
            raise ValueError("url has no TLS: use https://, or set allow_http = true")
        if self.emailengine_signature and not self.secrets:
            raise ValueError("emailengine_signature needs a key: set secrets")
        return self


class WebhooksConfig(Section):
    """Results as HTTP requests, sent by `mailq webhooks` to each table [webhooks.endpoints.NAME]."""

    prefix: str = Field("webhooks", min_length=1, max_length=100, description="Queue of the results to tell of.")
    service_url: str = Field("", description="serviceUrl of every event; empty: it has none.")
    account: str = Field("default", min_length=1, description="account of events of jobs that have none.")
    last_error: bool = Field(
        True,
        description="Tell the last failed attempt as messageDeliveryError with nextAttempt false too, before"
        " messageFailed, as EmailEngine does; false: as messageFailed alone.",
    )
    max_age: int = Field(259_200, ge=1, description="Seconds until an event that nobody took is given up.")
    retries: tuple[Seconds, ...] = Field(
        (30, 120, 600, 1800, 3600),
        min_length=1,
        description="Seconds until an event that an endpoint refused is sent again; the last repeats.",
    )
    pause: float = Field(1, gt=0, description="Seconds that an endpoint in trouble is left alone; doubles.")
    pause_max: float = Field(
        300, gt=0, description="Seconds to which the pause grows; Retry-After may ask for an hour."
    )
    port: int = Field(
        9126, ge=0, le=65535, description="Port for metrics and health, at http.host; 0 picks a free one."
    )
    endpoints: dict[EndpointName, EndpointConfig] = Field(
        default_factory=dict, description="The receivers by name; better written as tables [webhooks.endpoints.NAME]."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "dead" in self.endpoints:
            raise ValueError(f'an endpoint cannot be called "dead": {self.prefix}.dead is for what is given up')
        if self.pause > self.pause_max:
            raise ValueError("pause is greater than pause_max")
        return self
