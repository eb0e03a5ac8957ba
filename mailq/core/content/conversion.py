r"""A message made fit for those who take less: parts encoded, lines broken, header fields in ASCII. Pure.

`shorten` breaks lines over 998 octets (RFC 5322 section 2.1.1), `to_seven_bit` encodes 8-bit bodies for a server
without 8BITMIME (RFC 6152 section 3), `to_ascii_header` encodes the header for one without SMTPUTF8 (RFC 6531).
A reader that decodes the message gets what the producer wrote: bodies become quoted-printable or base64 (RFC 2045),
text in fields becomes encoded words (RFC 2047), parameters follow RFC 2231, and folding comes before blanks.
Only a header line without any blank or comma gains a blank, as with Postfix. A part that needs nothing stays octet for
octet. The conversion knows nothing of servers and settings: `core.content.conformance` decides when it is asked for.
"""

import binascii
import re
from collections.abc import Callable

from mailq.core.content.header_fields import MAX_LINE, ConversionError, ascii_field, broken, folded

MAX_DEPTH = 50
"""Parts within parts that are looked into."""

PIECE = 256 * 1024
"""Octets of a body that are encoded in one go."""

_QP_LINE = 76
"""Octets of a line of quoted-printable (RFC 2045 section 6.7)."""


class SignedError(ConversionError):
    """A signature covers what would have to change."""


def has_long_line(octets: bytes) -> bool:
    """Tell whether a line is over the limit; looks at one octet in a thousand, more or less."""
    place, end = 0, len(octets) - MAX_LINE
    while place < end:
        place = octets.rfind(b"\n", place, place + MAX_LINE + 2) + 1
        if not place:
            return True
    return False


def is_signed(content: bytes) -> bool:
    """Tell whether the header has a signature over body and header (RFC 6376)."""
    return _SIGNATURE.search(content[: len(_split(content)[0])]) is not None


def without_nul(content: bytes, *, signed: bool) -> bytes:
    """Return the message without NUL octets; `signed` allows changes under a signature.

    Raises:
        SignedError: a signature covers them.
    """
    if not signed and is_signed(content):
        raise SignedError("a signature covers the message")
    return content.replace(b"\0", b"")


def shorten(content: bytes, *, signed: bool) -> bytes:
    """Return the message without lines over the limit; `signed` allows changes under a signature.

    Raises:
        ConversionError: it cannot be done.
    """
    return _top(content, has_long_line, signed=signed)


def to_seven_bit(content: bytes, *, signed: bool) -> bytes:
    """Return the message with its body in ASCII, its header as it was; `signed` allows changes under a signature.

    Raises:
        ConversionError: it cannot be done.
    """
    return _top(content, _eight_bit, signed=signed)


def to_ascii_header(content: bytes, *, signed: bool) -> bytes:
    """Return the message with its header in ASCII, its body as it was; `signed` allows changes under a signature.

    Raises:
        ConversionError: it cannot be done.
    """
    if not signed and is_signed(content):
        raise SignedError("a signature covers the header")
    header, rest = _split(content)
    return b"\r\n".join(ascii_field(each) for each in _fields(header)) + rest


_Need = Callable[[bytes], bool]
_SIGNATURE = re.compile(rb"^(?:dkim|domainkey)-signature:", re.IGNORECASE | re.MULTILINE)
_HIGH = bytes(range(128, 256))


def _eight_bit(octets: bytes) -> bool:
    return not octets.isascii()


def _split(entity: bytes) -> tuple[bytes, bytes]:
    """Return the header, and the rest from the line end before the blank line on."""
    if entity.startswith(b"\r\n"):
        return b"", entity
    end = entity.find(b"\r\n\r\n")
    if end < 0:
        end = len(entity.removesuffix(b"\r\n"))
    return entity[:end], entity[end:]


def _fields(header: bytes) -> list[bytes]:
    """Return the fields, each as it is folded."""
    return re.split(rb"\r\n(?![ \t])", header)


def _top(content: bytes, need: _Need, *, signed: bool) -> bytes:
    if not signed and is_signed(content):
        raise SignedError("a signature covers the message")
    header, rest = _split(content)
    if need is _eight_bit:  # the header of the whole message is another matter
        return _entity(header, rest, need, signed=signed, depth=0, top=True)
    fields = b"\r\n".join(folded(each) for each in _fields(header))
    return _entity(fields, rest, need, signed=signed, depth=0, top=True)


def _part(octets: bytes, need: _Need, *, signed: bool, depth: int, digest: bool = False, top: bool = False) -> bytes:
    """Return a part of a multipart, or the message within a message."""
    if not need(octets):
        return octets
    if depth > MAX_DEPTH:
        raise ConversionError("its parts are nested too deeply")
    header, rest = _split(octets)
    change = ascii_field if need is _eight_bit else folded
    header = b"\r\n".join(change(each) for each in _fields(header)) if header else b""
    return _entity(header, rest, need, signed=signed, depth=depth, digest=digest, top=top)


