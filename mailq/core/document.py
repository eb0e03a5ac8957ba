"""A document: the JSON object in an AMQP message, gzip undone, within bounds; what it means is for others. Pure."""

import zlib
from typing import Any

import orjson

_CONTAINERS = (dict, list)

MAX_DEPTH = 200
"""Objects and arrays a document may hold before it is tried out whether they are nested too deeply."""


class InvalidJobError(ValueError):
    """A message cannot be processed as a job: `pointer` says where, `document` is what could be read of it."""

    def __init__(self, reason: str, pointer: str = "", document: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer
        self.document = document


def read_document(body: bytes, encoding: str | None, limit: int) -> dict[str, Any]:
    """Return the JSON object in an AMQP body; `limit` bounds what gzip may unfold to, in octets.

    Raises:
        InvalidJobError: without a document, since none could be read.
    """
    if encoding == "gzip":
        body = _unzip(body, limit)
    elif encoding not in (None, "", "identity", "utf-8"):
        raise InvalidJobError(f"content_encoding {encoding!r} is not known; use gzip or none")
    if len(body) > limit:
        raise InvalidJobError(f"body of {len(body)} octets is larger than {limit}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as trouble:
        raise InvalidJobError(f"body is not JSON: {trouble}") from None
    if not isinstance(document, dict):
        raise InvalidJobError("body is JSON but not an object")
    nested = [value for value in document.values() if isinstance(value, _CONTAINERS) and _holds_others(value)]
    if nested and body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(nested)
    return document


def _holds_others(container: dict[str, Any] | list[Any]) -> bool:
    """Tell whether an object or array holds another one: few do, and only in these things can be nested deeply."""
    for value in container.values() if isinstance(container, dict) else container:
        if isinstance(value, _CONTAINERS):
            return True
    return False


def _check_depth(nested: list[Any]) -> None:
    """Refuse what could be read but not written again: orjson stops at 254 objects and arrays in each other."""
    try:
        orjson.dumps(nested)
    except TypeError:
        raise InvalidJobError("body is nested too deeply to be given back") from None


def _unzip(body: bytes, limit: int) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(body, limit)
    except zlib.error as trouble:
        raise InvalidJobError(f"body is not gzip though content_encoding says so: {trouble}") from None
    if unzip.unused_data:
        raise InvalidJobError("gzip body is followed by something else")
    if unzip.unconsumed_tail:
        raise InvalidJobError(f"gzip body unfolds to more than {limit} octets")
    if not unzip.eof:
        raise InvalidJobError("gzip body is cut short")
    return plain
