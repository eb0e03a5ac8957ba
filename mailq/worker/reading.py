"""Reading: from a consumed message to its job.

A thread reads large messages beside the event loop. Heavy messages wait until memory has room for them. The number of
its values makes a message heavy: `{}` is 2 octets of JSON and 64 of memory. `core.jobs.document` computes the weight
before anything is parsed.
"""

import asyncio
from collections import deque
from functools import partial

from mailq.core.broker.messages import Consumed
from mailq.core.jobs.document import HeavyBodyError, OversizeBodyError, Unpacked, unpack
from mailq.core.jobs.job import Job
from mailq.delivery.offload import LARGE, offloaded


class Reading:
    """Reads messages of at most `limit` octets and about `values` values; `strict` is for `Job.read`."""

    def __init__(self, limit: int, values: int, *, strict: bool = False) -> None:
        self._strict = strict
        self._limit = limit
        self._values = values

    async def unpack(self, consumed: Consumed) -> Unpacked:
        """Return the JSON text of a message and its weight.

        Raises:
            InvalidJobError: the message is beyond a bound, or its gzip cannot be decompressed.
        """
        work = partial(unpack, consumed.body, consumed.content_encoding, values=self._values)
        if consumed.octets <= LARGE:
            try:
                return work(limit=min(LARGE, self._limit), at_once=True)
            except (OversizeBodyError, HeavyBodyError):  # the size in gzip may be wrong, and values may be many
                pass
        return await offloaded(LARGE + 1, partial(work, limit=self._limit))

    async def job(self, unpacked: Unpacked, consumed: Consumed) -> Job:
        """Return the job in a message that was unpacked.

        Raises:
            InvalidJobError: the message is no job.
        """
        work = partial(Job.read, unpacked, consumed.body, message_id=consumed.message_id, strict=self._strict)
        return await offloaded(unpacked.weight, work)


class Room:
    """The memory for the values of heavy documents: `most` octets, or one document that takes more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, octets: int) -> None:
        """Wait until there is room, and take it; the caller must call `leave` once."""
        while self._taken and self._taken + octets > self._most:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._taken += octets

    def leave(self, octets: int) -> None:
        """Give room back, and wake all waiting messages to look whether it is enough."""
        self._taken -= octets
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its message was requeued meanwhile
                turn.set_result(None)
