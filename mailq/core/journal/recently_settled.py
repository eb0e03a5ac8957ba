"""What is settled, by digest: much of it, in little memory, forgotten by the page. Pure: the moment is told.

A retry that was published twice comes twice, the second time after a minute or more, and its first copy may have been
settled by any process of the host. A digest takes 20 octets here and would take 100 in a set. Nothing is
moved when there is more of it: a page that is full is followed by another, so that no addition takes long.
"""

from array import array
from collections import deque

MEMORY = 600.0
"""Seconds for which what is settled is remembered at least, unless more than `MOST` pages are settled in that time."""

CAPACITY = 0xFFFF
"""Digests of a page: so many can be numbered with two octets, and a zero for none."""

FEWEST = 4
"""Pages that are kept whatever their age: where little is settled, it is remembered for long."""

MOST = 24
"""Pages that are kept at most, the last of them not full: 1.5 million digests, 2,500 a second for `MEMORY`, 32 MB."""

_DIGEST = 16
_CHAINS = 1 << 16


class _Page:
    """Digests in the order in which they came, each chained to the one before it whose hash ends in the same bits."""

    __slots__ = ("_before", "_digests", "_latest", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self._digests = bytearray()
        self._before = array("H", [0])
        self._latest = array("H", bytes(2 * _CHAINS))

    @property
    def full(self) -> bool:
        """Tell whether there is no room for another digest."""
        return len(self._before) > CAPACITY

    def has(self, digest: bytes, chain: int) -> bool:
        """Tell whether a digest stands in the page; `chain` is its hash's end."""
        at = self._latest[chain]
        while at:
            if self._digests.startswith(digest, _DIGEST * (at - 1)):
                return True
            at = self._before[at]
        return False

    def add(self, digest: bytes, chain: int) -> None:
        """Append a digest; there must be room for it."""
        self._before.append(self._latest[chain])
        self._latest[chain] = len(self._before) - 1
        self._digests += digest


class SettledWindow:
    """The digests of settled jobs, the newest."""

    def __init__(self) -> None:
        self._pages = deque([_Page()])
        self._now = 0.0

    def has(self, digest: bytes) -> bool:
        """Tell whether a job is remembered as settled."""
        chain = hash(digest) % _CHAINS
        return any(page.has(digest, chain) for page in self._pages)

    def add(self, digest: bytes) -> None:
        """Note that a job is settled, and forget those settled long ago where there are too many."""
        page, chain = self._pages[-1], hash(digest) % _CHAINS
        if page.has(digest, chain):
            return
        if page.full:
            page.until = self._now
            page = _Page()
            self._pages.append(page)
            if len(self._pages) > MOST:
                self._pages.popleft()
        page.add(digest, chain)

    def at(self, now: float) -> None:
        """Note the moment, in seconds on a clock that only goes on, and forget what is too old."""
        self._now = now
        while len(self._pages) > FEWEST and self._pages[0].until < now - MEMORY:
            self._pages.popleft()