def _entity(
    header: bytes, rest: bytes, need: _Need, *, signed: bool, depth: int, digest: bool = False, top: bool = False
) -> bytes:
    """Return a message or part whose header has been seen to; `digest` says what a part is that does not say it."""
    start = 4 if header and rest.startswith(b"\r\n\r\n") else 2
    if not need(rest[start:]):
        return header + rest
    blank, body = rest[:start], rest[start:]
    fields = _fields(header) if header else []
    declared = _value(fields, b"content-type")
    found = _TYPE.match(declared) if declared else None
    kind = found[1].lower() if found else b"message/rfc822" if digest and not declared else b"text/plain"
    encoding = _value(fields, b"content-transfer-encoding").strip().lower()
    plain = encoding in (b"", b"7bit", b"8bit", b"binary")
    if kind.startswith(b"multipart/") and plain:
        if kind == b"multipart/signed" and not signed:
            raise SignedError("a signature covers a part")
        body = _multipart(declared, body, need, signed=signed, depth=depth)
        encoding = b"7bit" if encoding and need is _eight_bit else b""
    elif kind in (b"message/rfc822", b"message/global") and plain:
        body = _part(body, need, signed=signed, depth=depth + 1, top=True)
        encoding = b"7bit" if encoding and need is _eight_bit else b""
    else:
        if kind.startswith(b"message/"):
            raise ConversionError(f"a part of type {kind.decode('ascii', 'replace')} may not be encoded (RFC 2046)")
        if not declared and not body.isascii():
            fields.append(b"Content-Type: text/plain; charset=utf-8")
        encoding, body = _encoded_body(encoding, body, plain=plain, text=kind.startswith(b"text/"))
        if top and not _value(fields, b"mime-version"):
            fields.append(b"MIME-Version: 1.0")
    if encoding:
        fields = _with_encoding(fields, encoding)
    # Without a header the entity began with its blank line.
    return b"\r\n".join(fields) + (b"\r\n\r\n" if fields else blank) + body


def _value(fields: list[bytes], name: bytes) -> bytes:
    """Return the first value of a field, unfolded; empty without one."""
    for each in fields:
        found, _, value = each.partition(b":")
        if found.strip().lower() == name:
            return value.replace(b"\r\n", b"")
    return b""


def _with_encoding(fields: list[bytes], encoding: bytes) -> list[bytes]:
    name = b"content-transfer-encoding"
    kept = [each for each in fields if each.partition(b":")[0].strip().lower() != name]
    return [*kept, b"Content-Transfer-Encoding: " + encoding]


_TYPE = re.compile(rb"\s*([^\s;/\"]+/[^\s;\"]+)")
_BOUNDARY = re.compile(rb";\s*boundary\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]+))", re.IGNORECASE)


def _multipart(declared: bytes, body: bytes, need: _Need, *, signed: bool, depth: int) -> bytes:
    found = _BOUNDARY.search(declared)
    boundary = re.sub(rb"\\(.)", rb"\1", found[1] or found[2] or b"").rstrip() if found else b""
    delimiter = re.compile(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r\n|\Z)")
    marks = list(delimiter.finditer(body)) if boundary else []
    if not marks:
        raise ConversionError("a multipart has no delimiters")
    digest = b"multipart/digest" in declared.lower()
    pieces = [_unread(body[: marks[0].start()], need)]
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        inside = body[mark.end() : after.start() if after else len(body)]
        pieces.append(mark[0])
        if mark[1]:
            pieces.append(_unread(body[mark.end() :], need))
            break
        line, part = inside[:2], inside[2:]
        pieces += line, _part(part, need, signed=signed, depth=depth + 1, digest=digest)
    return b"".join(pieces)


def _unread(octets: bytes, need: _Need) -> bytes:
    """Return what stands around the parts of a multipart, which nobody reads (RFC 2046 section 5.1.1)."""
    if need is _eight_bit:
        return octets.decode("utf-8", "replace").encode("ascii", "replace")
    return b"\r\n".join(broken(each) for each in octets.split(b"\r\n"))


def _encoded_body(encoding: bytes, body: bytes, *, plain: bool, text: bool) -> tuple[bytes, bytes]:
    """Return encoding and body of a part that has no parts, in ASCII and in short lines."""
    if encoding == b"base64":
        publications = re.sub(rb"[^A-Za-z0-9+/=]", b"", body)
        lines = [publications[place : place + 76] for place in range(0, len(publications), 76)]
        return b"", b"\r\n".join((*lines, b"")) if body.endswith(b"\r\n") else b"\r\n".join(lines)
    if encoding == b"quoted-printable":
        octets = re.sub(rb"[\x80-\xff]", lambda found: b"=%02X" % found[0][0], body)
        return b"", b"\r\n".join(_wrapped(line) for line in octets.split(b"\r\n"))
    if not plain:
        raise ConversionError(f"a part has the encoding {encoding[:40].decode('ascii', 'replace')!r}")
    high = len(body) - len(body.translate(None, _HIGH))
    if text and high * 3 <= len(body):
        return b"quoted-printable", _quoted(body)
    lines = [binascii.b2a_base64(body[place : place + 57], newline=False) for place in range(0, len(body), 57)]
    return b"base64", b"\r\n".join((*lines, b""))


def _quoted(body: bytes) -> bytes:
    """Return text as quoted-printable, made piece by piece, so that other threads get their turn."""
    pieces: list[bytes] = []
    place = 0
    while place < len(body):
        end = place + PIECE
        if end < len(body):
            end = body.rfind(b"\r\n", place, end) + 2
            if end < place + 2:
                end = place + PIECE + (body[place + PIECE - 1 : place + PIECE + 1] == b"\r\n")
        piece = body[place:end]
        quoted = binascii.b2a_qp(piece, quotetabs=False, istext=True, header=False)
        pieces.append(quoted if b"\r\n" in piece else quoted.replace(b"\n", b"\r\n"))
        place = end
        if place < len(body) and not piece.endswith(b"\r\n"):
            pieces.append(b"=\r\n")
    return b"".join(pieces)


_TOKENS = re.compile(rb"(?:=[0-9A-Fa-f]{2}|.){1,25}", re.DOTALL)
"""As much of a quoted-printable line as surely fits into 75 octets."""


def _wrapped(line: bytes) -> bytes:
    """Return a line of quoted-printable with soft line breaks."""
    return line if len(line) <= _QP_LINE else b"=\r\n".join(_TOKENS.findall(line))
