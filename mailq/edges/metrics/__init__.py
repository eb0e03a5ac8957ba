"""Metrics: what the worker processes count (`process`), and one page of it all (`fleet`)."""

from mailq.edges.metrics.fleet import Fleet
from mailq.edges.metrics.process import BOUNDS, EVENTS, KEYS, SILENCE, STATES, Heartbeat, Metrics, Snapshot

__all__ = ["BOUNDS", "EVENTS", "KEYS", "SILENCE", "STATES", "Fleet", "Heartbeat", "Metrics", "Snapshot"]
