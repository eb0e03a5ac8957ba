"""Field types of the configuration that pydantic does not have: addresses, endpoints, names.

They decide only whether a text has the right form; that an address exists on the host or a server
answers is looked at by `mailq check`. Texts stay as they were written.
"""

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from mailq.core.answers.formula import from_formula
from mailq.core.jobs.address import AddressError, ascii_domain, host_name

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_EHLO = re.compile(r"[!-~]{1,255}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\](?::(\d{1,5}))?")


def split_endpoint(text: str) -> tuple[str, int | None]:
    """Return host and port of "host", "host:port", an IP address, or "[v6]:port".

    Raises:
        ValueError: it has none of these forms.
    """
    if _is_ip(text):
        return text, None
    brackets = _BRACKETS.fullmatch(text)
    host, _, port = (brackets[1], ":", brackets[2]) if brackets else text.rpartition(":")
    if not brackets and not host:
        host, port = text, None
    number = int(port) if port and re.fullmatch(r"[0-9]{1,5}", port) else None
    if port is not None and not 1 <= (number or 0) <= 65535:
        raise ValueError(f'"{text}" has no port between 1 and 65535 after its last colon')
    if not (_is_ip(host) if brackets or ":" in host else _HOST.fullmatch(host)):
        raise ValueError(f'"{text}" is not of the form host:port ("[v6]:port" for IPv6)')
    return host, number


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _ip(text: str) -> str:
    if not _is_ip(text):
        raise ValueError(f'"{text}" is not an IP address')
    return text


def _endpoint(text: str) -> str:
    split_endpoint(text)
    return text


def _sink(text: str) -> str:
    if text and split_endpoint(text)[1] is None:
        raise ValueError(f'"{text}" has no port; write "host:port"')
    return text


def _name_server(text: str) -> str:
    if not _is_ip(split_endpoint(text)[0]):
        raise ValueError(f'"{text}" is not an IP address; a name server cannot be given by name')
    return text


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'"{text}" is not a network such as "10.0.0.0/8" or "fd00::/8"') from None
    address = text.partition("/")[0]
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueError(f'"{text}" is not where its network begins; write "{network}", or "{address}" for it alone')
    return text


def _ehlo(text: str) -> str:
    if text and not _EHLO.fullmatch(text):
        raise ValueError("is not a host name")
    return text


def _amqp_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        valid = parts.scheme in {"amqp", "amqps"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("is not of the form amqp://user:password@host:port/vhost (or amqps://)")
    return url


def _domain(value: str) -> str:
    """Return a domain as jobs and the DNS have it: lower case, A-labels."""
    try:
        return ascii_domain(value)
    except AddressError:
        raise ValueError("is not a domain name") from None


def _mx_name(value: str) -> str:
    if _is_ip(value) or "/" in value:
        return str(ipaddress.ip_network(_network(value)))
    return _domain(value)


def _smarthost(value: str) -> str:
    """Return a smarthost as jobs have it, see `core.jobs.address.host_name`."""
    try:
        return host_name(value) if value else value
    except AddressError:
        raise ValueError("is not a host name or an IP address") from None


def _destination(value: str) -> str:
    return value if value == "*" or value.startswith("[") else _domain(value)


def _fingerprint(text: str) -> str:
    """Return a SHA-256 in lower-case hex without colons, as `openssl x509 -fingerprint -sha256` prints it or not."""
    plain = text.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ValueError(f'"{text[:100]}" is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons')
    return plain


def _host(value: str) -> str:
    """Return a host name in lower case and A-labels, or an IP address, as smarthosts are named."""
    return value if _is_ip(value) else _domain(value)


def _schedule(value: object) -> object:
    return from_formula(value) if isinstance(value, str) else value


Domain = Annotated[str, AfterValidator(_domain)]
MxName = Annotated[str, AfterValidator(_mx_name)]
SmarthostName = Annotated[str, AfterValidator(_smarthost)]
Destination = Annotated[str, AfterValidator(_destination)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
HostName = Annotated[str, AfterValidator(_host)]
IpAddress = Annotated[str, AfterValidator(_ip)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
SinkAddress = Annotated[str, AfterValidator(_sink)]
Network = Annotated[str, AfterValidator(_network)]
NameServer = Annotated[str, AfterValidator(_name_server)]
PoolName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
EhloName = Annotated[str, AfterValidator(_ehlo)]
AmqpUrl = Annotated[SecretStr, AfterValidator(_amqp_url)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
Schedule = Annotated[tuple[Seconds, ...], BeforeValidator(_schedule)]
