"""Jobs in a file: one JSON object, an array of them, or one after another (JSON lines).

Cuts the text into documents and says in which line each begins; the producer's own octets are kept, nothing
is written anew. Whether a document is a job is decided by `core.jobs.job`; a job without a message is a job whose one
result is known beforehand, and here a flaw.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """One job and the document it was read from, `line` counted from 1."""

    line: int
    body: bytes
    job: Job


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong in which line; `pointer` (RFC 6901) leads to it inside the document."""

    line: int
    reason: str
    pointer: str = ""

    def __str__(self) -> str:
        """Return the place within the file and the reason."""
        return f"{self.line}: {self.pointer}: {self.reason}" if self.pointer else f"{self.line}: {self.reason}"


def read(content: bytes, limit: int, *, strict: bool = False) -> Iterator[Entry | Flaw]:
    """Yield the jobs in a file and what is wrong between them; documents of more than `limit` octets are wrong.

    `strict` is for `Job.parse`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Flaw(content.count(b"\n", 0, error.start) + 1, "is not UTF-8")
        return
    for piece in _cut(text):
        yield piece if isinstance(piece, Flaw) else _entry(*piece, limit, strict=strict)


def _entry(line: int, body: bytes, limit: int, *, strict: bool) -> Entry | Flaw:
    if len(body) > limit:
        return Flaw(line, f"is larger than {limit} octets")
    try:
        job = Job.parse(body, limit=limit, strict=strict)
    except InvalidJobError as error:
        return Flaw(line, error.reason, error.pointer)
    if not job.mime:
        return Flaw(line, "there is no message to send; the worker would fail the job with storage/error", "/mime")
    return Entry(line, body, job)


def _cut(text: str) -> Iterator[tuple[int, bytes] | Flaw]:
    """Yield (line, document) for each JSON value of an array, or of values in a row."""
    at = _skip(text, 0)
    yield from _array(text, at + 1) if text.startswith("[", at) else _row(text, at)


def _row(text: str, at: int) -> Iterator[tuple[int, bytes] | Flaw]:
    """Cut values that follow each other; after broken JSON go on with the next line."""
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value = _value(text, at, line)
        if isinstance(value, Flaw):
            yield value
            newline = text.find("\n", at)
            at = len(text) if newline < 0 else _skip(text, newline)
        else:
            yield line, text[at:value].encode()
            at = _skip(text, value)


def _array(text: str, at: int) -> Iterator[tuple[int, bytes] | Flaw]:
    """Cut the values of an array that begins before `at`; broken JSON is the end."""
    line, counted = 1, 0
    at = _skip(text, at)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        value = _value(text, at, line) if at < len(text) else Flaw(line, "is not JSON: the array ends early")
        if isinstance(value, Flaw):
            yield value
            return
        yield line, text[at:value].encode()
        at = _skip(text, value)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            line += text.count("\n", counted, at)
            yield Flaw(line, "is not JSON: the array goes on without a comma or ends early")
            return
    at = _skip(text, at + 1)
    if at < len(text):
        yield Flaw(line + text.count("\n", counted, at), "is not JSON: something comes after the array")


def _value(text: str, at: int, line: int) -> int | Flaw:
    """Return where the JSON value at `at`, in line `line`, ends."""
    try:
        return _DECODER.raw_decode(text, at)[1]
    except json.JSONDecodeError as error:
        return Flaw(line + text.count("\n", at, error.pos), f"is not JSON: {error.msg}")
    except RecursionError:
        return Flaw(line, "is not JSON: nested too deeply")


def _skip(text: str, at: int) -> int:
    """Return the place of the next character that is no white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
