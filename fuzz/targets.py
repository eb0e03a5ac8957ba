"""What must hold for any octets: the properties behind `python -m fuzz` and `tests/fuzz`.

A target takes octets and returns, or raises: then there is a bug. Only what the parsers document
may come out of them, and everything that they let through is taken all the way: a reply to what is
told of it, a job to its commands, its payload and its published results. What was sent is read back
by other code than the one that made it: the sink's strict syntax, and a reader of payloads in here.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random

import orjson

from mailq.config import Config
from mailq.core.answers.verdict import Outcome, Verdict, judge
from mailq.core.broker import publications
from mailq.core.broker.messages import Application, Consumed, Publication
from mailq.core.broker.provenance import UNKNOWN, Outbox
from mailq.core.broker.publications import Names
from mailq.core.content.conformance import MENDED, fitted
from mailq.core.content.mime import Content, extract, payload
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job
from mailq.core.results.result import Result, Trail, accepted, failed
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import MAX_REPLY, MalformedReplyError, Reply, ReplyReader
from mailq.core.states import Kind, State
from mailq.delivery.smtp.envelope import mail_from, rcpt_to
from mailq.delivery.smtp.opening import extensions
from mailq.delivery.smtp.transaction import check
from mailq.delivery.stages import storage
from mailq.edges.amqp.encodable import fitted as fitted_headers
from mailq.edges.amqp.field_tables import decode_table
from mailq.edges.amqp.frames import publish_frames
from mailq.service.build import policy_of
from mailq.sink import syntax

LIMIT = 1024 * 1024
"""Octets of a job, unfolded."""

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)

OFFERS: Sequence[Mapping[str, str]] = (
    {},
    {"size": "", "8bitmime": "", "smtputf8": "", "dsn": "", "pipelining": ""},
    {"size": "100"},
)
"""What servers may offer: nothing, everything, little room."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}", re.ASCII)


OUTBOX = Outbox("/", "outbox", "secret")

POLICY = policy_of(Config())
"""As configured by default."""


def read(pieces: Iterable[bytes]) -> tuple[list[Reply], bool]:
    """Return the replies in a stream that comes in pieces, and whether it ended in something else."""
    reader = ReplyReader()
    replies: list[Reply] = []
    try:
        for piece in pieces:
            replies += reader.feed(piece)
    except MalformedReplyError as trouble:
        return [*replies, *trouble.replies], True
    return replies, False


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Yield `data` in pieces: of the sizes given, then the rest."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


def reply(data: bytes) -> None:
    """Any stream of a server is the same replies however it is cut, and they are fit to be told."""
    whole = read([data])
    assert read(cut(data, data[:64])) == whole
    if len(data) <= 4096:
        assert read(cut(data, [1] * len(data))) == whole
    for each in whole[0]:
        assert 200 <= each.code <= 599
        assert each.status is None or _STATUS.fullmatch(each.status)
        assert not _CONTROL.search(each.text.replace("\n", "").replace("\t", ""))
        assert len(each.text) <= MAX_REPLY
        extensions(each)
        for state in (State.MAILFROM, State.DATA, State.MESSAGE):
            trouble = check(state, each)
            if trouble is not None:
                told(failed(Trail(), trouble, time=NOW, attempt=1))
        told(accepted(Trail(), each, time=NOW, attempt=1))


def told(result: Result) -> None:
    """A result is JSON, and its texts hold nothing that a terminal or a log would obey."""
    record = orjson.loads(orjson.dumps(result.as_json()))
    for name in ("description", "mta", "command"):
        assert not _CONTROL.search(record.get(name, "").replace("\n", "").replace("\t", ""))


def job(data: bytes) -> None:
    """Any body is a job or is refused with a result; the first octet chooses the encoding."""
    encoding = "gzip" if data[:1] == b"z" else None
    body = data[1:]
    if data[:1] == b"Z":  # what mutation of compressed octets never finds
        encoding, body = "gzip", zlib.compress(body, wbits=31)
    consumed = Consumed(body, 1, content_encoding=encoding)
    try:
        parsed = Job.parse(body, encoding=encoding, limit=LIMIT)
    except InvalidJobError as error:
        refused(error, consumed)
        return
    sent(parsed, consumed)


def refused(error: InvalidJobError, consumed: Consumed) -> list[Publication]:
    """What is no job has a reason that can be shown, and what can be read of it a result."""
    assert not _CONTROL.search(error.reason)
    if error.document is None:
        return []
    failure = Failure(State.PROCESS, Kind.INVALID, error.reason, pointer=error.pointer)
    result = failed(Trail(), failure, time=NOW, attempt=1)
    told(result)
    verdict = Verdict(Outcome.FAILURE)
    document = publications.with_result(error.document, result, verdict)
    told_to_all = publications.report(document, verdict, Names(), consumed, None, message_id=None, extracted=None)
    published = list(told_to_all)
    for publication in published:
        orjson.loads(publication.body)
    return published


def as_taken(content: Content, offered: Mapping[str, str]) -> Content:
    """Return the message as a server gets it, which it takes as it is."""
    eight_bit, utf8 = "8bitmime" in offered, "smtputf8" in offered
    message, warnings = fitted(content, MENDED, eight_bit=eight_bit, utf8=utf8)
    wire = payload(message.content)
    assert received(wire) == message.content
    assert eight_bit or not message.eightbit
    assert utf8 or not message.eightbit_header or any("signed" in each for each in warnings)
    return message


