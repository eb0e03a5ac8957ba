r"""The message as octets: made fit for the wire, measured, and its header read for the result.

Decides how line ends, dots and octets leave (RFC 5321 sections 2.3.8 and 4.5.2): after `normalize`
there is no CR without its LF, so that nothing inside a message can end it early. What a size or an
8-bit octet means for MAIL FROM is `smtp.envelope`'s affair. `extract` reads the header (RFC 5322
section 2.2, encoded words of RFC 2047) by hand: the general parsers cost a multiple, nest without
bound and change between patch versions of Python. It looks at a bounded part and never raises.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from encodings.aliases import aliases
from functools import lru_cache
from io import IncrementalNewlineDecoder
from typing import Any

MAX_HEADER = 64 * 1024
"""Octets of the header that are looked at."""

MAX_NAME = 998
"""Characters of a field name: the longest line (RFC 5322 section 2.1.1)."""

SHORT = 200
"""Characters of a header line up to which it is worth remembering what it says."""

MAX_FIELDS = 500
"""Lines of the unfolded header that are looked at."""

MARKS = ("\ufeff", "\u00ef\u00bb\u00bf")
"""A byte order mark, and how one looks that was read in the wrong character set."""


@dataclass(frozen=True, slots=True)
class Content:
    """A normalized message and what MAIL FROM needs to know of it.

    `size` is in octets as RFC 1870 counts them (without dot-stuffing and final dot); `eightbit` and
    `eightbit_header` tell whether an octet above 127 stands in the body, or in the header.
    """

    content: bytes = field(repr=False)
    size: int = field(init=False)
    eightbit: bool = field(init=False)
    eightbit_header: bool = field(init=False)

    def __post_init__(self) -> None:
        """Measure the message; pure ASCII, the usual case, is seen in one pass."""
        header, body = _eightbit(self.content)
        object.__setattr__(self, "size", len(self.content))
        object.__setattr__(self, "eightbit", body)
        object.__setattr__(self, "eightbit_header", header)


def without_mark(mime: str) -> str:
    """Return the message without a byte order mark before its header, which would hide the first field."""
    return mime.removeprefix(MARKS[0]).removeprefix(MARKS[1])


def normalize(mime: str) -> bytes:
    """Return the message in UTF-8, every line ended by CRLF, the last one too.

    A lone CR or LF ends a line as well. A lone surrogate, which JSON text cannot hold, becomes `?`.
    """
    octets = mime.encode("utf-8", "replace")
    ends = _line_ends(mime)
    if ends == "\n":
        octets = octets.replace(b"\n", b"\r\n")
    elif ends != "\r\n":
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return octets if octets.endswith(b"\r\n") else octets + b"\r\n"


def _line_ends(text: str) -> object:
    """Return the one kind of line end in a text; something else if there are several, or none.

    The decoder that the io module uses for text files finds out in a fifth of the time that counting takes.
    """
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(text, final=True)
    return decoder.newlines


def payload(content: bytes) -> bytes:
    """Return what goes on the wire after DATA: normalized `content` dot-stuffed, and the final dot."""
    first = b"." if content.startswith(b".") else b""
    if b"\r\n." in content:  # CPython finds three octets in less time than two
        content = content.replace(b"\n.", b"\n..")
    return b"".join((first, content, b".\r\n"))


def _eightbit(content: bytes) -> tuple[bool, bool]:
    """Tell for header and body whether it holds an octet above 127."""
    if content.isascii():
        return False, False
    end = _header_end(content, len(content))
    if content[:end].isascii():
        return False, True
    return True, not content[end:].isascii()


def _header_end(content: bytes, limit: int) -> int:
    """Return the length of the header, its last line end excluded; -1 if it is over `limit`."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n", 0, limit)
    return len(content) if end < 0 and len(content) <= limit else end


def extract(content: bytes) -> dict[str, Any]:
    """Return the `extracted` property of a normalized message: from, to, subject, headers.

    `from` is the bare address of From, `to` the list of those of To, `subject` is decoded, `headers`
    maps each field name in lower case to its unfolded, decoded value, or to a list in order where
    the field is repeated. What the message does not have is absent. Never raises.
    """
    headers: dict[str, Any] = {}
    sender = None
    receivers: list[str] = []
    for name, text, mailboxes in _fields(content):
        if name not in headers:
            headers[name] = text
            if name == "from" and mailboxes:
                sender = mailboxes[0]
        elif isinstance(earlier := headers[name], list):
            earlier.append(text)
        else:
            headers[name] = [earlier, text]
        if name == "to":
            receivers += mailboxes
    return _told(sender, receivers, headers)


def _told(sender: str | None, receivers: list[str], headers: dict[str, Any]) -> dict[str, Any]:
    """Return those properties of `extracted` that there are."""
    found: dict[str, Any] = {}
    if sender is not None:
        found["from"] = sender
    if receivers:
        found["to"] = receivers
    if "subject" in headers:
        subject = headers["subject"]
        found["subject"] = subject[0] if isinstance(subject, list) else subject
    if headers:
        found["headers"] = headers
    return found


_NAME = re.compile(r"[!-9;-~]+")
_FOLD = re.compile(r"\r\n(?=[ \t])")


