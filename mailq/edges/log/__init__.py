"""The log of a process: what `observer` makes of events, `lines` as octets, `outlet` on standard error."""

from mailq.edges.log.observer import Log, Logger, configure

__all__ = ["Log", "Logger", "configure"]
