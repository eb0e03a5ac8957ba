"""The journal on the host's disk: the `pen` writes a `volume`, the `shelf` is read, the `keeper` decides."""

from mailq.edges.journal.file_journal import FileJournal
from mailq.edges.journal.null import NullJournal

__all__ = ["FileJournal", "NullJournal"]
