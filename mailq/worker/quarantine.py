"""Quarantine: jobs that may have crashed a process are attempted alone, and are poison after repeated crashes.

The broker redelivers a job after its process died or lost the connection. Such a job may have crashed the process, or
was in flight beside the job that did. An isolated attempt runs while the process begins no other job, and the journal
records it. If the process dies during an isolated attempt, the next process finds the crash in the journal. A harmless
job survives its isolated attempt.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailq.core.broker.messages import Consumed
from mailq.ports.journal import Journal

DEADLY = 2
"""Number of crashes in isolated attempts of the same job after which the job is poison."""

ALONE = 1.0
"""Seconds for which the first isolated attempt holds other jobs up; a job that runs longer has survived."""

LONGEST = 16.0
"""Seconds for which an isolated attempt holds other jobs up at most; the time doubles with each delivery."""


class Quarantine:
    """The isolated attempts of one process."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def trying(self) -> bool:
        """True while an isolated attempt runs or waits for its turn."""
        return not self._idle.is_set()

    async def idle(self) -> None:
        """Wait until no isolated attempt runs or waits."""
        await self._idle.wait()

    def crashes(self, consumed: Consumed) -> int:
        """Return how many processes died in an isolated attempt of the message.

        Raises:
            JournalError: the journal cannot be read.
        """
        return self._journal.trials(_digest(consumed))

    @asynccontextmanager
    async def trial(self, consumed: Consumed, earlier: int) -> AsyncIterator[None]:
        """Handle a message alone for a while, after `earlier` isolated attempts, and record that in the journal.

        Raises:
            JournalError: the journal cannot record the attempt.
        """
        digest = _digest(consumed)
        self._waiting += 1
        self._idle.clear()  # already now: a job that began meanwhile could crash the process in its place
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
                self._journal.tried(digest)  # another job may cause a crash from now on
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
