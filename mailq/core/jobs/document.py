"""A document: the JSON object in an AMQP message, gzip undone, within bounds; what it means is for others. Pure.

`unpack` comes first: it undoes gzip and weighs what is there, so that a caller can refuse, wait or leave the event
loop before anything is parsed. `load` then makes the document. Whatever it returns can be written by orjson.
"""

from typing import Any, NamedTuple

import orjson

from mailq.core.jobs.content_encoding import GZIP, EncodingError, TooLargeError, foreign, inflate
from mailq.core.jobs.json_text import count_marks, count_values, holds_large, mend_surrogates, parse_exactly

_BOM = b"\xef\xbb\xbf"

MAX_DEPTH = 200
"""Objects and arrays a document may hold before it is tried out whether they are nested too deeply."""

MARGIN = 4
"""Levels that results, events and webhooks put around what a producer nests."""

MAX_VALUES = 200_000
"""Values that a producer's document may hold if nobody says otherwise."""

RESULTS_VALUES = 150_000
"""Values that mailq itself may have added to it as results."""

VALUE = 128
"""Octets of memory that a value takes at most, its share of its object or array included (measured: 32 to 90)."""

FEW = 8_000
"""Values that are not worth counting exactly: they take less than 1 MB, and a few milliseconds to parse."""

UNCOUNTED = 16 * 1024
"""Octets of a body whose values are not counted: they take less than 1 MB, whatever they are."""

MAX_REASON = 1_000
"""Characters of a reason: texts of libraries may repeat what a producer wrote."""

MAX_POINTER = 256
"""Characters of a pointer: names of properties are a producer's."""

HALF = "Half a surrogate pair, which is no character, became U+FFFD."
"""The warning where it was so."""

_TOO_MANY = "holds more values than worker.max_values allows; send fewer, or raise it"
_REMEDY = "publish one JSON object in UTF-8"


