"""Work on messages: small ones at once, large ones in a thread beside the event loop.

A single thread does the work, so that memory holds the copies of one large message at a time. A single call into C that
does not release the interpreter's lock still blocks the event loop (orjson: 3 ms a megabyte).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGE = 512 * 1024
"""Octets up to which no work takes more than some 10 ms."""

_APART = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large")


async def offloaded(octets: int, work: Callable[[], T]) -> T:
    """Return the value of `work` on so many octets; large work runs in the thread."""
    if octets <= LARGE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_APART, work)
