"""Journal entries of acknowledged messages, kept until the broker has the acknowledgements; and marks of publications.

A publication has no mark at its first consumption, so the journal knows it by its content. The journal keeps its entry
while the broker may redeliver the message. That time ends when the broker answers a request sent after the
acknowledgement. The tracker keeps the entry one or two seconds longer, since a broker may crash before an
acknowledgement is on its disk. From then on an equal publication is another job. If an equal publication comes earlier,
the tracker gives the entry up at once: a duplicate is less harm than a lost job. A job that returns to the outbox gets
a mark from its journal entry, so that the journal knows two copies as one publication.
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
    """Acknowledgements over one connection.

    `asked` is done when the broker has them, and sets `arrived`. The first `poll` after that sets `old`.
    """

    broker: Broker
    entries: dict[bytes, EntryId] = field(default_factory=dict)
    asked: asyncio.Future[bool] | None = None
    arrived: bool = False
    old: bool = False


class AckTracker:
    """The journal entries of one process whose messages the broker may still redeliver."""

    def __init__(self, journal: Journal, attempts: RunningAttempts) -> None:
        self._journal = journal
        self._attempts = attempts
        self._batches: list[_Batch] = []

    def delaying(self, key: JobKey) -> EntryId | None:
        """Return an entry for a job that is about to be delayed; None if the journal cannot record one."""
        try:
            entry = self._journal.hand_over(key, contested=False)
        except JournalError:
            return None
        self._journal.answered(entry, DELAYED)
        return entry

    def settled(self, key: JobKey, broker: Broker, entry: EntryId | None) -> None:
        """Record in the journal that a job is settled, at once or when the broker has the acknowledgement."""
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
        """Ask whether the broker has the newest acknowledgements, unless an answer is awaited."""
        mine = [batch for batch in self._batches if batch.broker is broker and not batch.arrived]
        if len(mine) == 1 and mine[0].asked is None:
            batch = mine[0]
            batch.asked = broker.acknowledged()
            batch.asked.add_done_callback(partial(self._answered, batch))

    def _answered(self, batch: _Batch, asked: asyncio.Future[bool]) -> None:
        """Record that the broker has acknowledgements: an equal publication is another job from now on."""
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
        """End the entry of an equal publication; over a new connection that publication may be the same job."""
        for batch in self._batches:
            entry = batch.entries.pop(key.digest, None)
            if entry is not None:
                self._end(entry, arrived=batch.broker is broker)

    def poll(self) -> None:
        """End batches that arrived before the last call, and those of lost connections; to be called once a second."""
        for batch in list(self._batches):
            if batch.old or not batch.broker.alive:
                self._end_batch(batch)
            batch.old = batch.arrived

    async def flush(self, seconds: float) -> None:
        """Wait for all answers, `seconds` at most, and end every batch; the worker acknowledges nothing after that."""
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
    """Return the provenance of a job that returns to the outbox, with its mark or one from its journal entry."""
    if provenance.mark:
        return provenance
    mark = entry.name if entry is not None and entry.writer else secrets.token_hex(12)
    return provenance._replace(mark=mark, requeued=False)
