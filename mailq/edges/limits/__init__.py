"""What the processes of one host share of the limits: a `file` that all have mapped, a `table` that decides in it."""

from mailq.edges.limits.table import SharedLimits

__all__ = ["SharedLimits"]
