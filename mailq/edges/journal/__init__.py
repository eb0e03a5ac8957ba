"""The journal on the host's disk: `volume` is written, the `shelf` read, the `keeper` decides."""

from mailq.edges.journal.keeper import FileJournal
from mailq.edges.journal.null import NullJournal

__all__ = ["FileJournal", "NullJournal"]
