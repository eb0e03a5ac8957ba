"""State bind: choose the source address for a target."""

from collections.abc import Sequence
from random import Random

from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Source, Target


def choose(sources: Sequence[Source], target: Target, rng: Random, pinned: str | None = None) -> Source:
    """Return one of the sources of the target's address family: the `pinned` IP if it is among them, else at random.

    Raises:
        Failure: no source has that family; another target may have another one.
    """
    if len(sources) == 1 and sources[0].reaches(target):
        return sources[0]
    fitting = [source for source in sources if source.reaches(target)]
    if not fitting:
        family = "IPv6" if target.ipv6 else "IPv4"
        raise Failure(State.BIND, Kind.ERROR, f"no {family} source address to reach {target.ip}")
    if len(fitting) == 1:
        return fitting[0]
    return next((source for source in fitting if pinned and source.ip == pinned), None) or rng.choice(fitting)
