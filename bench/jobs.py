"""The messages that are sent: an ordinary newsletter of a given size, one recipient and one id per job.

As in a mailing the To, the Message-ID and the address to unsubscribe at are each message's own. Bodies are made from a
template that is encoded once, so that a bench which injects while mailq delivers takes little CPU itself. A job
carries its time of publication in the property `t` (nanoseconds since 1970), which mailq gives back with the result as
it does with everything that a producer adds.
"""

import re
import time
from collections.abc import Iterator

import orjson

_HEADER = """\
From: Example News <news@sender.bench.test>
To: @RECIPIENT@
Subject: =?utf-8?q?Caf=C3=A9_news=2C_this_week?=
Date: Fri, 04 Jan 2030 10:00:00 +0000
Message-ID: <20300104100000.@ID@@sender.bench.test>
List-Unsubscribe: <https://sender.bench.test/u/@ID@>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
MIME-Version: 1.0
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

"""

_LINE = "<p>The quick brown fox jumps over the lazy dog, &amp; again =E2=80=93 and on</p>\n"

_MARK = re.compile(rb'(@RECIPIENT@|@ID@|"@NOW@")')


def message(size: int, recipient: str = "subscriber@receiver.bench.test", identity: str = "1") -> str:
    """Return a message of `size` octets on the wire (CRLF), to a line's length."""
    header = _HEADER.replace("@RECIPIENT@", recipient).replace("@ID@", identity)
    on_wire = len(header) + header.count("\n")
    return header + _LINE * max(1, (size - on_wire) // (len(_LINE) + 1))


class Jobs:
    """Makes jobs; each has an id of its own, and recipients go round `domains` domains."""

    def __init__(self, size: int, domains: int) -> None:
        document = {
            "id": "@ID@",
            "envelope": "bounces@sender.bench.test",
            "recipient": "@RECIPIENT@",
            "tags": ["bench", "newsletter"],
            "t": "@NOW@",
            "mime": message(size, "@RECIPIENT@", "@ID@"),
        }
        self._pieces = _MARK.split(orjson.dumps(document))
        self._domains = domains
        self._made = 0

    def take(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield so many new jobs as (message id, JSON), each stamped when it is asked for."""
        for number in range(self._made, self._made + count):
            self._made = number + 1
            identity = f"bench-{number}"
            recipient = f"user{number}@d{number % self._domains}.bench.test"
            moment = str(time.time_ns())
            filled = {b"@ID@": identity.encode(), b"@RECIPIENT@": recipient.encode(), b'"@NOW@"': moment.encode()}
            yield identity, b"".join(filled.get(piece, piece) for piece in self._pieces)
