"""Limits that the processes of a host share."""

from typing import Protocol

from mailq.core.traffic.rate import Rate, Slot


class Limits(Protocol):
    """The limits that processes share; a key names the limited resource."""

    async def take(self, key: str, rate: Rate, *, patience: float, returned: bool) -> Slot:
        """Return when the next event of a rate may happen, for all processes together; see `core.traffic.rate`."""

    async def enter(self, key: str, limit: int) -> bool:
        """Take one place if fewer than `limit` are taken; return True if so, and the caller must call `leave` once."""

    def leave(self, key: str) -> None:
        """Give back one place that `enter` took."""

    def wanted(self, key: str, limit: int, going: int) -> bool:
        """Return whether another process with fewer places waits, and should get one of this process.

        `going` is the number of places that this process is already giving to it.
        """

    def problem(self) -> str | None:
        """Return why limits cannot be shared yet, so that the worker must not consume; None if they can."""

    def housekeep(self) -> None:
        """Do periodic work, once a second; never raises."""