class InvalidJobError(ValueError):
    """A message cannot be processed as a job: `pointer` says where, `document` is what could be read of it.

    `code` and `status` are for its result; None: those of every job that cannot be processed.
    """

    def __init__(
        self,
        reason: str,
        pointer: str = "",
        document: dict[str, Any] | None = None,
        *,
        code: int | None = None,
        status: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.status = status
        self.reason = reason[:MAX_REASON]
        self.pointer = pointer if len(pointer) <= MAX_POINTER else pointer[: MAX_POINTER - 1] + "…"
        self.document = document


class OversizeBodyError(InvalidJobError):
    """A body is larger than allowed."""


class HeavyBodyError(InvalidJobError):
    """A body may hold more values than can be counted and parsed at once."""


class Unpacked(NamedTuple):
    """The JSON text of a message and what is known of it before it is parsed.

    `weight` is in octets of memory that text and document will take, `excess` the values beyond those of a producer,
    and `objection` why the document is to be refused.
    """

    text: bytes
    weight: int
    excess: int = 0
    objection: str | None = None


def read_document(body: bytes, encoding: str | None, limit: int) -> dict[str, Any]:
    """Return the JSON object in an AMQP body of at most `limit` octets after gzip is undone, however many its values.

    Raises:
        InvalidJobError: there is none; with a document if one could be read but not be taken.
    """
    return load(unpack(body, encoding, limit, limit))[0]


def unpack(
    body: bytes, encoding: str | None, limit: int, values: int = MAX_VALUES, *, at_once: bool = False
) -> Unpacked:
    """Return the JSON text in an AMQP body of at most `limit` octets, after gzip is undone, and about `values` values.

    Raises:
        HeavyBodyError: `at_once` was asked for, and more may have to be done.
        OversizeBodyError: it has more octets.
        InvalidJobError: it has far more values, or its gzip cannot be undone; without a document.
    """
    objection = None
    if (unknown := foreign(encoding)) is not None:
        objection = f"content_encoding names {unknown[:80]!r}, which mailq cannot decode; use gzip or leave it out"
    if body.startswith(GZIP):
        try:
            body = inflate(body, limit)
        except TooLargeError as trouble:
            raise OversizeBodyError(str(trouble)) from None
        except EncodingError as trouble:
            raise InvalidJobError(str(trouble)) from None
    body = body.removeprefix(_BOM)  # which a reader may ignore (RFC 8259 section 8.1)
    if len(body) > limit:
        raise OversizeBodyError(
            f"body of {len(body)} octets is larger than {limit}; send less, or raise delivery.max_message_size"
        )
    if len(body) <= UNCOUNTED:
        return Unpacked(body, len(body), objection=objection)
    if at_once and count_marks(body, FEW) > FEW:
        raise HeavyBodyError("body may hold many values")
    found = FEW if at_once else count_values(body, FEW, values + RESULTS_VALUES)
    if found > values + RESULTS_VALUES:
        raise InvalidJobError(f"body {_TOO_MANY}")
    weight = len(body) + (found * VALUE if found > FEW else 0)
    return Unpacked(body, weight, max(found - values, 0), objection)


def load(unpacked: Unpacked) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the JSON object in a text, and what was mended in it, a sentence each.

    Raises:
        InvalidJobError: there is none (without a document), or it cannot be taken as it is.
    """
    objection = unpacked.objection
    try:
        document, text = _parse(unpacked.text)
    except InvalidJobError:
        if objection is not None:
            raise InvalidJobError(objection) from None
        raise
    nested, floats = _looked_at(document)
    if (nested or floats) and holds_large(document):
        document = _exact(text, document)
        nested, _ = _looked_at(document)
    if nested and unpacked.text.count(b"[") + unpacked.text.count(b"{") > MAX_DEPTH:
        _check_depth(document, nested)
    if unpacked.excess and unpacked.excess > _values_of_results(document):
        raise InvalidJobError(_TOO_MANY, document=document)
    if objection is not None:  # the octets may mean other characters than those that were read
        raise InvalidJobError(objection, document=document)
    return document, (HALF,) if text is not unpacked.text else ()


def _exact(text: bytes, document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a text with every integer as it is written there."""
    try:
        exact: dict[str, Any] = parse_exactly(text)
    except RecursionError:  # too deep to be given back, so it is refused
        return document
    return exact


def _parse(text: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the object in a text, and the text, another one if it had to be mended."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as trouble:
        document, text = _parse_mended(text, trouble)
    if not isinstance(document, dict):
        raise InvalidJobError(f"body is JSON but not an object; {_REMEDY}, not a list or text that holds it")
    return document, text


def _parse_mended(text: bytes, trouble: orjson.JSONDecodeError) -> tuple[Any, bytes]:
    """Return what a text holds whose only fault is half a surrogate pair, and the mended text.

    JavaScript writes it for half an emoji.
    """
    mended = mend_surrogates(text)
    try:
        if mended is not None:
            return orjson.loads(mended), mended
    except orjson.JSONDecodeError as another:
        trouble = another
    raise InvalidJobError(f"body is not JSON: {trouble}{_hint(text)}; {_REMEDY}")


def _hint(text: bytes) -> str:
    """Return what else a body may be that is not JSON."""
    try:
        text.decode()
    except UnicodeDecodeError as trouble:
        return f" (octet {text[trouble.start]:#04x} at {trouble.start} is not UTF-8)"
    return ""


def _looked_at(document: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the properties that hold objects or arrays in another one, and whether a float was met.

    Only in the former can something be nested deeply, and only floats may have been integers of more than 64 bits.
    """
    nested: dict[str, Any] = {}
    floats = False
    for name, value in document.items():
        kind = type(value)
        if kind is dict or kind is list:
            for inner in value.values() if kind is dict else value:
                inside = type(inner)
                if inside is dict or inside is list:
                    nested[name] = value
                    break
                floats = floats or inside is float
        elif kind is float:
            floats = True
    return nested, floats


def _check_depth(document: dict[str, Any], nested: dict[str, Any]) -> None:
    """Refuse what could be read but not written again: orjson stops at 254 objects and arrays in each other.

    Raises:
        InvalidJobError: with the document but for what is nested too deeply.
    """
    deep = [name for name, value in nested.items() if not _can_be_written(value)]
    if deep:
        rest = {name: value for name, value in document.items() if name not in deep}
        pointer = "/" + deep[0].replace("~", "~0").replace("/", "~1")
        raise InvalidJobError("is nested too deeply to be given back; nest fewer levels", pointer, rest)


def _values_of_results(document: dict[str, Any]) -> int:
    """Return how many values are mailq's own: results grow with each attempt."""
    return count_values(orjson.dumps(document.get("results")), 0, RESULTS_VALUES)


def _can_be_written(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    for _ in range(MARGIN):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True
