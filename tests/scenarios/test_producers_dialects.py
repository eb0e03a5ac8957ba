"""Producers of many languages: what they write besides plain JSON is read, else told; poison is for what is no job."""

import gzip
import zlib

import orjson
from support.system import until

from mailq.core.jobs.document import HALF

MIME = "Subject: x\n\nhi\n"


def job(number, local="accept"):
    return orjson.dumps({"recipient": f"{local}+{number}@b.test", "mime": MIME, "number": number})


def half(number):
    """Return a job with half an emoji in its message and in a property, as JavaScript writes it."""
    text = rb'{"recipient":"accept+%d@b.test","mime":"Subject: \ud83d\n\nhi \ude00\n","label":"cut \ud83d"}'
    return text % number


READ = [
    *((name, job) for name in ("UTF-8", "utf8", "Identity", "binary", "us-ascii", "gzip")),
    *((name, lambda number: gzip.compress(job(number))) for name in ("GZIP", "x-gzip", "gzip:UTF-8", "UTF-8,gzip")),
    ("gzip", lambda number: gzip.compress(job(number)[:9]) + gzip.compress(job(number)[9:]) + b"\0" * 100),
    (None, lambda number: b"\xef\xbb\xbf" + job(number)),
    (None, half),
    ("GZip, utf-8", lambda number: gzip.compress(half(number))),
    # Twice on its way: what goes back to the outbox says what it is.
    ("GZIP:UTF-8", lambda number: gzip.compress(job(number, "greylist"))),
]
TOLD = [
    ("deflate", job(0)),
    (None, b'{"recipient":"accept@b.test","mime":"x","x":' + b"[" * 300 + b"]" * 300 + b"}"),
    (None, orjson.dumps({"recipient": "accept@b.test", "mime": "x", "x": [0] * 250_000})),
    (None, orjson.dumps({"recipient": "accept@b.test", "mime": "x", "queues": {"q" * 100_000: "x"}})),
]
POISON = [("deflate", zlib.compress(job(0))), (None, "é".encode("latin-1")), (None, b"[" + job(0) + b"]")]


async def test_what_can_be_read_is_delivered_and_what_can_be_told_is_told(system, sink):
    receiver = await sink()
    mail = await system(receiver, delivery={"retries": [1], "greylist_retry": 0, "strict": True})

    for number, (encoding, made) in enumerate(READ):
        await mail.rabbit.publish("outbox", made(number), content_encoding=encoding)
    for encoding, body in (*TOLD, *POISON):
        await mail.rabbit.publish("outbox", body, content_encoding=encoding)
    delivered = [await mail.get("success") for _ in READ]
    told = [await mail.get("failures") for _ in TOLD]
    await until(lambda: len(mail.seen.poison) == len(POISON))

    assert len(receiver.messages) == len(READ)
    assert sorted(each.get("label", "") for each in delivered)[-2:] == ["cut \ufffd"] * 2
    assert sum(each["results"][0].get("warnings") == [HALF] for each in delivered) == 2
    assert sum("\ufffd" in message.content.decode() for message in receiver.messages) == 2
    assert {(each["results"][0]["state"], each["results"][0]["result"]) for each in told} == {("process", "invalid")}
    assert max(len(each["results"][0].get("pointer", "")) for each in told) == 256
    assert all(";" in reason for reason in mail.seen.poison)
