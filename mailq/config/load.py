"""From a TOML file and the environment to one `Config`, or to one message that says what is wrong.

The file is the one asked for, else the one that MAILQ_CONFIG names, else /etc/mailq/mailq.toml if
there is one, else none: the defaults run as they stand. An environment variable
`MAILQ_<TABLE>__<KEY>` comes before the file; lists and tables are written in it as JSON, and
`MAILQ_SOURCES` is the whole list of sources. Values never appear in a message: they may be secret.
"""

import json
import os
import re
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mailq.config import Config

SYSTEM_FILE = Path("/etc/mailq/mailq.toml")
PREFIX = "MAILQ_"
FILE_VARIABLE = "MAILQ_CONFIG"

_SECRETS = frozenset({"password", "secrets", "headers"})
"""Keys that hold secrets, in whatever table."""

_PASSWORD = re.compile(r"[a-z]+://[^/@:]*:([^/@]+)@")
"""A URL with a password; guest is RabbitMQ's own and no secret."""


class ConfigError(Exception):
    """The configuration cannot be used; the text names file or variable, table.key and reason."""


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration in the file and the environment.

    Raises:
        ConfigError: it cannot be read or is not valid; one line per mistake.
    """
    file = find_file(path, environ)
    document = _read(file) if file else {}
    variables = _overrides(environ)
    for variable, (table, key) in variables.items():
        _put(document, variable, table, key, environ[variable])
    origins = {place: f"environment {variable}" for variable, place in variables.items()}
    try:
        config = Config.model_validate(document)
    except ValidationError as trouble:
        errors = trouble.errors(include_url=False, include_input=False, include_context=False)
        lines = (_line(error, str(file or "configuration"), origins) for error in errors)
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    for table, name in (("rabbitmq", config.rabbitmq.ca_file), ("tls", config.tls.ca_file)):
        if name and (reason := _no_certificates(name)):
            raise ConfigError(f"{origins.get((table, 'ca_file'), file)}: {table}.ca_file: {reason}")
    return config


def find_file(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file to read: `path`, the one MAILQ_CONFIG names, the system's, or None."""
    if path is not None:
        return path
    if named := environ.get(FILE_VARIABLE):
        return Path(named)
    try:
        return SYSTEM_FILE if SYSTEM_FILE.exists() else None
    except PermissionError:  # it may well be there: better told than left out
        return SYSTEM_FILE


def holds_secrets(file: Path) -> bool:
    """Tell whether a password, key or token stands in a file that was loaded; the environment is another matter."""
    return _secret(_read(file))


def _secret(value: object) -> bool:
    if isinstance(value, dict):
        return any((name in _SECRETS and bool(each)) or _secret(each) for name, each in value.items())
    if isinstance(value, list):
        return any(map(_secret, value))
    return isinstance(value, str) and (found := _PASSWORD.match(value)) is not None and found[1] != "guest"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as trouble:
        raise ConfigError(f"{file}: cannot be read: {trouble.strerror}; {_remedy(file, trouble)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as trouble:
        hint = "texts stand in quotes, tables in [brackets]; `mailq example-config` prints every key"
        raise ConfigError(f"{file}: is not TOML: {trouble}; {hint}") from None


def _remedy(file: Path, trouble: OSError) -> str:
    if isinstance(trouble, FileNotFoundError):
        return f"`mailq example-config > {file}` makes one"
    if isinstance(trouble, PermissionError):
        return f"let this user read it (for example: chgrp mailq {file}; chmod 640 {file})"
    return "name a file with --config or MAILQ_CONFIG"


def _no_certificates(name: str) -> str | None:
    """Return why a file cannot be the CA certificates to verify with."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)
    except ssl.SSLError:
        return f'"{name}" holds no CA certificates in PEM form'
    except OSError as trouble:
        return f'"{name}" cannot be read: {trouble.strerror}'
    return None


def _overrides(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return {variable: (table, key)}; the key is empty where the variable holds a whole table."""
    found = {}
    for variable in sorted(environ):
        table, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        # Without `__` a name may be anybody's (Kubernetes sets MAILQ_PORT for a service "mailq").
        if variable.startswith(PREFIX) and (separator or table == "sources"):
            found[variable] = (table, key)
    return found


def _put(document: dict[str, Any], variable: str, table: str, key: str, text: str) -> None:
    section = _section(table)
    if not key:
        document[table] = _json(variable, text)
        return
    if section is None or key not in section.model_fields:
        raise ConfigError(f"environment {variable}: {_unknown(table, key)}")
    origin = get_origin(section.model_fields[key].annotation)
    inner = document.setdefault(table, {})
    if isinstance(inner, dict):
        inner[key] = _json(variable, text) if origin in (tuple, dict) else text


def _json(variable: str, text: str) -> Any:  # noqa: ANN401 - pydantic decides what it may be
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"environment {variable}: is not JSON; lists and tables are written as JSON") from None


def _section(table: str) -> type[BaseModel] | None:
    field = Config.model_fields.get(table)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _line(error: ErrorDetails, file: str, origins: dict[tuple[str, str], str]) -> str:
    place = tuple(str(part) for part in error["loc"])
    table, key = (*place, "", "")[:2]
    origin = origins.get((table, key)) or origins.get((table, "")) or file
    if error["type"] == "extra_forbidden":
        return f"{origin}: {_unknown(*place)}"
    reason = error["msg"].removeprefix("Value error, ")
    return f"{origin}: {'.'.join(place)}: {reason[:1].lower()}{reason[1:]}"


def _unknown(*place: str) -> str:
    """Return the complaint about a key that does not exist, with the nearest one that does."""
    name = ".".join(part for part in place if not part.isdecimal())
    keys = list(_keys())
    same = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = get_close_matches(name, same or keys, n=1, cutoff=0.5) or same[:1]
    return f"{name}: there is no such key" + (f"; did you mean {near[0]}?" if near else "")


def _keys() -> Iterator[str]:
    for table, field in Config.model_fields.items():
        yield table
        section = _section(table) or next(iter(getattr(field.annotation, "__args__", ())), None)
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{table}.{key}" for key in section.model_fields)
