"""An SMTP reply as a value, and the reader that cuts a byte stream into replies.

Source: RFC 5321 section 4.2 (form and meaning of replies), RFC 2034 and RFC 3463 (enhanced
status codes). The reader takes every answer whose code can be read, whatever else is wrong with its form
(docs/decisions/sessions-and-replies.md), and never judges the meaning: which replies are good is decided
by the state that asked. Everything is bounded, because the peer is a stranger.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from mailq.core.escape import replaced
from mailq.core.smtp.status import separate

MAX_LINE = 4096
"""Octets of a reply line that are kept; a longer line is cut (RFC 5321 section 4.5.3.1.5: 512, peers exceed it)."""

MAX_REPLY = 32 * 1024
"""Longest reply, all its lines together, in octets; a longer one is judged by what was read of it, and is the last."""

MAX_BLANK = 32
"""Blank lines that are skipped before or within one reply."""

SHORT_LINE = 60
"""Octets of a reply line up to which it is worth remembering what it says."""

_LINE = re.compile(rb"([2-5][0-9]{2})(?![0-9])([ \t-])?(.*)", re.DOTALL)


class MalformedReplyError(ValueError):
    """The peer sent something that is not an SMTP reply, or not the rest of one; `replies` were read before it.

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
    status, texts = separate(code, lines)
    return Reply(code, status, "\n".join(texts))


class ReplyReader:
    """Cuts received bytes into replies, however they were split or glued on the way."""

    __slots__ = ("_blank", "_buffer", "_codes", "_dropped", "_lines", "_size", "pending")

    def __init__(self) -> None:
        self._buffer = b""
        self._dropped = 0
        self._codes: list[int] = []
        self._lines: list[str] = []
        self._size = 0
        self._blank = 0
        self.pending = False
        """Whether bytes of an unfinished reply are held."""

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that are complete now.

        Raises:
            MalformedReplyError: the stream is not SMTP, or goes on where a reply has reached its limit.
                The reader must not be fed again.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        replies: list[Reply] = []
        try:
            for line in lines:
                if len(line) <= SHORT_LINE and not self._lines:
                    _, last, _, reply = _remembered(line)
                    if last and reply is not None:
                        replies.append(reply)
                        self._blank = 0
                        continue
                self._take(line, replies)
            if self._buffer:
                self._hold(replies)
        except MalformedReplyError as trouble:
            raise MalformedReplyError(str(trouble), replies) from None
        self.pending = bool(self._buffer or self._lines)
        return replies

    def rest(self) -> list[Reply]:
        """Return the reply that the end of the stream has cut off, if its code can be read."""
        replies: list[Reply] = []
        code, _, text, _ = _read(self._buffer)
        if code:
            self._add(code, text)
        with suppress(MalformedReplyError):
            self._complete(replies)
        self._buffer, self.pending = b"", False
        return replies

    def _take(self, line: bytes, replies: list[Reply]) -> None:
        """Take a line that is not a whole reply by itself, or a long one; the last one completes a reply."""
        size, self._dropped = len(line) + self._dropped, 0
        room = MAX_REPLY - self._size
        code, last, text, _ = _read(line[: min(room, MAX_LINE)])
        if code:
            self._add(code, text)
            self._size += size
        elif size <= min(room, MAX_LINE) and self._blank < MAX_BLANK and not line.strip(_WHITE):
            self._blank += 1
            return
        else:
            raise self._broken(f"not an SMTP reply: {printable(line)}", replies)
        if size > room:
            raise self._broken(f"reply longer than {MAX_REPLY} octets", replies)
        if last:
            self._complete(replies)

    def _hold(self, replies: list[Reply]) -> None:
        """Keep the beginning of a line that has not come to its end yet."""
        size, room = len(self._buffer) + self._dropped, MAX_REPLY - self._size
        if size <= min(room, MAX_LINE):
            return
        if not self._dropped or size > room:
            code, _, text, _ = _read(self._buffer[: min(room, MAX_LINE)])
            if code and size > room:
                self._add(code, text)
            if not code or size > room:
                raise self._broken(f"line or reply longer than {MAX_REPLY} octets", replies)
        self._buffer, self._dropped = self._buffer[:MAX_LINE], size - MAX_LINE

    def _add(self, code: int, text: str) -> None:
        self._codes.append(code)
        self._lines.append(text)

    def _complete(self, replies: list[Reply]) -> None:
        """Make one reply of the lines that there are."""
        if not self._lines:
            return
        codes = set(self._codes)
        replies.append(make_reply(decisive(self._codes), self._lines))
        self._codes, self._lines, self._size, self._blank = [], [], 0, 0
        if len(codes) > 1 and any(code // 100 == 3 for code in codes):
            raise MalformedReplyError("nobody can tell whether the server waits for more")

    def _broken(self, text: str, replies: list[Reply]) -> MalformedReplyError:
        """Return the error of a stream that is over; the reply under way is judged by what was read of it."""
        with suppress(MalformedReplyError):
            self._complete(replies)
        return MalformedReplyError(text)


def decisive(codes: Sequence[int]) -> int:
    """Return the code of a reply whose lines have these (RFC 5321 section 4.2.1: a client may go by any of them).

    The last line's code decides; a reply that refuses in any line is no acceptance, which would lose mail unheard.
    """
    refusals = [code for code in codes if code >= 400]
    return (refusals or codes)[-1]


def _read(line: bytes) -> tuple[int, bool, str, Reply | None]:
    """Return a line's code, whether it is the last of its reply, text, and the reply if it is the only one.

    The code is 0, and there is no reply, where a line does not begin with one.
    """
    match = _LINE.match(line)
    if match is None:
        return 0, True, "", None
    code, text = int(match[1]), printable(match[3], limit=MAX_LINE)
    return code, match[2] != b"-", text, make_reply(code, [text])


_remembered = lru_cache(maxsize=1024)(_read)
"""A server says the same to MAIL, RCPT and DATA each time."""

_WHITE = b" \t\r"


def printable(raw: bytes, limit: int = 200) -> str:
    """Return at most `limit` octets of a stranger's text, what must not be shown (`core.escape`) as `?`."""
    return replaced(raw[:limit].decode("utf-8", "replace").rstrip("\r "))
