"""The messages that are sent: an ordinary newsletter of a given size, one recipient and one id per job.

Bodies are made from a template that is encoded once, so that a bench which injects while mailq delivers
takes little CPU itself. A job carries its time of publication in the property `t` (nanoseconds since
1970), which mailq gives back with the result as it does with everything that a producer adds.
"""

import time
from collections.abc import Iterator

import orjson

_HEADER = """\
From: Example News <news@sender.bench.test>
To: subscriber@receiver.bench.test
Subject: =?utf-8?q?Caf=C3=A9_news=2C_this_week?=
Date: Fri, 04 Jan 2030 10:00:00 +0000
Message-ID: <20300104100000.1@sender.bench.test>
List-Unsubscribe: <https://sender.bench.test/u/1>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
MIME-Version: 1.0
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

"""

_LINE = "<p>The quick brown fox jumps over the lazy dog, &amp; again =E2=80=93 and on</p>\n"

_MARKS = ("@RECIPIENT@", "@ID@", 987654321)


def message(size: int) -> str:
    """Return a message of `size` octets on the wire (CRLF), to a line's length."""
    on_wire = len(_HEADER) + _HEADER.count("\n")
    return _HEADER + _LINE * max(1, (size - on_wire) // (len(_LINE) + 1))


class Jobs:
    """Makes jobs; each has an id of its own, and recipients go round `domains` domains."""

    def __init__(self, size: int, domains: int) -> None:
        recipient, identity, moment = _MARKS
        document = {
            "id": identity,
            "envelope": "bounces@sender.bench.test",
            "recipient": recipient,
            "tags": ["bench", "newsletter"],
            "t": moment,
            "mime": message(size),
        }
        before, rest = orjson.dumps(document).split(str(identity).encode(), 1)
        middle, rest = rest.split(str(recipient).encode(), 1)
        late, after = rest.split(str(moment).encode(), 1)
        self._parts = (before, middle, late, after)
        self._domains = domains
        self._made = 0

    def take(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield so many new jobs as (message id, JSON), each stamped when it is asked for."""
        before, middle, late, after = self._parts
        for number in range(self._made, self._made + count):
            self._made = number + 1
            identity, recipient = f"bench-{number}", f"user{number}@d{number % self._domains}.bench.test"
            moment = str(time.time_ns()).encode()
            parts = (before, identity.encode(), middle, recipient.encode(), late, moment, after)
            yield identity, b"".join(parts)
