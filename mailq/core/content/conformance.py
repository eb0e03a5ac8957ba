"""The parts of a message that may not go out as they are: found, and mended, sent or refused as configured. Pure.

`prepare` sees to what no server need take: a byte order mark before the header, NUL octets (RFC 5321 section 2.3.7,
RFC 5322 section 4), lines over 998 octets (RFC 5322 section 2.1.1). `fitted` sees to what one server does not take:
8-bit bodies without 8BITMIME (RFC 6152), 8-bit headers without SMTPUTF8 (RFC 6531). Each mend is one sentence.
A clean message costs three searches. See docs/decisions/messages-and-addresses.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mailq.core.content.conversion import (
    SignedError,
    has_long_line,
    is_signed,
    shorten,
    to_ascii_header,
    to_seven_bit,
    without_nul,
)
from mailq.core.content.header_fields import ConversionError
from mailq.core.content.mime import MARKS, Content, normalize, without_mark
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State

Choice = Literal["mend", "send", "fail"]

_LONG = "Lines over 998 octets"
_BROKEN = "A signature of the message may no longer hold, since the message was changed."


@dataclass(frozen=True, slots=True)
class MessageRules:
    """The table `message`; `signed` says whether what a signature covers is kept as it is, or mended all the same."""

    byte_order_mark: Choice = "mend"
    nul: Choice = "mend"
    long_lines: Choice = "mend"
    eight_bit_body: Choice = "mend"
    eight_bit_header: Choice = "mend"
    signed: Literal["keep", "mend"] = "keep"


MENDED = MessageRules()
"""Everything is mended that can be."""


def prepare(mime: str, rules: MessageRules) -> tuple[bytes, tuple[str, ...]]:
    """Return the message normalized and fit for any server, and what was mended.

    Raises:
        Failure: it has what the rules refuse.
    """
    warnings: list[str] = []
    if mime.startswith(MARKS) and rules.byte_order_mark != "send":
        if rules.byte_order_mark == "fail":
            raise _invalid("has a byte order mark before its header; remove it")
        mime = without_mark(mime)
        warnings.append("A byte order mark before the header was removed.")
    content = normalize(mime)
    if rules.nul != "send" and b"\0" in content:
        content = _without_nul(content, rules, warnings)
    if rules.long_lines != "send" and has_long_line(content):
        content = _without_long_lines(content, rules, warnings)
    return content, tuple(warnings)


def fitted(content: Content, rules: MessageRules, *, eight_bit: bool, utf8: bool) -> tuple[Content, tuple[str, ...]]:
    """Return the message fit for a server that takes 8-bit bodies or not, UTF-8 headers or not, and what was mended.

    Raises:
        Failure: the server cannot take it, though another one may.
    """
    warnings: list[str] = []
    octets = content.content
    if content.eightbit and not eight_bit and rules.eight_bit_body != "send":
        octets = _seven_bit(octets, rules, warnings)
    if content.eightbit_header and not utf8 and rules.eight_bit_header != "send":
        octets = _ascii_header(octets, rules, warnings)
    return (content if octets is content.content else Content(octets)), tuple(warnings)


def _without_nul(content: bytes, rules: MessageRules, warnings: list[str]) -> bytes:
    count = content.count(b"\0")
    if rules.nul == "fail":
        raise _invalid("has NUL octets; remove them")
    try:
        content = _converted(without_nul, content, rules, warnings)
    except SignedError:
        warnings.append(f"NUL octets were sent as they are, since the message is signed: {count}.")
    else:
        warnings.append(f"NUL octets were removed from the message: {count}.")
    return content


def _without_long_lines(content: bytes, rules: MessageRules, warnings: list[str]) -> bytes:
    if rules.long_lines == "fail":
        raise _invalid("has lines over 998 octets; encode the part as quoted-printable or base64")
    try:
        content = _converted(shorten, content, rules, warnings)
    except SignedError:
        warnings.append(f"{_LONG} were sent as they are, since the message is signed.")
    except ConversionError as trouble:
        warnings.append(f"{_LONG} were sent as they are, since {trouble}.")
    else:
        warnings.append(f"{_LONG} were encoded or folded.")
    return content


def _seven_bit(content: bytes, rules: MessageRules, warnings: list[str]) -> bytes:
    needs = "the message has an 8-bit body and the server does not offer 8BITMIME"
    if rules.eight_bit_body == "fail":
        raise _unable(needs, "5.6.3")
    try:
        content = _converted(to_seven_bit, content, rules, warnings)
    except ConversionError as trouble:
        raise _unable(f"{needs}; it cannot be encoded, since {trouble}", "5.6.3") from None
    warnings.append("The 8-bit body was encoded, since the server does not offer 8BITMIME.")
    return content


def _ascii_header(content: bytes, rules: MessageRules, warnings: list[str]) -> bytes:
    needs = "the message has an 8-bit header and the server does not offer SMTPUTF8"
    if rules.eight_bit_header == "fail":
        raise _unable(needs, "5.6.9")
    try:
        content = _converted(to_ascii_header, content, rules, warnings)
    except SignedError:
        warnings.append("The 8-bit header was sent as it is to a server without SMTPUTF8, since the message is signed.")
    except ConversionError as trouble:
        raise _unable(f"{needs}; it cannot be encoded, since {trouble}", "5.6.9") from None
    else:
        warnings.append("The 8-bit header was encoded, since the server does not offer SMTPUTF8.")
    return content


def _converted(convert: Callable[..., bytes], content: bytes, rules: MessageRules, warnings: list[str]) -> bytes:
    """Return the converted message; a signature that is broken so is told."""
    converted = convert(content, signed=rules.signed == "mend")
    if _BROKEN not in warnings and (is_signed(content) or b"multipart/signed" in content.lower()):
        warnings.append(_BROKEN)
    return converted


def _invalid(text: str) -> Failure:
    return Failure(State.PROCESS, Kind.INVALID, f"the message {text}", code=550, status="5.6.0", pointer="/mime")


def _unable(text: str, status: str) -> Failure:
    code = 554 if status == "5.6.3" else 550
    return Failure(State.MAILFROM, Kind.ERROR, text, code=code, status=status, unable=True)
