"""Where the broker is and who logs in: the AMQP URL taken apart, and how TLS is verified.

An empty path and "/" both mean the default virtual host, as all common clients have it. The
password is in no text that leaves here.
"""

import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.provenance import Outbox
from mailq.ports.broker import BrokerError


@dataclass(frozen=True, slots=True)
class Address:
    """One broker as one user sees it; `tls` is None for amqp://."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: ssl.SSLContext | None = field(repr=False)

    def __str__(self) -> str:
        """Return host and port for texts."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of(cls, config: RabbitConfig) -> "Address":
        """Return the address that is configured; loads the CA certificates, so call it once a life.

        Raises:
            BrokerError: the URL makes no sense, or the CA file cannot be read.
        """
        try:
            parts = urlsplit(config.url.get_secret_value())
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in {"amqp", "amqps"}:
            raise BrokerError("rabbitmq.url is not of the form amqp://user:password@host:port/vhost")
        if parts.query or parts.fragment:
            raise BrokerError("rabbitmq.url takes no parameters after ? or #; use the keys of the table instead")
        secure = parts.scheme == "amqps"
        return cls(
            host,
            port or (5671 if secure else 5672),
            unquote(parts.username) if parts.username is not None else "guest",
            unquote(parts.password) if parts.password is not None else "guest",
            unquote(parts.path[1:]) or "/",
            _context(config.ca_file) if secure else None,
        )


def outbox_of(config: RabbitConfig) -> Outbox:
    """Return the outbox of the virtual host, with the secret for mailq's own headers.

    Raises:
        BrokerError: the URL makes no sense, or the CA file cannot be read.
    """
    address = Address.of(config)
    return Outbox(address.vhost, config.outbox, config.header_secret.get_secret_value() or address.password)


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise BrokerError(f"rabbitmq.ca_file {ca_file!r} cannot be used: {error.strerror or error}") from error
