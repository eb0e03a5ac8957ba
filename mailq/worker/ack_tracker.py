"""First consumptions that are done, until the broker is known to have their acknowledgements; and the marks of others.

At its first consumption a publication has no mark, and the journal knows it by its content. The journal keeps what came
of it while the message may come again: until the broker has answered something that was asked behind the
acknowledgement, which is noted at once, and a moment longer, since a broker may end before it has it on its disk. From
then on only an equal publication can come, which is another job. If an equal one comes before that, the entry is given
up at once: to send one of two equal jobs twice is less of a harm than to send one of them never. What goes back to the
outbox is marked after its entry, so that two copies of it are known for one publication.
"""

import asyncio
import secrets
from dataclasses import dataclass, field
from functools import partial

from mailq.core.broker.provenance import Provenance
from mailq.core.journal.records import DELAYED, EntryId, JobKey, JournalError
from mailq.ports.broker import Broker
from mailq.ports.journal import Journal
from mailq.worker.attempts import RunningAttempts


@dataclass(slots=True, eq=False)
class _Batch:
    """Acknowledgements over one connection; `asked` tells when the broker has them, and they are `arrived` then.

    It is `old` at the second look after that.
    """

    broker: Broker
    entries: dict[bytes, EntryId] = field(default_factory=dict)
    asked: asyncio.Future[bool] | None = None
    arrived: bool = False
    old: bool = False


class AckTracker:
    """The entries of one process whose messages may still come again."""

    def __init__(self, journal: Journal, attempts: RunningAttempts) -> None:
        self._journal = journal
        self._attempts = attempts
        self._batches: list[_Batch] = []

    def delaying(self, key: JobKey) -> EntryId | None:
        """Return an entry for a job that is about to be sent on its way back; none where that cannot be noted."""
        try:
            entry = self._journal.hand_over(key, contested=False)
        except JournalError:
            return None
        self._journal.answered(entry, DELAYED)
        return entry

    def settled(self, key: JobKey, broker: Broker, entry: EntryId | None) -> None:
        """Let the journal know that what came of a job is published and acknowledged."""
        if entry is None:
            return
        if key.marked or self._attempts.has(key):
            self._journal.settled(entry)
            return
        self.duplicate_seen(key, broker)
        last = self._batches[-1] if self._batches else None
        if last is None or last.broker is not broker or last.asked is not None:
            last = _Batch(broker)
            self._batches.append(last)
            asyncio.get_running_loop().call_soon(self._ask, broker)
        last.entries[key.digest] = entry

    def _ask(self, broker: Broker) -> None:
        """Ask whether the broker has what was acknowledged since the last question, unless an answer is due."""
        mine = [batch for batch in self._batches if batch.broker is broker and not batch.arrived]
        if len(mine) == 1 and mine[0].asked is None:
            batch = mine[0]
            batch.asked = broker.acknowledged()
            batch.asked.add_done_callback(partial(self._answered, batch))

    def _answered(self, batch: _Batch, asked: asyncio.Future[bool]) -> None:
        """Note at once that the broker has acknowledgements: an equal publication that comes now is another one."""
        if batch not in self._batches or asked.cancelled() or not asked.result():
            return
        self._journal.published(batch.entries.values())
        batch.arrived = True
        for other in self._batches:
            if other is not batch and other.broker is batch.broker and other.arrived and not other.old:
                other.entries.update(batch.entries)
                self._batches.remove(batch)
                break
        self._ask(batch.broker)

    def duplicate_seen(self, key: JobKey, broker: Broker) -> None:
        """Note that an equal publication came: over the same connection another, over a new one perhaps the same."""
        for batch in self._batches:
            entry = batch.entries.pop(key.digest, None)
            if entry is not None:
                self._end(entry, arrived=batch.broker is broker)

    def poll(self) -> None:
        """End what arrived a look ago or longer, and what was acknowledged in vain: to be called once a second."""
        for batch in list(self._batches):
            if batch.old or not batch.broker.alive:
                self._end_batch(batch)
            batch.old = batch.arrived

    async def flush(self, seconds: float) -> None:
        """Wait for all answers, so many seconds at most, and end everything: no more is going to be acknowledged."""
        for batch in self._batches:
            batch.asked = batch.asked or batch.broker.acknowledged()
        asked = {batch.asked for batch in self._batches if batch.asked is not None}
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        for batch in list(self._batches):
            batch.arrived = batch.arrived or (batch.asked is not None and batch.asked.done() and batch.asked.result())
            self._end_batch(batch)

    def _end_batch(self, batch: _Batch) -> None:
        self._batches.remove(batch)
        for entry in batch.entries.values():
            self._end(entry, arrived=batch.arrived and batch.broker.alive)

    def _end(self, entry: EntryId, *, arrived: bool) -> None:
        if arrived:
            self._journal.settled(entry)
        else:
            self._journal.released(entry)


def marked(provenance: Provenance, entry: EntryId | None) -> Provenance:
    """Return the provenance of what is sent back, with the mark that it has, else one after its journal entry."""
    if provenance.mark:
        return provenance
    mark = entry.name if entry is not None and entry.writer else secrets.token_hex(12)
    return provenance._replace(mark=mark, requeued=False)
