"""A dictionary that forgets: bounded memory for what is known of the world's many destinations."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MEMORY = 20_000
"""Entries kept; those written longest ago go first."""


class Recent(OrderedDict[K, V], Generic[K, V]):
    """A dictionary of the newest `MEMORY` entries, if they are written with `remember`."""

    def remember(self, key: K, value: V) -> None:
        """Set an entry and drop the oldest when there are too many."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > MEMORY:
            self.popitem(last=False)
