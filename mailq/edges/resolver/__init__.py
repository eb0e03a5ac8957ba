"""The DNS: a resolver with a cache, and the name servers that it asks."""

from mailq.edges.resolver.resolver import DnsResolver

__all__ = ["DnsResolver"]
