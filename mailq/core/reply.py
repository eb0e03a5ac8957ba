"""An SMTP reply as a value, and the reader that cuts a byte stream into replies.

Source: RFC 5321 section 4.2 (form and meaning of replies), RFC 2034 and RFC 3463 (enhanced
status codes). The reader is strict about the form and never judges the meaning: which replies
are good is decided by whoever asked. Everything is bounded, because the peer is a stranger.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mailq.core.escape import replaced

MAX_LINE = 4096
"""Longest accepted reply line in octets (RFC 5321 section 4.5.3.1.5 allows 512; peers exceed it)."""

MAX_REPLY = 32 * 1024
"""Longest accepted reply, all its lines together, in octets."""

SHORT_LINE = 60
"""Octets of a reply line up to which it is worth remembering what it says."""

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?\r?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)")


class MalformedReplyError(ValueError):
    """The peer sent something that is not an SMTP reply; `replies` came whole before it in the same read.

    Those count: what follows the answer to a final dot must not make an accepted message unsent.
    """

    def __init__(self, text: str, replies: Sequence["Reply"] = ()) -> None:
        super().__init__(text)
        self.replies = replies


class Reply(NamedTuple):
    r"""A valid SMTP answer: basic code, enhanced status if the peer sent one, text (lines joined by \n)."""

    code: int
    status: str | None
    text: str

    @property
    def positive(self) -> bool:
        """Tell whether the code is 2yz: the command was carried out."""
        return self.code // 100 == 2

    @property
    def permanent(self) -> bool:
        """Tell whether the code is 5yz: the same command will not succeed later."""
        return self.code // 100 == 5

    @property
    def closing(self) -> bool:
        """Tell whether the code is 421: the connection's trouble, never the recipient's."""
        return self.code == 421


def make_reply(code: int, lines: list[str]) -> Reply:
    """Return the `Reply` for a basic code and the texts of its lines, enhanced status separated."""
    match = _ENHANCED.match(lines[0]) if lines else None
    if match is None:
        return Reply(code, None, "\n".join(lines))
    status = match[1]
    if len(lines) == 1:
        return Reply(code, status, lines[0][match.end() :])
    matches = [(line, _ENHANCED.match(line)) for line in lines]
    texts = [line[found.end() :] if found and found[1] == status else line for line, found in matches]
    return Reply(code, status, "\n".join(texts))


class ReplyReader:
    """Cuts received bytes into replies, however they were split or glued on the way."""

    __slots__ = ("_buffer", "_code", "_lines", "_size", "pending")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []
        self._code = 0
        self._size = 0
        self.pending = False
        """Whether bytes of an unfinished reply are held."""

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that are complete now.

        Raises:
            MalformedReplyError: the stream is not SMTP, or a line or reply is over its limit.
                The reader must not be fed again.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        replies: list[Reply] = []
        try:
            for line in lines:
                code, last, text, reply = _read(line) if len(line) > SHORT_LINE else _remembered(line)
                if last and not self._lines:
                    replies.append(reply)
                else:
                    self._join(replies, line, code, text, last=last)
            if self._buffer:
                _check_length(self._buffer)
        except MalformedReplyError as trouble:
            raise MalformedReplyError(str(trouble), replies) from None
        self.pending = bool(self._buffer or self._lines)
        return replies

    def _join(self, replies: list[Reply], line: bytes, code: int, text: str, *, last: bool) -> None:
        """Take a line of a reply that has several; the last one completes it."""
        if self._lines and code != self._code:
            raise MalformedReplyError(f"reply changes its code from {self._code} to {code}")
        self._size += len(line)
        if self._size > MAX_REPLY:
            raise MalformedReplyError(f"reply longer than {MAX_REPLY} octets")
        self._code = code
        self._lines.append(text)
        if last:
            replies.append(make_reply(code, self._lines))
            self._lines, self._size = [], 0


def _read(line: bytes) -> tuple[int, bool, str, Reply]:
    """Return code of a reply line, whether it is the last of its reply, text, and the reply if it is the only one."""
    _check_length(line)
    match = _LINE.fullmatch(line)
    if match is None:
        raise MalformedReplyError(f"not an SMTP reply: {printable(line)}")
    code, text = int(match[1]), printable(match[3] or b"", limit=MAX_LINE)
    return code, match[2] != b"-", text, make_reply(code, [text])


_remembered = lru_cache(maxsize=1024)(_read)
"""A server says the same to MAIL, RCPT and DATA each time."""


def _check_length(line: bytes) -> None:
    if len(line) > MAX_LINE:
        raise MalformedReplyError(f"reply line longer than {MAX_LINE} octets")


def printable(raw: bytes, limit: int = 200) -> str:
    """Return at most `limit` octets of a stranger's text, what must not be shown (`core.escape`) as `?`."""
    return replaced(raw[:limit].decode("utf-8", "replace").rstrip("\r "))
