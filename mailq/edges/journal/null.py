"""The `Journal` of a worker that is to keep none: it costs nothing and knows nothing."""

from collections.abc import Collection

from mailq.core.journal.records import Entry, EntryId, EntryState, JobKey, JournalStats


class NullJournal:
    """A journal that keeps nothing: a job that comes again is a new one."""

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:  # noqa: ARG002 - the port's
        """Return a name for nothing."""
        return _NOTHING

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Keep nothing."""

    def withdrawn(self, entry: EntryId) -> None:
        """Keep nothing."""

    def published(self, entries: Collection[EntryId]) -> None:
        """Keep nothing."""

    def released(self, entry: EntryId) -> None:
        """Keep nothing."""

    def settled(self, entry: EntryId) -> None:
        """Keep nothing."""

    def take(self, key: JobKey) -> Entry:  # noqa: ARG002 - the port's
        """Know nothing."""
        return _UNKNOWN

    def trial(self, digest: bytes) -> None:
        """Keep nothing."""

    def tried(self, digest: bytes) -> None:
        """Keep nothing."""

    def trials(self, digest: bytes) -> int:  # noqa: ARG002 - the port's
        """Know of none."""
        return 0

    def problem(self) -> str | None:
        """Have none."""
        return None

    def housekeep(self) -> tuple[str, ...]:
        """Do nothing."""
        return ()

    def stats(self) -> JournalStats:
        """Return zeros."""
        return JournalStats()

    def close(self) -> None:
        """Leave nothing."""


_NOTHING = EntryId(b"", 0)
_UNKNOWN = Entry(EntryState.UNKNOWN)
