"""What goes wrong and when: the kinds of disasters, and a schedule of them from a seed. Pure.

A kind is `calm` if it can never leave the fate of a message in doubt: calm disasters follow each other, never
others, and none of their jobs may be delivered twice. What the others leave in doubt must be marked. `strict` kinds
aim at a job whose answer the worker had: that one must not be delivered twice either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from mailq.torture.hostile import ATTACKS

SMTP_POINTS = (
    "intro",
    *(f"{when}-{state}" for state in ("ehlo", "mailfrom", "rcptto", "data") for when in ("before", "after")),
    "in-payload",
    "before-answer",
)
"""Where the receiver can stop a session: before and after each answer, in the payload, between dot and answer."""

AMQP_POINTS = ("publish", "confirm", "ack")
"""What the relay before the broker can hold: a result's publication, its confirm, the job's acknowledgement."""

BLOCK = 40
"""Of so many disasters the calm ones come last: each change waits until all is quiet."""

GREY_SHARE = 8
"""One job of so many is greylisted once."""

REPEAT_SHARE = 5
"""One job of so many is published more than once under the same id."""

HOSTILE_SHARE = 6
"""One job of so many is valid and hostile: see `hostile`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of disaster; `weight` says how often it comes; `fills` tells that it fills the journal's disk."""

    name: str
    weight: int
    about: str
    calm: bool = False
    strict: bool = False
    fills: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a disaster: its identity, and whether each publication of it is greylisted once.

    A producer publishes it `copies` times at once under the same id, and once more, `late`, after a minute or more.
    The attack of a `hostile` job is a name in `hostile.ATTACKS`.
    """

    identity: str
    grey: bool
    copies: int = 1
    late: bool = False
    hostile: str = ""

    @property
    def publications(self) -> tuple[str, ...]:
        """Return the names of all its publications, the late one last."""
        return tuple(f"{self.identity}.{number}" for number in range(self.copies + self.late))


@dataclass(frozen=True, slots=True)
class Disaster:
    """One disaster: its number from 0, its kind, its jobs (the first is the one aimed at), and dice of its own."""

    number: int
    kind: Kind
    jobs: tuple[Job, ...]
    dice: int


def _kinds() -> Iterator[Kind]:
    for point in SMTP_POINTS:
        yield Kind(f"kill-{point}", 6, f"SIGKILL of a worker, SMTP session at {point}")
    for point, about in zip(
        AMQP_POINTS,
        ("between answer and publication", "between publication and confirm", "between confirm and ack"),
        strict=True,
    ):
        yield Kind(f"kill-{point}", 6, f"SIGKILL of the worker {about}", strict=True)
    yield Kind("drain", 1, "SIGTERM to a `mailq run` at work; another takes over")
    yield Kind("kill-supervisor", 1, "SIGKILL of a supervisor; its workers drain")
    yield Kind("stop", 4, "SIGSTOP of a worker for a second, then SIGCONT", calm=True)
    yield Kind("stop-long", 2, "SIGSTOP of a worker for longer than the broker waits for it, then SIGCONT")
    yield Kind("broker-kill", 1, "SIGKILL of RabbitMQ, and its restart", calm=True)
    yield Kind("broker-close-all", 1, "rabbitmqctl close_all_connections", calm=True)
    yield Kind("broker-close-one", 1, "rabbitmqctl close_connection of a worker's", calm=True)
    yield Kind("amqp-cut", 4, "all AMQP connections are reset", calm=True)
    yield Kind("amqp-stall", 4, "nothing passes on the AMQP connections for a second", calm=True)
    yield Kind("amqp-silence", 1, "nothing passes on them until a worker gives one up", calm=True)
    yield Kind("amqp-delay", 4, "everything takes 50 ms longer on the AMQP connections", calm=True)
    yield Kind("amqp-truncate", 4, "AMQP connections end within a frame", calm=True)
    yield Kind("smtp-cut", 6, "all SMTP connections are reset")
    yield Kind("smtp-stall", 4, "nothing passes on the SMTP connections for a second", calm=True)
    yield Kind("smtp-silence", 1, "no answer to the final dot until the worker gives up")
    yield Kind("smtp-delay", 4, "everything takes 50 ms longer on the SMTP connections", calm=True)
    yield Kind("smtp-truncate", 6, "SMTP connections end within a line")
    yield Kind("receiver-crash", 6, "the receiver is gone between dot and answer")
    yield Kind("dns-silence", 4, "name servers do not answer", calm=True)
    yield Kind("disk-full", 1, "the journal's disk is full when a worker starts", fills=True)


KINDS: dict[str, Kind] = {kind.name: kind for kind in _kinds()}


def schedule(seed: int, count: int, kinds: Sequence[str], jobs: int) -> tuple[Disaster, ...]:
    """Return `count` disasters of `jobs` jobs each: every kind once before any comes again, then blocks by weight.

    Raises:
        KeyError: there is no such kind.
    """
    rng = Random(seed)  # noqa: S311 - a schedule is to be repeated, not to be secret
    wanted = [KINDS[name] for name in kinds]
    chosen = _calm_last(rng.sample(wanted, len(wanted))[:count])
    while len(chosen) < count:
        more = min(BLOCK, count - len(chosen))
        chosen += _calm_last(rng.choices(wanted, [kind.weight for kind in wanted], k=more))
    return tuple(
        Disaster(number, kind, tuple(_jobs(rng, number, jobs, kind)), rng.getrandbits(32))
        for number, kind in enumerate(chosen)
    )


def _calm_last(kinds: Sequence[Kind]) -> list[Kind]:
    return sorted(kinds, key=lambda kind: kind.calm)


def _jobs(rng: Random, number: int, count: int, kind: Kind) -> Iterator[Job]:
    """Yield the jobs of a disaster; the one that it aims at is published once, and neither greylisted nor hostile."""
    for index in range(count):
        aimed_at = index == 0
        grey = not aimed_at and rng.randrange(GREY_SHARE) == 0
        copies = rng.choice((2, 3)) if not aimed_at and rng.randrange(REPEAT_SHARE) == 0 else 1
        # A late copy of a calm disaster could meet one that leaves its fate in doubt.
        late = not aimed_at and not kind.calm and rng.randrange(REPEAT_SHARE) == 0
        yield Job(f"tx{number:05d}-{index:02d}{'g' if grey else ''}", grey, copies, late)
        if not aimed_at and rng.randrange(HOSTILE_SHARE) == 0:
            yield Job(f"hx{number:05d}-{index:02d}", grey=False, hostile=rng.choice(sorted(ATTACKS)))
