"""The wire, one TCP connection to one server: the `dialer` opens it, the `stream` carries its transactions."""

from mailq.edges.wire.dialer import TcpDialer

__all__ = ["TcpDialer"]