def sent(parsed: Job, consumed: Consumed) -> list[Publication]:
    """What is a job makes sound commands, one message, and sound results; the last publication is the way back."""
    trail = Trail()
    try:
        content = storage.content(parsed, trail, LIMIT, MENDED)
    except Failure as failure:
        return published(parsed, trail, failure, consumed)
    wire = payload(content.content)
    assert received(wire) == content.content
    trail.extracted = extract(content.content)
    ending: Failure | Reply = Reply(250, None, "taken")
    for offered in OFFERS:
        try:
            message = as_taken(content, offered)
            mail = mail_from(parsed.envelope, parsed.recipient, message, parsed.dsn, offered)
        except Failure as failure:
            ending = failure
            continue
        rcpt = rcpt_to(parsed.recipient, parsed.dsn, offered)
        understood(mail, "FROM:", str(parsed.envelope or ""), offered, utf8=" SMTPUTF8" in mail)
        understood(rcpt, "TO:", str(parsed.recipient), offered, utf8=" SMTPUTF8" in mail)
        trail.facts["command"] = rcpt
    return published(parsed, trail, ending, consumed)


def understood(line: str, keyword: str, address: str, offered: Mapping[str, str], *, utf8: bool) -> None:
    """A strict server reads one command of this line, with this address and parameters that it offers."""
    assert not _CONTROL.search(line)
    assert utf8 or line.isascii()
    assert not utf8 or "smtputf8" in offered
    _, argument = syntax.command(line.encode())
    known = syntax.MAIL_PARAMETERS if keyword == "FROM:" else syntax.RCPT_PARAMETERS
    found, parameters = syntax.path(argument, keyword, known, lambda extension: extension.lower() in offered)
    assert found == address
    assert set(parameters) <= set(known)


def received(wire: bytes) -> bytes:
    """Return the one message in what follows DATA, read as RFC 5321 section 4.5.2 tells a server to.

    Raises:
        AssertionError: a server, strict or lax about line ends, could find its end before the end.
    """
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    *lines, last, rest = wire.split(b"\r\n")
    assert (last, rest) == (b".", b"")
    assert b"." not in lines
    return b"".join((line[1:] if line.startswith(b".") else line) + b"\r\n" for line in lines)


def published(parsed: Job, trail: Trail, ending: Failure | Reply, consumed: Consumed) -> list[Publication]:
    """Whatever the ending, it can be published, and a retry is the same job again."""
    if isinstance(ending, Reply):
        result = accepted(trail, ending, time=NOW, attempt=parsed.attempt)
    else:
        result = failed(trail, ending, time=NOW, attempt=parsed.attempt)
    told(result)
    verdict = judge(parsed, result, POLICY, NOW, Random(1))  # noqa: S311 - it spreads retries
    published = list(publications.settle(parsed, result, verdict, Names(), consumed, NOW))
    later = Verdict(Outcome.RETRY, NOW)
    published += publications.settle(parsed, result, later, Names(), consumed, NOW)
    back = published[-1]
    again = Job.parse(back.body, encoding=back.content_encoding, message_id=back.message_id, limit=10 * LIMIT)
    assert (again.recipient, again.envelope, again.mime) == (parsed.recipient, parsed.envelope, parsed.mime)
    assert again.attempt == parsed.attempt + 1
    for publication in published[:-1]:
        document = orjson.loads(publication.body)
        assert document["results"][-1]["state"] == result.state
        assert "password" not in (document.get("smarthost") or {})
    return published


def message(data: bytes) -> None:
    """A valid job with any AMQP headers, properties and unknown property: mailq can publish whatever comes of it.

    The first octet says how much of the rest is the header table, the second chooses what the texts of properties are.
    """
    size = 4 * (data[0] if data else 0)
    table, rest = data[2 : 2 + size], data[2 + size :]
    text = rest.decode(errors="surrogateescape" if data[1:2] < b"\x80" else "replace")
    document = {"recipient": "b@b.test", "mime": "Subject: a\r\n\r\nb", "own": text.encode(errors="replace").decode()}
    properties = Application(text[:200], text[:300], text, text[-100:])
    consumed = Consumed(
        orjson.dumps(document), 1, message_id=text[:300] or None, headers=decode_table(table), application=properties
    )
    parsed = Job.parse(consumed.body, message_id=consumed.message_id, limit=LIMIT)
    aside = publications.poison(consumed, "why", Names(), NOW, state="process", exception=text, provenance=UNKNOWN)
    for publication in (*sent(parsed, consumed), aside):
        carried(OUTBOX.signed(publication))


def carried(publication: Publication) -> None:
    """A publication steers no broker, and its header fits into one frame, whatever the producer's was."""
    assert not [name for name in publication.headers or {} if name.lower() in ("cc", "bcc", "x-match", "x-death")]
    for frame_max in (4096, 131_072):
        frames = publish_frames(fitted_headers(publication, frame_max)[0], frame_max)
        assert all(len(frame) <= frame_max for frame in frames)


def header(data: bytes) -> None:
    """Any octets as a message give properties that JSON can hold."""
    content = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
    found = extract(content)
    assert orjson.loads(orjson.dumps(found)) == found
    assert received(payload(content)) == content