_Field = tuple[str, str, tuple[str, ...]]
"""A header field: its name in lower case, its value decoded, and of From and To the addresses in it."""


def _read(line: str) -> _Field | None:
    """Return the field in a line of the unfolded header, None if it is none."""
    name, colon, value = line.partition(":")
    if not colon or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        return None
    name, value = name.lower(), value.strip(" \t\r\n")
    return name, decode(value), tuple(addresses(value)) if name in {"from", "to"} else ()


_remembered = lru_cache(maxsize=1000)(_read)
"""The messages of a mailing have most lines of their header in common."""


def _fields(content: bytes) -> list[_Field]:
    """Return the header fields in order.

    The header ends at the first line that is no field, as for Python's own parser; a line without
    a name, a continuation of nothing and mbox's `From ` line are passed over.
    """
    end = _header_end(content, MAX_HEADER)
    text = content[: end if end >= 0 else MAX_HEADER].decode("utf-8", "replace")
    if "\r\n " in text or "\r\n\t" in text:
        text = _FOLD.sub("", text)
    lines = text.split("\r\n")
    if end < 0:
        lines.pop()  # cut somewhere in its middle
    fields: list[_Field] = []
    for line in lines[:MAX_FIELDS]:
        found = _remembered(line) if len(line) <= SHORT else _read(line)
        if found is not None:
            fields.append(found)
        elif not line.startswith((" ", "\t", ":", "From ")):
            break
    return fields


_WHOLE = r'[^\s"(),:;<>@\\\[\]]+@[^\s"(),:;<>@\\\[\]]+'
_SIMPLE = re.compile(rf'({_WHOLE})|(?:[^\s"(),:;<>@\\\[][^"(),:;<>@\\\[]*)?<({_WHOLE})>')
"""One mailbox without anything odd, with or without a name."""
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"|\[[^\[\]\\]*+\]|\\.|[()<>,:;]|[^"\\()<>,:;\[]+|.', re.DOTALL)
_MAILBOX = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^\s"@]++)@[^\s"@]++', re.DOTALL)


def addresses(value: str) -> list[str]:
    """Return the bare addresses in an address list (RFC 5322 section 3.4): no names, comments, groups."""
    if simple := _SIMPLE.fullmatch(value):
        return [simple[1] or simple[2]]
    found: list[str] = []
    text: list[str] = []
    angle = ""
    depth = 0
    for piece in (*_PIECE.findall(value), ","):
        if depth or piece == "(":
            depth += (piece == "(") - (piece == ")")
        elif piece in "<:":
            text = []  # what came before is a name, of a person or a group, or a source route
        elif piece == ">":
            angle, text = "".join(text), []
        elif piece in ",;":
            mailbox = (angle or "".join(text)).strip()
            if _MAILBOX.fullmatch(mailbox):
                found.append(mailbox)
            text, angle = [], ""
        else:
            text.append(piece)
    return found


_WORD = re.compile(r"=\?([^\s?*]+)(?:\*[^\s?]*)?\?([BbQq])\?([^\s?]*)\?=")
_UNFIT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no encoded word may bring in: control characters, and surrogates (UTF-7 can), which no JSON text holds."""

_CHARSETS = frozenset({*aliases, *aliases.values(), "koi8_u"})
"""Names of character sets; anything else would be looked for on the disk, and remembered for ever."""


def decode(value: str) -> str:
    """Return a header value with its encoded words (RFC 2047) decoded.

    Adjacent words in one character set are joined before decoding, because senders split
    characters. A word that is malformed, in an unknown character set, or that hides a control
    character or a surrogate stays as written.
    """
    if "=?" not in value:
        return value
    pieces: list[str] = []
    place = 0
    before: str | None = None
    for start, end, text in _decoded(value):
        gap = value[place:start]
        if before is None or text is None or not gap.isspace():
            pieces.append(gap)
        pieces.append(value[start:end] if text is None else text)
        place, before = end, text
    pieces.append(value[place:])
    return "".join(pieces)


def _decoded(value: str) -> Iterator[tuple[int, int, str | None]]:
    """Yield start, end and text of each run of encoded words, text None if it stays as written."""
    runs: list[list[re.Match[str]]] = []
    for word in _WORD.finditer(value):
        last = runs[-1][-1] if runs else None
        if last and last[1].lower() == word[1].lower() and value[last.end() : word.start()].isspace():
            runs[-1].append(word)
        else:
            runs.append([word])
    for run in runs:
        text = _text(run)
        for words in [run] if text is not None else [[word] for word in run]:
            yield words[0].start(), words[-1].end(), text if words is run else _text(words)


def _text(words: list[re.Match[str]]) -> str | None:
    """Return the text of adjacent encoded words of one character set, None if they have none."""
    charset = words[0][1].lower().replace("-", "_")
    if charset not in _CHARSETS:
        return None
    try:
        text = b"".join(_octets(word[2], word[3]) for word in words).decode(charset)
    except (ValueError, LookupError):
        return None
    return None if _UNFIT.search(text) else text


def _octets(encoding: str, text: str) -> bytes:
    if encoding in "bB":
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    return binascii.a2b_qp(text.encode("ascii"), header=True)
