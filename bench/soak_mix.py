"""The mixed load of a soak: receivers that behave and receivers that do not, and what must come of each job.

A site is one receiver with a domain of its own, `NAME.soak.test`; a word is what the lab's sink does with a
recipient (`mailq.sink.behaviours`). Every job has a recipient of its own, which is its id as well, so that
results and takings can be told apart one by one. The order is the same in every run, evenly mixed.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

from bench.jobs import message

MESSAGE_SIZE = 2_000
ATTEMPTS = 2
"""What a job may use; every trouble here is there again at the second one, but for greylisting."""

LIMITED_SHARE = 0.9
"""The limited site gets slightly more than it is allowed to, so that jobs have to be sent away and come back."""

_SPREAD = 0.618
"""Words of one share begin at different moments, evenly spread (golden section)."""


@dataclass(frozen=True, slots=True)
class Site:
    """One receiver; without `listens` nothing answers at its port: connections are refused, or `dark`, ignored."""

    faults: tuple[str, ...] = ()
    tls: bool = False
    listens: bool = True
    dark: bool = False
    limits: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Word:
    """So many of a hundred jobs: delivered or not, and how often the receiver may take such a message at most."""

    site: str
    local: str
    share: int
    delivered: bool
    most_taken: int


SITES: dict[str, Site] = {
    "plain": Site(),
    "rough": Site(limits={"connections": 40}),
    "tls": Site(tls=True, limits={"connections": 5, "messages_per_session": 20}),
    "broken": Site(tls=True, faults=("starttls=broken",)),
    "limited": Site(),
    "mute": Site(faults=("intro=stall",)),
    "curt": Site(faults=("intro=421",)),
    "refused": Site(listens=False),
    "dark": Site(listens=False, dark=True),
}

_ROUGH = (
    "tempfail", "reject-554-message", "drop-rcptto", "drop-data", "drop-message", "drop-before-dot", "reset-message",
    "stall-rcptto", "stall-data", "stall-message", "garbage-rcptto", "garbage-message", "close-421", "close-421-data",
    "close-421-message",
)  # fmt: skip

WORDS: tuple[Word, ...] = (
    Word("plain", "accept", 40, delivered=True, most_taken=1),
    Word("plain", "slow-100", 5, delivered=True, most_taken=1),
    Word("plain", "slow-300-rcptto", 3, delivered=True, most_taken=1),
    Word("plain", "greylist", 5, delivered=True, most_taken=1),
    Word("plain", "reject-550", 4, delivered=False, most_taken=0),
    Word("plain", "tempfail-450-data", 3, delivered=False, most_taken=0),
    *(Word("rough", local, 1, delivered=False, most_taken=0) for local in _ROUGH),
    # Taken each time, and never said to be: in doubt, so it is tried again.
    Word("rough", "drop-after-dot", 1, delivered=False, most_taken=ATTEMPTS),
    Word("tls", "accept", 8, delivered=True, most_taken=1),
    Word("broken", "accept", 3, delivered=True, most_taken=1),
    Word("limited", "accept", 5, delivered=True, most_taken=1),
    Word("mute", "accept", 2, delivered=False, most_taken=0),
    Word("curt", "accept", 2, delivered=False, most_taken=0),
    Word("refused", "accept", 2, delivered=False, most_taken=0),
    Word("dark", "accept", 2, delivered=False, most_taken=0),
)


def domain(site: str) -> str:
    """Return the domain of a site."""
    return f"{site}.soak.test"


def word_of(recipient: str) -> Word:
    """Return what a recipient of a soak stands for."""
    local, _, host = recipient.partition("@")
    return _BY_ADDRESS[local.partition("+")[0], host.partition(".")[0]]


def limits(rate: int) -> list[dict[str, object]]:
    """Return the tables `[[limits]]` for a load of `rate` jobs a second."""
    share = sum(word.share for word in WORDS if word.site == "limited") / sum(word.share for word in WORDS)
    limited = {"domain": domain("limited"), "message_rate": round(rate * share * LIMITED_SHARE, 3)}
    return [*({"domain": domain(name), **site.limits} for name, site in SITES.items() if site.limits), limited]


class Mix:
    """Makes the jobs; `made` are the ids of those made so far."""

    def __init__(self) -> None:
        self.made: list[str] = []
        places = [
            ((number + index * _SPREAD % 1) / word.share, index)
            for index, word in enumerate(WORDS)
            for number in range(word.share)
        ]
        self._order = itertools.cycle([WORDS[index] for _, index in sorted(places)])
        self._mime = message(MESSAGE_SIZE)

    def take(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield so many new jobs as (message id, JSON)."""
        for word in itertools.islice(self._order, count):
            recipient = f"{word.local}+{len(self.made)}@{domain(word.site)}"
            job = {"id": recipient, "envelope": "soak@sender.soak.test", "recipient": recipient, "mime": self._mime}
            self.made.append(recipient)
            yield recipient, orjson.dumps(job)


_BY_ADDRESS = {(word.local, word.site): word for word in WORDS}
