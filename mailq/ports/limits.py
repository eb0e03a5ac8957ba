"""Limits that the processes of a host share."""

from typing import Protocol

from mailq.core.traffic.rate import Rate, Slot


class Limits(Protocol):
    """What processes and one day hosts share of the limits; keys name what is limited."""

    async def take(self, key: str, rate: Rate, *, patience: float, returned: bool) -> Slot:
        """Return when the next event of a rate may be, for all who share it; see `core.pace.take`."""

    async def enter(self, key: str, limit: int) -> bool:
        """Count one more in if fewer than `limit` are in; tell whether it is, to be followed by one `leave`."""

    def leave(self, key: str) -> None:
        """Count one out that `enter` has counted in."""

    def wanted(self, key: str, limit: int, going: int) -> bool:
        """Tell whether another process waits that has less of the `limit`: then one more is for it.

        `going` is how many of this process are on their way there already.
        """

    def problem(self) -> str | None:
        """Return why nothing can be shared yet, None if it can; without, nothing should be consumed."""

    def housekeep(self) -> None:
        """Do what is due, once a second; never raises."""
