"""A dictionary that forgets: memory bounded in octets for what is known of the world's many destinations.

Strangers decide how many domains there are and how long their names, so a number of entries bounds nothing.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MEMORY = 4 * 1024 * 1024
"""Octets that one such dictionary takes if it is not told otherwise."""

ENTRY = 250
"""Octets of an entry apart from its key and value: the dictionary's own."""

OBJECT = 50
"""Octets of a text, or of anything else, apart from what it holds."""


class BoundedDict(OrderedDict[K, V], Generic[K, V]):
    """A dictionary of the newest entries that fit into so many octets; they are written with `remember` only."""

    def __init__(self, octets: int = MEMORY) -> None:
        super().__init__()
        self.octets = 0
        """About how many octets the entries take."""
        self._most = octets
        self._weights: dict[K, int] = {}

    def remember(self, key: K, value: V, octets: int | None = None) -> None:
        """Set an entry, and drop the oldest ones when all take too much; `octets` is its size if the caller knows it.

        An entry that would fill more than a tenth alone is not kept.
        """
        self.forget(key)
        octets = ENTRY + weight(key) + weight(value) if octets is None else octets
        if octets > self._most // 10:
            return
        self[key] = value
        self._weights[key] = octets
        self.octets += octets
        while self.octets > self._most:
            self.forget(next(iter(self)))

    def forget(self, key: K) -> None:
        """Drop an entry if there is one."""
        if key in self:
            del self[key]
            self.octets -= self._weights.pop(key)


def weight(value: object) -> int:
    """Return about how many octets a value takes with all that it holds; what is shared counts each time."""
    if isinstance(value, str):
        return OBJECT + len(value) * (1 if value.isascii() else 4)
    if isinstance(value, bytes):
        return OBJECT + len(value)
    if isinstance(value, tuple | list | frozenset | set):
        return OBJECT + sum(8 + weight(each) for each in value)
    if isinstance(value, BaseException):
        return OBJECT + weight(value.args) + weight(list(vars(value).values()))
    fields = getattr(type(value), "__dataclass_fields__", ())
    return OBJECT + sum(8 + weight(getattr(value, name, None)) for name in fields)
