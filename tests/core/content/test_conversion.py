"""Conversions: whoever decodes the message reads what the producer wrote; what is left fits the server."""

import contextlib
import email
import email.policy
import re
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailq.core.content.conversion import SignedError, has_long_line, is_signed, shorten, to_ascii_header, to_seven_bit
from mailq.core.content.header_fields import ConversionError
from mailq.core.content.mime import decode, extract, normalize

LONG = "x" * 600 + " " + "y" * 1200
TEXTS = st.one_of(
    st.text(alphabet="ab \t.=\n\u00fc\u20ac\U0001f389", max_size=80),
    st.sampled_from(
        [LONG, "\u00fc" * 700, "a" * 999 + "\n.\n", "From x\n.\n..\n", " " * 1000, "=" * 1200, "\u65e5" * 400]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=40),
)
TYPES = st.sampled_from(
    ["text/plain; charset=utf-8", 'TEXT/html;\n charset="utf-8"', "application/json", "text/plain", "image/svg+xml", ""]
)
ENCODINGS = st.sampled_from(["", "7bit", "8bit", "binary", "8BIT", "quoted-printable", "base64"])
NAMES = st.sampled_from(["", "\u00fcber \U0001f389.txt", "plain.txt", 'a "quoted" \u00fc.pdf', "\u65e5" * 100])


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def leaves(draw):
    header, kind, encoding, name = "", draw(TYPES), draw(ENCODINGS), draw(NAMES)
    if kind:
        header += f"Content-Type: {kind}\n"
    if encoding:
        header += f"Content-Transfer-Encoding: {encoding}\n"
    if name:
        header += f"Content-Disposition: attachment; filename={quoted(name)}\n"
    body = draw(TEXTS)
    if encoding == "base64":
        body = email.base64mime.body_encode(body.encode(), maxlinelen=draw(st.sampled_from([76, 4000])))
    elif encoding == "quoted-printable":
        body = body.replace("=", "=3D").replace("\u00fc", "=C3=BC")
    return header + "\n" + body


@st.composite
def nested(draw, parts):
    inner = draw(st.lists(parts, min_size=1, max_size=3))
    boundary = draw(st.sampled_from(["b", "=_b "])) + str("".join(inner).count("boundary="))
    kind = draw(st.sampled_from(["mixed", "alternative", "digest"])) if len(inner) > 1 else "mixed"
    if kind == "digest":
        inner = [f"Content-Type: message/rfc822\n\nSubject: in\n{part}" for part in inner]
    lines = "".join(f"\n--{boundary}\n{part}" for part in inner)
    declared = f'Content-Type: multipart/{kind}; boundary="{boundary}"\nContent-Transfer-Encoding: 8bit\n\n'
    return f"{declared}pre\u00e4mble {draw(st.sampled_from(['', LONG]))}{lines}\n--{boundary}--\nepilogue \u00fc\n"


MESSAGES = st.builds(
    "From: news@a.test\n{}{}".format,
    st.sampled_from(["", "MIME-Version: 1.0\n", f"Subject: {LONG}\n", "References:" + " <a@a.test>" * 200 + "\n"]),
    st.recursive(leaves(), nested, max_leaves=4),
)


def read(octets):
    """Return what a reader makes of each part: its type, its file name, and its octets, line ends left out."""
    message = email.message_from_bytes(octets, policy=email.policy.compat32)
    parts = []
    for part in message.walk():
        if part.is_multipart():
            parts.append((part.get_content_type(), None))
            continue
        body = part.get_payload(decode=True).replace(b"\r\n", b"\n").rstrip(b"\n")
        parts.append((part.get_content_type(), filename(part), body))
    return parts


def filename(part):
    """Return the file name of a part, raw UTF-8 or as RFC 2231 writes it; Python's own reader mistakes raw UTF-8."""
    value = dict(part.raw_items()).get("Content-Disposition")
    if value is None:
        return None
    text = value.encode("ascii", "surrogateescape").decode().replace("\r\n", "")
    if "filename*=" in text:
        return unquote(text.partition("filename*=utf-8''")[2])
    return re.sub(r"\\(.)", r"\1", text.partition("filename=")[2].strip()[1:-1])


@settings(deadline=None)
@given(MESSAGES)
def test_seven_bit_reads_the_same(mime):
    content = normalize(mime)
    converted = to_ascii_header(to_seven_bit(content, signed=False), signed=False)
    assert converted.isascii()
    assert read(converted) == read(content)
    assert to_seven_bit(converted, signed=False) == converted
    assert converted.count(b"\r") == converted.count(b"\n") == converted.count(b"\r\n")


@settings(deadline=None)
@given(MESSAGES)
def test_short_lines_read_the_same(mime):
    content = normalize(mime)
    converted = shorten(content, signed=False)
    assert not has_long_line(converted)
    assert max(map(len, converted.split(b"\r\n"))) <= 998
    assert read(converted) == read(content)
    assert extract(converted)["headers"].get("references") == extract(content)["headers"].get("references")
    # A line without a blank gains one.
    assert extract(converted).get("subject", "").replace(" ", "") == extract(content).get("subject", "").replace(
        " ", ""
    )
    if not has_long_line(content):
        assert converted == content


HEADERS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=120)


