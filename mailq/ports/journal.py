"""The journal of hand-overs, and the memory of ids."""

from collections.abc import Collection
from datetime import datetime
from typing import Protocol

from mailq.core.journal.records import Entry, EntryId, JobKey, JournalStats


class Journal(Protocol):
    """Remembers hand-overs beyond the life of a process. No call waits for another process."""

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:
        """Record that a message is about to be handed over, and reserve room for its answer.

        `contested` says that another process may have the same job.

        Raises:
            JournalError: the hand-over cannot be recorded.
            Delayed: another process has handed the message over, or is about to.
        """

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Record the result in `record`, at most `MAX_ANSWER` octets (a longer one is left out); never raises."""

    def withdrawn(self, entry: EntryId) -> None:
        """Record that the message was not handed over after all; never raises."""

    def published(self, entries: Collection[EntryId]) -> None:
        """Record that the broker confirmed all publications, but may redeliver the jobs; never raises."""

    def released(self, entry: EntryId) -> None:
        """Leave an answered entry, own or taken, to the process that consumes its job next; never raises."""

    def settled(self, entry: EntryId) -> None:
        """Record that the job is settled, so that no process needs the entry any more; never raises."""

    def take(self, key: JobKey) -> Entry:
        """Return the entry of a redelivered job; the caller must settle an answered or doubtful entry.

        Raises:
            JournalError: the journal cannot be read.
        """

    def trial(self, digest: bytes) -> None:
        """Record that an isolated attempt of a message is about to begin; `digest` is 16 octets.

        Raises:
            JournalError: the attempt cannot be recorded.
        """

    def tried(self, digest: bytes) -> None:
        """Record that the process survived the isolated attempt; never raises."""

    def trials(self, digest: bytes) -> int:
        """Return how many processes died in an isolated attempt of the message.

        Raises:
            JournalError: the journal cannot be read.
        """

    def problem(self) -> str | None:
        """Return why the worker should consume no more jobs; None while the journal can be written."""

    def housekeep(self) -> tuple[str, ...]:
        """Do periodic work, once a second; return notes for the log, each once. Never raises."""

    def stats(self) -> JournalStats:
        """Return figures for metrics."""

    def close(self) -> None:
        """Close the journal; only entries that are not settled stay on disk."""


class DuplicatesError(Exception):
    """The memory of ids cannot be read or written; the text names the cause and the remedy."""


class Duplicates(Protocol):
    """Remembers the ids consumed lately, for all processes of a host and beyond their lives."""

    async def first(self, identity: bytes, content: bytes, *, again: bool) -> datetime | None:
        """Return when another publication of the id was consumed; None if this one is the first, which is remembered.

        `identity` and `content` are digests. `again` says that the message may have been consumed before; with the
        same content it is the first publication itself.

        Raises:
            DuplicatesError: the memory of ids cannot be read or written.
        """

    def close(self) -> None:
        """Close the memory of ids."""


class HandoverGuard(Protocol):
    """Permits a session to hand a message over, and records that in the journal."""

    def begin(self) -> None:
        """Permit a session to offer the message to a receiver.

        Raises:
            Delayed: no result could be recorded now.
        """

    def hand_over(self) -> None:
        """Record that the session is about to send the last octets of the message.

        Raises:
            Delayed: another process has the same job.
            JournalError: the hand-over cannot be recorded, so the session must not send them.
        """
