"""Header fields made fit for those who take less: folded, or in ASCII. Pure.

Folding comes before a blank (RFC 5322 section 2.2.3), else after a comma, else anywhere as with Postfix, which adds a
blank. In ASCII a field reads the same: text and names become encoded words (RFC 2047), parameters follow
RFC 2231, domains become A-labels.
"""

import binascii
import re
from urllib.parse import quote

from mailq.core.content.mime import decode
from mailq.core.escape import replaced
from mailq.core.jobs.address import AddressError, ascii_domain

MAX_LINE = 998
"""Octets of a line without its CRLF (RFC 5322 section 2.1.1)."""

_WORD = 45
"""Octets of UTF-8 in an encoded word, which has 75 characters at most."""


class ConversionError(ValueError):
    """The message cannot be converted without a loss; the text says why, in one clause fit to be told."""

    def __init__(self, text: str) -> None:
        super().__init__(replaced(text))


def folded(field: bytes) -> bytes:
    """Return a field without lines over the limit: folded before a blank, else after a comma, else anywhere."""
    if len(field) <= MAX_LINE:
        return field
    return b"\r\n".join(broken(line) for line in field.split(b"\r\n"))


def broken(line: bytes) -> bytes:
    """Return a line, in several lines if it is over the limit."""
    lines: list[bytes] = []
    while len(line) > MAX_LINE:
        start = len(line) - len(line.lstrip(b" \t")) + 1
        place = max(line.rfind(b" ", start, MAX_LINE), line.rfind(b"\t", start, MAX_LINE))
        if place > 0 and not line[place:].isspace():
            lines.append(line[:place])
            line = line[place:]
            continue
        place = line.rfind(b",", start, MAX_LINE) + 1 or MAX_LINE
        while line[place] & 0xC0 == 0x80:  # the rest of a character in UTF-8
            place -= 1
        lines.append(line[:place])
        line = b" " + line[place:]
    return b"\r\n".join((*lines, line))


_ADDRESSES = frozenset(
    [
        "from",
        "to",
        "cc",
        "bcc",
        "sender",
        "reply-to",
        "resent-from",
        "resent-to",
        "resent-cc",
        "resent-bcc",
        "resent-sender",
        "resent-reply-to",
        "disposition-notification-to",
        "return-receipt-to",
        "errors-to",
    ]
)
_PARAMETERS = frozenset({"content-type", "content-disposition"})
_NO_TEXT = frozenset(
    [
        "message-id",
        "references",
        "in-reply-to",
        "received",
        "return-path",
        "date",
        "resent-date",
        "resent-message-id",
        "mime-version",
        "content-id",
        "content-transfer-encoding",
        "dkim-signature",
        "domainkey-signature",
        "authentication-results",
        "list-unsubscribe",
        "list-unsubscribe-post",
        "arc-seal",
        "arc-message-signature",
        "arc-authentication-results",
    ]
)
"""Fields in which encoded words may not stand."""


def ascii_field(field: bytes) -> bytes:
    """Return a field in ASCII that reads the same."""
    if field.isascii():
        return field
    name, colon, value = field.partition(b":")
    known = name.strip().lower().decode("ascii", "replace")
    if not colon or not name.isascii() or known in _NO_TEXT:
        raise ConversionError(f"header field {known[:80]} has 8-bit octets where nothing can stand for them")
    try:
        text = value.replace(b"\r\n", b"").decode()
    except UnicodeDecodeError:
        raise ConversionError(f"header field {known} is not in UTF-8") from None
    change = _mailboxes if known in _ADDRESSES else _parameters if known in _PARAMETERS else _text
    return folded(name + b":" + change(text).encode("ascii"))


def _text(text: str) -> str:
    """Return unstructured text with encoded words for what is not ASCII, and for the words between."""
    blank = text[: len(text) - len(text.lstrip(" \t"))]
    wanted = decode(text)
    if wanted != text:  # blanks between encoded words are not read: all or nothing
        return blank + _words(wanted.lstrip(" \t"))
    words = re.split(r"([ \t]+)", text)
    odd = [place for place, word in enumerate(words) if not word.isascii()]
    span = "".join(words[odd[0] : odd[-1] + 1])
    return "".join(words[: odd[0]]) + _words(span) + "".join(words[odd[-1] + 1 :])


def _words(text: str) -> str:
    """Return encoded words (RFC 2047) that read as `text`."""
    chunks = [""]
    for character in text:
        if len((chunks[-1] + character).encode()) > _WORD:
            chunks.append("")
        chunks[-1] += character
    encoded = (binascii.b2a_base64(chunk.encode(), newline=False).decode("ascii") for chunk in chunks)
    words = "\r\n ".join(f"=?utf-8?b?{each}?=" for each in encoded)
    if decode(words.replace("\r\n", "")) != text:
        raise ConversionError("a header field has a control character")
    return words


_ITEM = re.compile(r'"(?:[^"\\]|\\.)*+"|<[^<>]*+>|[^",<>]|.', re.DOTALL)
_NAMED = re.compile(r"([ \t]*)(.*?)[ \t]*<([^<>]*)>[ \t]*", re.DOTALL)


def _mailboxes(text: str) -> str:
    """Return an address list with encoded words for names, and domains in A-labels."""
    items = [""]
    for piece in _ITEM.findall(text):
        if piece == ",":
            items.append("")
        else:
            items[-1] += piece
    return ",\r\n".join(_mailbox(each) if each[:1] in (" ", "\t") else f" {_mailbox(each)}" for each in items)


def _mailbox(item: str) -> str:
    if item.isascii():
        return item
    named = _NAMED.fullmatch(item)
    if named is None:
        return _plain_address(item)
    blank, name, address = named.groups()
    if name[:1] == '"' and name[-1:] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif re.search(r"[:;()\"]", name):
        raise ConversionError("an address field has 8-bit octets in a group or a comment")
    name = name if name.isascii() and not named[2].startswith('"') else _words(decode(name))
    return f"{blank}{name} <{_plain_address(address)}>"


def _plain_address(address: str) -> str:
    local, at, domain = address.rpartition("@")
    try:
        if at and local.isascii():
            blank = domain[len(domain.rstrip(" \t")) :]
            return f"{local}@{domain if domain.isascii() else ascii_domain(domain.strip()) + blank}"
    except AddressError:
        pass
    raise ConversionError("an address field has an address that is not ASCII")


_PARAMETER = re.compile(r";[ \t]*([^\s=;*\"]+)[ \t]*=[ \t]*(\"(?:[^\"\\]|\\.)*+\"|[^;\s\"]+)", re.DOTALL)


def _parameters(text: str) -> str:
    """Return a value whose parameters are written as RFC 2231 says where they are not ASCII."""
    changed = _PARAMETER.sub(_parameter, text)
    if not changed.isascii():
        raise ConversionError("a MIME field has 8-bit octets outside its parameters")
    return changed


def _parameter(found: re.Match[str]) -> str:
    name, value = found.groups()
    if value.isascii():
        return found[0]
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return f";\r\n {name}*=utf-8''{quote(value, safe='')}"