@settings(deadline=None)
@given(HEADERS, HEADERS)
def test_a_header_in_ascii_reads_the_same(subject, name):
    content = normalize(f"Subject: {subject}\nFrom: {quoted(name)} <news@a.test>\nX-Odd: a\n\nb\u00fc\n")
    converted = to_ascii_header(content, signed=False)
    assert converted.partition(b"\r\n\r\n")[0].isascii()
    before, after = extract(content), extract(converted)
    assert after.get("subject", "").strip() == before.get("subject", "").strip()
    assert (after["from"], converted.partition(b"\r\n\r\n")[2]) == ("news@a.test", "b\u00fc\r\n".encode())
    said = converted.decode().split("From: ")[1].split(" <news")[0].replace("\r\n", "")
    assert name.isascii() or decode(said) == decode(name)
    assert max(map(len, converted.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("octets", "long"),
    [
        (b"", False),
        (b"a" * 998, False),
        (b"a" * 998 + b"\r\n", False),
        (b"a" * 999, True),
        (b"a" * 999 + b"\r\n", True),
        (b"\r\n" + b"a" * 998 + b"\r\n" + b"b" * 998 + b"\r\n", False),
        (b"a\r\n" * 5000 + b"b" * 999 + b"\r\n", True),
        (b"b" * 999 + b"\r\n" + b"a\r\n" * 5000, True),
        (b"a\r\n" * 700 + b"b" * 999 + b"\r\n" + b"a\r\n" * 700, True),
    ],
)
def test_a_long_line_is_found_wherever_it_is(octets, long):
    assert has_long_line(octets) is long


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 1, 500, 997, 998, 999, 1000, 2000]), max_size=8))
def test_long_lines_are_found_as_by_counting(lengths):
    octets = b"".join(b"a" * length + b"\r\n" for length in lengths)
    assert has_long_line(octets) is any(length > 998 for length in lengths)


@pytest.mark.parametrize(
    ("field", "ascii_field"),
    [
        ("Subject: Gr\u00fc\u00dfe aus K\u00f6ln heute", "Subject: =?utf-8?b?R3LDvMOfZSBhdXMgS8O2bG4=?= heute"),
        ("Subject: =?utf-8?q?=C3=BC?= \u00fc", "Subject: =?utf-8?b?w7wgw7w=?="),
        ("From: J\u00f6 <jo@a.test>", "From: =?utf-8?b?SsO2?= <jo@a.test>"),
        (
            'From: "M\u00fcller, J" <jo@a.test>, b@a.test',
            "From: =?utf-8?b?TcO8bGxlciwgSg==?= <jo@a.test>,\r\n b@a.test",
        ),
        ("To: jo@m\u00fcnchen.test", "To: jo@xn--mnchen-3ya.test"),
        ("To: Jo <jo@m\u00fcnchen.test>", "To: Jo <jo@xn--mnchen-3ya.test>"),
        ('Content-Type: text/plain; name="\u00fc x"', "Content-Type: text/plain;\r\n name*=utf-8''%C3%BC%20x"),
    ],
)
def test_fields_in_ascii(field, ascii_field):
    content = f"{field}\r\n\r\n".encode()
    assert to_ascii_header(content, signed=False) == f"{ascii_field}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "field",
    [
        "From: j\u00f6@a.test",
        "To: Jo <j\u00f6@a.test>",
        "To: Freunde \u00fc: jo@a.test;",
        "Message-ID: <\u00fc@a.test>",
        "Content-Type: text/\u00fc",
        "S\u00fcbject: a",
        "no field \u00fc",
        "Subject: \u00fc\x1b",
    ],
)
def test_fields_that_cannot_be_in_ascii(field):
    with pytest.raises(ConversionError):
        to_ascii_header(f"{field}\r\n\r\n".encode(), signed=False)


SIGNED = b"From: a@a.test\r\nDKIM-Signature: v=1;\r\n b=x\r\nSubject: s\r\n\r\n"
PART = (
    b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n%s\r\n--b\r\nContent-Type: x/y\r\n\r\nz\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("content", "convert"),
    [
        (SIGNED + "\u00fc\r\n".encode(), to_seven_bit),
        (SIGNED + b"x" * 999 + b"\r\n", shorten),
        (SIGNED.replace(b"Subject: s", "Subject: \u00fc".encode()), to_ascii_header),
        (PART % "\u00fc".encode(), to_seven_bit),
        (PART % (b"x" * 999), shorten),
    ],
)
def test_what_is_signed_changes_only_with_leave(content, convert):
    with pytest.raises(SignedError):
        convert(content, signed=False)
    assert convert(content, signed=True) != content
    assert is_signed(content) is content.startswith(SIGNED[:20])


@pytest.mark.parametrize(
    "content",
    [
        "Content-Type: multipart/mixed\r\n\r\n\u00fc\r\n",
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n\u00fc\r\n",
        "Content-Type: message/delivery-status\r\n\r\n\u00fc\r\n",
        "Content-Transfer-Encoding: x-uuencode\r\n\r\n\u00fc\r\n",
        "".join(f"Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n" for n in range(60)) + "\r\n\u00fc",
    ],
)
def test_what_cannot_be_encoded(content):
    with pytest.raises(ConversionError):
        to_seven_bit(content.encode(), signed=False)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([shorten, to_seven_bit, to_ascii_header]))
def test_never_raises_anything_else(octets, convert):
    content = normalize(octets.decode("latin-1"))
    with contextlib.suppress(ConversionError):
        convert(content, signed=True)
