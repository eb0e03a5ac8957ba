"""The view of a message that was put aside: its identity, headers and body, bounded and without secrets.

A message is a stranger's: what is shown of it has no control characters (`core.escape`), and passwords, tokens and
private keys are masked. Poison and the dead queue of webhooks are shown alike.
"""

import hashlib
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mailq.cli.output import as_json
from mailq.core.broker.messages import Consumed
from mailq.core.jobs.document import InvalidJobError, read_document
from mailq.core.smtp.reply import printable

SHOWN = 64 * 1024
"""Octets of a body that are shown, once gzip is undone."""

READ = 16 * 1024 * 1024
"""Largest document, in octets, that is taken apart."""

MASK = "***"

_SECRET = re.compile("passw|secret|token|credential|authorization|private", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r'("(?:[^"\\\n]{0,60}(?:passw|secret|token|credential|authorization|private)[^"\\\n]{0,60}|key)"\s*:\s*)'
    r'"(?:[^"\\]|\\.)*(?:"|\\?$)',
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def identity(message: Consumed) -> str:
    """Return how a message is named: its message id as it can be printed, else the digest that is a job's identity."""
    if message.message_id:
        return printable(message.message_id.encode(errors="replace"), limit=255)
    return hashlib.blake2b(message.body, digest_size=16).hexdigest()


def shown(message: Consumed) -> dict[str, Any]:
    """Return a message for people who look into it: `id`, `headers`, and `document` or else `body`; no secrets."""
    facts = {"id": identity(message), "size": len(message.body), "headers": masked(dict(message.headers))}
    document = document_of(message)
    if document is not None:
        return facts | {"document": masked(document)}
    text = _plain(message).decode("utf-8", "replace")
    return facts | {"body": _PRIVATE_KEY.sub(MASK, _SECRET_TEXT.sub(rf'\1"{MASK}"', text))}


def page(message: Consumed) -> list[str]:
    """Return a message as lines for a terminal."""
    facts = shown(message)
    document = facts.get("document")
    body = facts["body"] if document is None else as_json(document, indent=True)
    lines = [f"id: {facts['id']}", f"size: {facts['size']} octets"]
    lines += [f"{name}: {as_json(value)}" for name, value in facts["headers"].items()]
    lines += ["", *body[:SHOWN].split("\n")]
    if len(body) > SHOWN:
        lines.append(f"… and {len(body) - SHOWN} characters more")
    return [printable(line.encode(errors="replace"), limit=SHOWN) for line in lines]


def masked(value: Any, inside: str = "") -> Any:  # noqa: ANN401 - JSON
    """Return a JSON value without its secrets: passwords, tokens, the keys of `dkim`, private keys in texts."""
    if isinstance(value, dict):
        return {name: MASK if _secret(name, inside) else masked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item, inside) for item in value]
    return _PRIVATE_KEY.sub(MASK, value) if isinstance(value, str) else value


def _secret(name: str, inside: str) -> bool:
    return _SECRET.search(name) is not None or (name == "key" and inside == "dkim")


def death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the broker says of the newest time that it dead-lettered the message."""
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    return newest if isinstance(newest, dict) else {}


def document_of(message: Consumed) -> dict[str, Any] | None:
    """Return the JSON object in a message, None if there is none."""
    try:
        return read_document(message.body, message.content_encoding, READ)
    except InvalidJobError:
        return None


def _plain(message: Consumed) -> bytes:
    """Return the beginning of a body, out of gzip if it can be."""
    if message.zipped:
        try:
            return zlib.decompressobj(wbits=31).decompress(message.body, SHOWN)
        except zlib.error:
            pass
    return message.body[:SHOWN]


def text_of(value: object) -> str | None:
    """Return the first line of a stranger's text, bounded."""
    text = "" if value is None else str(value).strip().partition("\n")[0]
    return printable(text.encode(errors="replace")) or None


def age(time: str) -> str:
    """Return how long ago a moment was, in its largest unit."""
    seconds = max(int((datetime.now(UTC) - datetime.fromisoformat(f"{time}+00:00")).total_seconds()), 0)
    return next((f"{seconds // size}{unit}" for unit, size in _UNITS if seconds >= size), "0s")
