"""Jobs that nobody named and that are done, until the broker is known to have their acknowledgements.

A job with an identity that comes again is known for what it is. Of one without, the journal keeps what came of it
while it may come again: until the broker has answered something that was asked behind its acknowledgement, and a
moment longer, since a broker may end before it has it on its disk. From then on only an equal job can come, which is
another e-mail. If an equal one comes before that, the entry is given up at once: to send one of two
equal jobs twice is less of a harm than to send one of them never. What goes back to the outbox is named after its
entry, so that it is known for one job if it goes back twice.
"""

import asyncio
from dataclasses import dataclass, field

from mailq.core.job import Job
from mailq.core.journal import PARKED, EntryId, JournalError, key_of
from mailq.flights import Flights
from mailq.ports import Broker, Journal

_Key = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Batch:
    """What was acknowledged over one connection within one look; `asked` is what tells that it arrived."""

    broker: Broker
    entries: dict[_Key, EntryId] = field(default_factory=dict)
    asked: asyncio.Future[bool] | None = None
    arrived: bool = False


class Receipts:
    """The entries of one process whose jobs may still come again."""

    def __init__(self, journal: Journal, flights: Flights) -> None:
        self._journal = journal
        self._flights = flights
        self._batches: list[_Batch] = []

    def parking(self, job: Job) -> EntryId | None:
        """Return an entry for a job that is about to be sent on its way back; none where that cannot be noted."""
        try:
            entry = self._journal.hand_over(key_of(job), contested=False)
        except JournalError:
            return None
        self._journal.answered(entry, PARKED)
        return entry

    def done(self, job: Job, broker: Broker, entry: EntryId | None) -> None:
        """Let the journal know that what came of a job is published and acknowledged."""
        if entry is None:
            return
        if job.identified or self._flights.has(job):
            self._journal.settled(entry)
            return
        self.equal(job, broker)
        self._journal.published(entry)
        last = self._batches[-1] if self._batches else None
        if last is None or last.broker is not broker or last.asked is not None:
            last = _Batch(broker)
            self._batches.append(last)
        last.entries[job.identity, job.attempt] = entry

    def equal(self, job: Job, broker: Broker) -> None:
        """Note that an equal job came: another one over the same connection, perhaps the same one over a new one."""
        for batch in self._batches:
            entry = batch.entries.pop((job.identity, job.attempt), None)
            if entry is not None:
                self._end(entry, arrived=batch.broker is broker)

    def look(self) -> None:
        """Ask for what is not asked for yet, and end what was answered a look ago: to be called once a second."""
        for batch in list(self._batches):
            if batch.arrived or not batch.broker.alive:
                self._end_batch(batch)
            elif batch.asked is None:
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


def named(job: Job, entry: EntryId | None) -> Job:
    """Return a job with a name: that of its entry, if nobody gave it one and there is a journal."""
    return job if job.identified or entry is None or not entry.writer else job.called(entry.name)
