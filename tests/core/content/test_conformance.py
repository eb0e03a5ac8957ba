"""What may not go out as it is: each choice for each trouble, and what a result is told."""

import quopri

import pytest

from mailq.core.content.conformance import MENDED, MessageRules, fitted, prepare
from mailq.core.content.mime import Content, normalize
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State

HEADER = "Subject: x\r\n\r\n"
SIGNED = "DKIM-Signature: v=1; b=x\r\nSubject: x\r\n\r\n"
LONG = "a" * 999 + "\r\n"
ENCODED = b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
BROKEN = "A signature of the message may no longer hold, since the message was changed."


def clean(mime, rules=MENDED):
    return prepare(mime, rules)


@pytest.mark.parametrize("mime", ["", HEADER, HEADER + "x\n.\ny", HEADER + "ü\n", HEADER + "a" * 998, SIGNED + "x"])
def test_a_message_without_trouble_stays_as_it_is(mime):
    assert clean(mime) == (normalize(mime), ())
    content = Content(normalize(mime))
    assert fitted(content, MENDED, eight_bit=True, utf8=True) == (content, ())


@pytest.mark.parametrize(
    ("mime", "key", "mended", "warning"),
    [
        ("\ufeff" + HEADER, "byte_order_mark", HEADER.encode(), "A byte order mark before the header was removed."),
        ("ï»¿" + HEADER, "byte_order_mark", HEADER.encode(), "A byte order mark before the header was removed."),
        ("Sub\0ject: x\r\n\r\n\0", "nul", b"Subject: x\r\n\r\n\r\n", "NUL octets were removed from the message: 2."),
        (HEADER + LONG, "long_lines", ENCODED, "Lines over 998 octets were encoded or folded."),
    ],
)
def test_what_no_server_need_take(mime, key, mended, warning):
    content, warnings = clean(mime)
    assert (content[: len(mended)], warnings) == (mended, (warning,))
    assert clean(mime, MessageRules(**{key: "send"})) == (normalize(mime), ())
    with pytest.raises(Failure) as failure:
        clean(mime, MessageRules(**{key: "fail"}))
    ending = failure.value
    assert (ending.state, ending.kind, ending.code, ending.status, ending.pointer) == (
        State.PROCESS,
        Kind.INVALID,
        550,
        "5.6.0",
        "/mime",
    )
    assert not ending.unable


@pytest.mark.parametrize(
    ("mime", "key", "mended", "warning", "code", "status"),
    [
        (
            HEADER + "ü and more\r\n",
            "eight_bit_body",
            b"=C3=BC and more",
            "The 8-bit body was encoded, since the server does not offer 8BITMIME.",
            554,
            "5.6.3",
        ),
        (
            "Subject: ü\r\n\r\n",
            "eight_bit_header",
            b"Subject: =?utf-8?b?w7w=?=\r\n",
            "The 8-bit header was encoded, since the server does not offer SMTPUTF8.",
            550,
            "5.6.9",
        ),
    ],
)
def test_what_one_server_does_not_take(mime, key, mended, warning, code, status):
    content = Content(normalize(mime))
    message, warnings = fitted(content, MENDED, eight_bit=False, utf8=False)
    assert (mended in message.content, message.eightbit or message.eightbit_header) == (True, False)
    assert (warnings, message.size) == ((warning,), len(message.content))
    assert fitted(content, MessageRules(**{key: "send"}), eight_bit=False, utf8=False) == (content, ())
    with pytest.raises(Failure) as failure:
        fitted(content, MessageRules(**{key: "fail"}), eight_bit=False, utf8=False)
    assert (failure.value.state, failure.value.code, failure.value.status) == (State.MAILFROM, code, status)
    assert failure.value.unable


def test_what_cannot_be_encoded_fails_at_this_server():
    content = Content(normalize("Content-Type: message/delivery-status\n\nü\n"))
    with pytest.raises(Failure, match="cannot be encoded, since a part of type") as failure:
        fitted(content, MENDED, eight_bit=False, utf8=True)
    assert failure.value.unable
    assert fitted(content, MENDED, eight_bit=True, utf8=True) == (content, ())


def test_what_cannot_be_shortened_is_sent_and_told():
    mime = "Content-Transfer-Encoding: x-uuencode\r\n\r\n" + LONG
    content, warnings = clean(mime)
    assert content == mime.encode()
    assert warnings == ("Lines over 998 octets were sent as they are, since a part has the encoding 'x-uuencode'.",)


@pytest.mark.parametrize(
    ("mime", "kept", "mended"),
    [
        (
            SIGNED + LONG,
            "Lines over 998 octets were sent as they are, since the message is signed.",
            "Lines over 998 octets were encoded or folded.",
        ),
        (
            SIGNED + "\0\r\n",
            "NUL octets were sent as they are, since the message is signed: 1.",
            "NUL octets were removed from the message: 1.",
        ),
    ],
)
def test_what_is_signed_is_kept_unless_told_otherwise(mime, kept, mended):
    assert clean(mime) == (mime.encode(), (kept,))
    content, warnings = clean(mime, MessageRules(signed="mend"))
    assert content != mime.encode()
    assert set(warnings) == {BROKEN, mended}


def test_a_signed_header_is_sent_and_a_signed_body_is_not():
    header = Content(normalize(SIGNED.replace("x\r\n", "ü\r\n", 1).replace("Subject: x", "Subject: ü")))
    assert fitted(header, MENDED, eight_bit=True, utf8=False) == (
        header,
        ("The 8-bit header was sent as it is to a server without SMTPUTF8, since the message is signed.",),
    )
    body = Content(normalize(SIGNED + "ü\n"))
    with pytest.raises(Failure, match="a signature covers the message") as failure:
        fitted(body, MENDED, eight_bit=False, utf8=True)
    assert (failure.value.code, failure.value.status, failure.value.unable) == (554, "5.6.3", True)
    message, warnings = fitted(body, MessageRules(signed="mend"), eight_bit=False, utf8=True)
    assert (message.content.isascii(), BROKEN in warnings) == (True, True)


@pytest.mark.parametrize("text", ["ü und so weiter\r\n", "ü und ", "ab\r\nü" * 3])
def test_a_large_body_is_encoded_in_pieces(text):
    mime = HEADER + text * (1024 * 1024 // len(text))
    message, _ = fitted(Content(normalize(mime)), MENDED, eight_bit=False, utf8=False)
    header, body = message.content.split(b"\r\n\r\n", 1)
    assert b"quoted-printable" in header
    assert quopri.decodestring(body) == normalize(mime).split(b"\r\n\r\n", 1)[1]
    assert max(map(len, body.split(b"\r\n"))) <= 77


def test_why_a_message_cannot_be_encoded_is_told_without_its_control_characters():
    content = Content(prepare("\x1b[2J\x85\n\n", MENDED)[0])
    with pytest.raises(Failure) as caught:
        fitted(content, MENDED, eight_bit=False, utf8=False)
    assert caught.value.text.isprintable()
