"""Any message as a header to extract from: bounded, quiet, and always something that JSON can hold."""

import base64
import string
import tracemalloc

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz import targets
from mailq.core.content.mime import _CHARSETS, MAX_FIELDS, MAX_HEADER, decode, extract, normalize

OCTETS = st.binary(max_size=30) | st.lists(
    st.sampled_from([b"+2AA-", b"+3AA-", b"\x1b$B", b"\x1b(J", b"\x0e", b"\x0f", b"~{", b"\\ud800", b"\0\xd8"]),
    max_size=6,
).map(b"".join)  # fmt: skip
CHARSETS = st.sampled_from(sorted(_CHARSETS)) | st.sampled_from(["UTF-7", "utf-16", "x", "../../etc/passwd", "idna"])
Q = st.builds(lambda octets: "".join(f"={octet:02X}" for octet in octets), OCTETS)
B = OCTETS.map(lambda octets: base64.b64encode(octets).decode())
WORD = st.builds("=?{}?{}?{}?=".format, CHARSETS, st.just("q"), Q) | st.builds(
    "=?{}?{}?{}?=".format, CHARSETS, st.just("B"), B
)
PIECE = WORD | st.sampled_from(
    ["\n ", "\n\t", " ", '"', "(", ")", "<", ">", "@", ",", ";", ":", "\\", "[", "]", "=?", "?=", "\0", "é"]
)
VALUE = st.lists(PIECE | st.text(string.printable, max_size=5), max_size=12).map("".join)
NAME = st.sampled_from(["From", "To", "SUBJECT", "subject", "X-Y", "From ", "", " ", "\x01", "é", "Content-Type"])
MAIL = st.builds(
    lambda fields, body: "".join(f"{name}: {value}\n" for name, value in fields) + "\n" + body,
    st.lists(st.tuples(NAME, VALUE), max_size=8),
    VALUE,
)


@settings(deadline=None, max_examples=250)
@given(MAIL)
@example("Subject: =?utf-7?q?+2AA-?=\n\nx\n")
def test_what_is_extracted_can_be_published(mail):
    targets.header(mail.encode("utf-8", "replace"))


@given(st.binary(max_size=2000))
def test_rubbish(octets):
    targets.header(octets)


def test_no_character_set_brings_in_what_json_cannot_hold():
    """A message was taken, its result could not be published, and so it was sent again and again."""
    for charset in sorted(_CHARSETS | {"utf-7", "unicode-1-1-utf-7"}):
        for octets in (
            b"+2AA-",
            b"+3AA-+2AA-",
            b"\\ud800",
            b"\xd8\x00",
            b"\x00\xd8",
            b"\xed\xa0\x80",
            b"\xd8\x00\x00\x41",
        ):
            word = f"=?{charset}?B?{base64.b64encode(octets).decode()}?="
            assert orjson.loads(orjson.dumps(decode(word))) == decode(word)
    assert decode("=?utf-7?q?+2AA-?= =?utf-7?q?caf+AOk-?=") == "=?utf-7?q?+2AA-?= café"


NESTED = "".join(f"--{level}\nContent-Type: multipart/mixed; boundary={level + 1}\n\n" for level in range(20_000))
LARGE = {
    "one line of a megabyte": "Subject: " + "x" * 1_000_000 + "\n\n",
    "a field folded a hundred thousand times": "Subject: x" + "\n y" * 100_000 + "\n\n",
    "a hundred thousand fields": "X: y\n" * 100_000 + "\n",
    "fields without a value": "X:\n" * 300_000 + "\n",
    "one word after the other": "Subject: " + "=?utf-8?q?a?=\n " * 60_000 + "\n\n",
    "one long word": "Subject: =?utf-8?b?" + "QUFB" * 250_000 + "?=\n\n",
    "unended words": "Subject: " + "=?utf-8?q?" * 100_000 + "\n\n",
    "comments in comments": "To: " + "(" * 500_000 + ")" * 500_000 + "\n\n",
    "quotes": "From: " + '"\\' * 500_000 + "\n\n",
    "addresses": "To: " + "a@b.c, " * 150_000 + "\n\n",
    "deep MIME": "Content-Type: multipart/mixed; boundary=0\n\n" + NESTED,
    "no header": "\n" + "x" * 1_000_000,
}


@pytest.mark.parametrize("mail", LARGE.values(), ids=LARGE)
def test_a_large_header_is_looked_at_in_part(mail):
    content = normalize(mail)
    tracemalloc.start()
    try:
        found = extract(content)
        assert tracemalloc.get_traced_memory()[1] < 100 * MAX_HEADER
    finally:
        tracemalloc.stop()
    assert len(orjson.dumps(found)) < 4 * MAX_HEADER
    values = found.get("headers", {}).values()
    assert sum(len(value) if isinstance(value, list) else 1 for value in values) <= MAX_FIELDS
