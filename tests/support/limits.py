"""Tables of limits for tests: one that nobody else has, and one as another process has it."""

import os
import tempfile
import weakref

from mailq.edges.limits import SharedLimits
from mailq.edges.limits.file import LimitsFile


def private_table(*, slots: int = 1024) -> SharedLimits:
    """Return a table in a directory of its own, which goes with it."""
    home = tempfile.TemporaryDirectory(prefix="mailq-limits-")
    table = SharedLimits(home.name, slots=slots)
    weakref.finalize(table, home.cleanup)
    assert table.problem() is None
    return table


def beside(table: SharedLimits, column: int) -> SharedLimits:
    """Return the same table as another process has it. In this one no lock keeps the column: it has no mark."""
    other = SharedLimits(table._directory, slots=table._slots)
    other._attach(LimitsFile(os.dup(table._descriptor), column, table._slots))
    table._top[0] = max(table._top[0], column + 1)
    return other
