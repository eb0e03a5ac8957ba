"""Jobs that may have ended a process: tried one at a time, and put aside when they have done it again.

A job that the broker has handed out several times was in the hands of processes that died, or lost
their connections; it may be the reason, or have shared a window with it. Such a job is tried while no other
job is begun, and the journal notes the trial. When the process dies in it, whoever gets the job next
knows, and an innocent one comes through.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailq.core.broker.messages import Consumed
from mailq.ports.journal import Journal

DEADLY = 2
"""Processes that died in a trial of the same job, after which it is not tried again."""

ALONE = 1.0
"""Seconds for which the first trial of a job is alone: then it is survived, and the others wait no longer."""

LONGEST = 16.0
"""Seconds for which a trial is alone at most: doubled with each delivery, for what takes its time to kill."""


class Quarantine:
    """The trials of one process."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def trying(self) -> bool:
        """Tell whether something is tried just now."""
        return not self._idle.is_set()

    async def idle(self) -> None:
        """Wait while something is tried."""
        await self._idle.wait()

    def crashes(self, consumed: Consumed) -> int:
        """Return how many processes died in a trial of the message.

        Raises:
            JournalError: it cannot be told.
        """
        return self._journal.trials(_digest(consumed))

    @asynccontextmanager
    async def trial(self, consumed: Consumed, earlier: int) -> AsyncIterator[None]:
        """Let a message be handled alone for a while, noted in the journal, after so many earlier trials.

        Raises:
            JournalError: it cannot be noted.
        """
        digest = _digest(consumed)
        self._waiting += 1
        self._idle.clear()  # from now on: who begins while this one waits could be what the one before it is blamed for
        try:
            await self._turn.acquire()
        except asyncio.CancelledError:
            if self._waiting == 1 and not self._turn.locked():
                self._idle.set()
            raise
        finally:
            self._waiting -= 1
        alone = True

        def over() -> None:
            nonlocal alone
            if alone:
                alone = False
                self._journal.tried(digest)  # what kills the process from now on may be another one
                if not self._waiting:
                    self._idle.set()
                self._turn.release()

        timer = asyncio.get_running_loop().call_later(min(ALONE * 2 ** min(earlier, 10), LONGEST), over)
        try:
            self._journal.trial(digest)
            yield
        finally:
            timer.cancel()
            over()


def _digest(consumed: Consumed) -> bytes:
    named = (consumed.message_id or "").encode("utf-8", "surrogatepass")
    return hashlib.blake2b(consumed.body, digest_size=16, key=hashlib.blake2b(named, digest_size=16).digest()).digest()
