"""The journal of hand-overs, and the memory of ids."""

from collections.abc import Collection
from datetime import datetime
from typing import Protocol

from mailq.core.journal.records import Entry, EntryId, JobKey, JournalStats


class Journal(Protocol):
    """Remembers, beyond the life of a process, what was handed over. No call waits for another process."""

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:
        """Record that a message is about to be handed over, and keep room for its answer.

        `contested` tells that another process may have the same job.

        Raises:
            JournalError: it cannot be recorded.
            Postponed: another process has handed it over, or is about to.
        """

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Record what the answer came to, in at most `MAX_ANSWER` octets (longer: without them); never raises."""

    def withdrawn(self, entry: EntryId) -> None:
        """Record that it was not handed over after all; never raises."""

    def published(self, entries: Collection[EntryId]) -> None:
        """Record that everything published for them is confirmed, but their jobs may come again; never raises."""

    def released(self, entry: EntryId) -> None:
        """Leave an answered entry, own or taken, to whoever gets its job; never raises."""

    def settled(self, entry: EntryId) -> None:
        """Record that everything published for it is confirmed, and of no use to others; never raises."""

    def take(self, key: JobKey) -> Entry:
        """Return how a job stands that came again; an answered or doubtful entry is now the caller's to settle.

        Raises:
            JournalError: it cannot be told.
        """

    def trial(self, digest: bytes) -> None:
        """Record that something suspect (16 octets name it) is about to be tried.

        Raises:
            JournalError: it cannot be recorded.
        """

    def tried(self, digest: bytes) -> None:
        """Record that the trial was survived; never raises."""

    def trials(self, digest: bytes) -> int:
        """Return how many processes died in a trial of it.

        Raises:
            JournalError: it cannot be told.
        """

    def problem(self) -> str | None:
        """Return why nothing more should be consumed, None if all is well."""

    def housekeep(self) -> tuple[str, ...]:
        """Do what is due, once a second; return what is to be said of it, each once. Never raises."""

    def stats(self) -> JournalStats:
        """Return figures for metrics."""

    def close(self) -> None:
        """Leave behind what is not settled, and nothing else."""


class DuplicatesError(Exception):
    """The memory of ids cannot be read or written; the text says why and what helps."""


class Duplicates(Protocol):
    """Remembers which ids were consumed lately, for all processes of a host and beyond their lives."""

    async def first(self, identity: bytes, content: bytes, *, again: bool) -> datetime | None:
        """Return when another publication of the id was consumed; None: this one is the first, which is remembered.

        `identity` and `content` are digests; `again` tells that the message may have been consumed before, so that it
        is the first one itself if the content is the same.

        Raises:
            DuplicatesError: nobody can tell.
        """

    def close(self) -> None:
        """Close what is open."""


class HandoverGuard(Protocol):
    """The leave to hand a message over, recorded where others see it."""

    def begin(self) -> None:
        """Ask whether a message may be offered to a receiver at all.

        Raises:
            Postponed: what came of it could not be recorded now.
        """

    def hand_over(self) -> None:
        """Note that the last octets of the message are about to be sent.

        Raises:
            Postponed: another process has the same job.
            JournalError: it cannot be noted, so it must not be done.
        """
