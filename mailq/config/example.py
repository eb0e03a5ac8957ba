"""The commented example configuration, made of the models: `etc/mailq.toml` is this text.

Every key is there with its default, so the file runs as it stands and equals the defaults.
"""

import json
import textwrap
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from mailq.config import Config

_HEAD = """\
# mailq: the whole configuration, every key at its default. Made by `mailq example-config`.
#
# mailq reads the file given with --config, else the one that MAILQ_CONFIG names, else
# /etc/mailq/mailq.toml. A variable MAILQ_<TABLE>__<KEY> in the environment comes first, for example
# MAILQ_RABBITMQ__URL=amqps://user:secret@broker.example/mail; lists and tables are JSON there.
"""

_SAMPLES = {
    "ip": '"192.0.2.1"',
    "ehlo": '"mta1.example.com"',
    "source": '"192.0.2.1"',
    "pool": '"bulk"',
    "domain": '"example.com"',
    "mx": '"google.com"',
    "connections": "20",
    "connection_rate": '"10/s"',
    "message_rate": '"100/m"',
    "burst": "1",
    "messages_per_session": "100",
    "session_age": "300",
    "idle_timeout": "5",
    "url": '"https://crm.example.com/events"',
    "secrets": '["at least 16 characters"]',
    "events": '["messageDeliveryError", "messageFailed"]',
    "categories": '["hard", "soft"]',
    "tags": '["newsletter"]',
    "headers": '{Authorization = "Bearer of-your-own"}',
}
"""What stands in tables that are not there by default; keys with neither this nor an example have their default."""

_NAMES = {"endpoints": "crm"}
"""What a sample of a table by name is called."""


def example() -> str:
    """Return the example as TOML."""
    tables = (_table(name, field) for name, field in Config.model_fields.items())
    return "\n\n".join([_HEAD.rstrip(), *tables]) + "\n"


def _table(name: str, field: FieldInfo) -> str:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        named = {key: inner for key, inner in kind.model_fields.items() if key in _NAMES}
        keys = (_key(key, inner) for key, inner in kind.model_fields.items() if key not in named)
        samples = (_commented(f"[{name}.{key}.{_NAMES[key]}]", inner, 1) for key, inner in named.items())
        return "\n".join([f"{_comment(kind.__doc__ or '')}[{name}]\n" + "\n".join(keys), *samples]).rstrip()
    return _commented(f"[[{name}]]", field, 0).rstrip()


def _commented(head: str, field: FieldInfo, place: int) -> str:
    """Return a sample of tables that are not there by default; their model is the argument of the annotation there."""
    inner = get_args(field.annotation)[place].model_fields
    text = "".join(f"# {key} = {_sample(key, inner[key])}  # {inner[key].description}\n" for key in inner)
    about = f"{field.description} As many such tables as needed; none is there by default."
    return f"{_comment(about)}# {head}\n{text}"


def _sample(key: str, field: FieldInfo) -> str:
    if field.examples:
        return toml(field.examples[0])
    return _SAMPLES.get(key) or toml(field.get_default(call_default_factory=True))


def _key(key: str, field: FieldInfo) -> str:
    about = " ".join(part for part in (field.description or "", _allowed(field)) if part)
    return f"{_comment(about)}{key} = {toml(field.get_default(call_default_factory=True))}\n"


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return f"One of {', '.join(json.dumps(value) for value in get_args(field.annotation))}."
    lowest = next((limit.ge for limit in field.metadata if isinstance(limit, Ge)), "Up")
    return next((f"{lowest} to {limit.le}." for limit in field.metadata if isinstance(limit, Le)), "")


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(" ".join(text.split()), 98, break_long_words=False))


def toml(value: Any) -> str:  # noqa: ANN401 - whatever a default may be
    """Return a default value as TOML: strings, numbers, booleans, lists and an empty table."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
