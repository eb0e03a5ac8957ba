"""Work whose length a producer decides: the small is done at once, the large in a thread beside the event loop.

One thread does it, so that memory holds the copies of one large message at a time. A single call into C that does not
release the interpreter's lock still stops the loop for its length (orjson: 3 ms a megabyte).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGE = 512 * 1024
"""Octets up to which no step takes more than some 10 ms."""

_APART = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large")


async def offloaded(octets: int, work: Callable[[], T]) -> T:
    """Return what `work` on so many octets returns, done where it holds up nobody."""
    if octets <= LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_APART, work)
