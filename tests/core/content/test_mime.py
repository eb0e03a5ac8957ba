"""The message as octets: nothing in it can end it early, and nothing of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.content.mime import Content, normalize, payload

MIMES = st.one_of(st.text(), st.text(alphabet="\r\n.ab \u00fc\x00", max_size=60))


@pytest.mark.parametrize(
    ("mime", "octets"),
    [
        ("", b"\r\n"),
        ("a", b"a\r\n"),
        ("a\n", b"a\r\n"),
        ("a\r", b"a\r\n"),
        ("a\r\n", b"a\r\n"),
        ("a\n\nb\n", b"a\r\n\r\nb\r\n"),
        ("a\r\rb\r", b"a\r\n\r\nb\r\n"),
        ("a\r\n\nb\r\r\nc", b"a\r\n\r\nb\r\n\r\nc\r\n"),
        ("a\n\rb", b"a\r\n\r\nb\r\n"),
        ("ü\n", b"\xc3\xbc\r\n"),
        ("\u2028\x85\x0b\x0c", b"\xe2\x80\xa8\xc2\x85\x0b\x0c\r\n"),
        ("\ud800", b"?\r\n"),
    ],
)
def test_normalize(mime, octets):
    assert normalize(mime) == octets


@given(MIMES)
def test_normalized_has_every_line_ended_by_crlf_and_the_same_lines(mime):
    octets = normalize(mime)
    assert octets.endswith(b"\r\n")
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")
    lines = mime.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").split(b"\n")
    assert octets.removesuffix(b"\r\n").split(b"\r\n") == (lines[:-1] if len(lines) > 1 and not lines[-1] else lines)
    assert normalize(octets.decode()) == octets


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"\r\n", b"\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..a\r\n.\r\nQUIT\r\n", b"...a\r\n..\r\nQUIT\r\n.\r\n"),
        (b"a.\r\nb\r\n", b"a.\r\nb\r\n.\r\n"),
    ],
)
def test_payload(content, wire):
    assert payload(content) == wire


def received(wire):
    """Return the message and what follows it, read as RFC 5321 section 4.5.2 tells the server to."""
    lines = wire.split(b"\r\n")
    end = lines.index(b".")
    message = [line[1:] if line.startswith(b".") else line for line in lines[:end]]
    return b"".join(line + b"\r\n" for line in message), b"\r\n".join(lines[end + 1 :])


@given(MIMES)
def test_the_server_gets_the_content_and_nothing_after_it(mime):
    content = normalize(mime)
    assert received(payload(content)) == (content, b"")


@given(MIMES)
def test_nothing_can_be_smuggled(mime):
    wire = payload(normalize(mime))
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    assert b"." not in wire.removesuffix(b".\r\n").split(b"\r\n")
    for end in (b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r"):
        assert end not in (b"\r\n" + wire).removesuffix(b"\r\n.\r\n")


@pytest.mark.parametrize(
    ("mime", "eightbit", "eightbit_header"),
    [
        ("", False, False),
        ("Subject: a\n\nb\n", False, False),
        ("Subject: a\n\nü\n", True, False),
        ("Subject: ü\n\nb\n", False, True),
        ("Subject: ü\n\nü\n", True, True),
        ("Subject: ü\n", False, True),
        ("\nü\n", True, False),
        ("Subject: a\n\nb\n\nü\n", True, False),
    ],
)
def test_content(mime, eightbit, eightbit_header):
    octets = normalize(mime)
    content = Content(octets)
    assert (content.content, content.size) == (octets, len(octets))
    assert (content.eightbit, content.eightbit_header) == (eightbit, eightbit_header)
    assert len(repr(content)) < 100
