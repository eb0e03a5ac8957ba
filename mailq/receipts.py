"""First consumptions that are done, until the broker is known to have their acknowledgements; and the marks of others.

At its first consumption a publication has no mark, and the journal knows it by its content. The journal keeps what came
of it while the message may come again: until the broker has answered something that was asked behind the
acknowledgement, and a moment longer, since a broker may end before it has it on its disk. From then on only an equal
publication can come, which is another job. If an equal one comes before that, the entry is given up at once: to send
one of two equal jobs twice is less of a harm than to send one of them never. What goes back to the outbox is marked
after its entry, so that two copies of it are known for one publication.
"""

import asyncio
import secrets
from dataclasses import dataclass, field

from mailq.core.journal import PARKED, EntryId, JobKey, JournalError
from mailq.core.provenance import Provenance
from mailq.flights import Flights
from mailq.ports import Broker, Journal


@dataclass(slots=True, eq=False)
class _Batch:
    """What was acknowledged over one connection within one look; `asked` is what tells that it arrived."""

    broker: Broker
    entries: dict[bytes, EntryId] = field(default_factory=dict)
    asked: asyncio.Future[bool] | None = None
    arrived: bool = False


class Receipts:
    """The entries of one process whose messages may still come again."""

    def __init__(self, journal: Journal, flights: Flights) -> None:
        self._journal = journal
        self._flights = flights
        self._batches: list[_Batch] = []

    def parking(self, key: JobKey) -> EntryId | None:
        """Return an entry for a job that is about to be sent on its way back; none where that cannot be noted."""
        try:
            entry = self._journal.hand_over(key, contested=False)
        except JournalError:
            return None
        self._journal.answered(entry, PARKED)
        return entry

    def done(self, key: JobKey, broker: Broker, entry: EntryId | None) -> None:
        """Let the journal know that what came of a job is published and acknowledged."""
        if entry is None:
            return
        if key.marked or self._flights.has(key):
            self._journal.settled(entry)
            return
        self.equal(key, broker)
        last = self._batches[-1] if self._batches else None
        if last is None or last.broker is not broker or last.asked is not None:
            last = _Batch(broker)
            self._batches.append(last)
        last.entries[key.digest] = entry

    def equal(self, key: JobKey, broker: Broker) -> None:
        """Note that an equal publication came: over the same connection another, over a new one perhaps the same."""
        for batch in self._batches:
            entry = batch.entries.pop(key.digest, None)
            if entry is not None:
                self._end(entry, arrived=batch.broker is broker)

    def look(self) -> None:
        """Ask for what is not asked for yet, and end what was answered a look ago: to be called once a second."""
        for batch in list(self._batches):
            if batch.arrived or not batch.broker.alive:
                self._end_batch(batch)
            elif batch.asked is None:
                self._journal.published(batch.entries.values())
                batch.asked = batch.broker.acknowledged()
            else:
                batch.arrived = batch.asked.done() and batch.asked.result()

    async def last(self, seconds: float) -> None:
        """Wait for all answers, so many seconds at most, and end everything: no more is going to be acknowledged."""
        for batch in self._batches:
            batch.asked = batch.asked or batch.broker.acknowledged()
        asked = {batch.asked for batch in self._batches if batch.asked is not None}
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        for batch in list(self._batches):
            batch.arrived = batch.asked is not None and batch.asked.done() and batch.asked.result()
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
