"""TLS towards receivers: the client context, and the facts of a session for the result.

The context is built once, since that costs some 20 ms. It verifies nothing during the handshake:
mail between strangers is encrypted whenever both sides can (RFC 7435), and a connection refused over
a bad certificate would go out in plaintext or not at all. Python then tells nothing about the
certificate, so it is taken as octets and judged afterwards by `core.smtp.certificate`: the result says
whether it holds and why not, and whoever wants more than opportunistic TLS can decide on that.

The chain that the server sent comes from `SSLObject.get_unverified_chain`, public since Python 3.13;
before that the same function is reached through the private object beneath. Where it is missing the
server's own certificate is judged alone. Judging costs a fraction of a millisecond and the same
hosts come again and again, so what was found is kept for an hour at most.
"""

import contextlib
import hashlib
import re
import ssl
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.verification import Store

from mailq.config.delivery import TlsConfig
from mailq.core.smtp.certificate import OK, describe, verify
from mailq.ports.host import Now

CACHE_SIZE = 2000
"""Certificates, by chain and host, whose description is kept."""

CACHE_TIME = timedelta(hours=1)
"""How long a verdict on a certificate is reused."""

_DER = 2  # _ssl.ENCODING_DER, for Certificate.public_bytes
_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, named since Python 3.12

_VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}


class Security:
    """The TLS context for all connections, and what is known of their sessions."""

    def __init__(self, config: TlsConfig, now: Now = lambda: datetime.now(UTC)) -> None:
        self.context = client_context(config)
        self._now = now
        self._ca_file = config.ca_file
        self._ciphers = {cipher["name"]: cipher for cipher in self.context.get_ciphers()}
        self._known: OrderedDict[tuple[bytes, str], tuple[datetime, dict[str, Any]]] = OrderedDict()
        if config.ca_file:
            _ = self._store  # a wrong file is an error at the start, not in the first delivery

    def facts(self, ssl_object: ssl.SSLObject, host: str) -> dict[str, Any]:
        """Return the result properties `cipher` and `certificate` of a session with MX host `host`.

        Empty before the handshake; without `certificate` if the server showed none. The objects
        within may be shared between results and are not to be changed.
        """
        facts: dict[str, Any] = {}
        if cipher := ssl_object.cipher():
            facts["cipher"] = self._cipher(*cipher, ssl_object.version())
        if cipher and (chain := _chain(ssl_object)):
            facts["certificate"] = self._certificate(chain, host)
        return facts

    def _cipher(self, name: str, family: str, bits: int, protocol: str | None) -> dict[str, Any]:
        """Return MailerQ's `cipher`, whose `version` is the cipher's family, and the TLS version spoken."""
        record: dict[str, Any] = {"name": name, "bits": bits}
        if known := self._ciphers.get(name):
            record["algbits"] = known["alg_bits"]
        record["version"] = family
        if known:
            record["id"] = known["id"] & 0xFFFF
        if protocol:
            record["protocol"] = protocol
        return record

    def _certificate(self, chain: list[bytes], host: str) -> dict[str, Any]:
        digest = hashlib.sha256()
        for der in chain:
            digest.update(len(der).to_bytes(4) + der)
        key = (digest.digest(), host)
        now = self._now()
        kept = self._known.get(key)
        if kept and now - kept[0] < CACHE_TIME:
            self._known.move_to_end(key)
            return kept[1]
        result = verify(chain, host, self._store, now)
        record = {**describe(chain[0]), "verified": result == OK, "result": result}
        self._known[key] = (now, record)
        if len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        return record

    @cached_property
    def _store(self) -> Store | None:
        return load_store(self._ca_file)


def client_context(config: TlsConfig) -> ssl.SSLContext:
    """Return a context that encrypts with whatever the server can do from `min_version` on.

    Where TLS older than 1.2 is welcome, so are the short keys and old hashes that come with it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0" if config.min_version in {"1.0", "1.1"} else "DEFAULT:@SECLEVEL=1")
    context.options |= _LEGACY_SERVER_CONNECT
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = _VERSIONS[config.min_version]
    return context


def load_store(ca_file: str) -> Store | None:
    """Return the trusted certificates of a PEM file, or of the system if it is empty; None: there are none.

    Raises:
        ValueError: the file cannot be read or holds no certificate; names it.
    """
    if not ca_file:
        with warnings.catch_warnings(action="ignore"):  # old roots have odd serial numbers
            certificates = [found for path in _system_files() for found in _read(path)]
        return Store(certificates) if certificates else None
    try:
        return Store(x509.load_pem_x509_certificates(Path(ca_file).read_bytes()))
    except (OSError, ValueError) as trouble:
        raise ValueError(f"tls.ca_file: no CA certificates can be read from {ca_file}: {trouble}") from None


def _system_files() -> Iterable[Path]:
    """Return the files in which OpenSSL looks for trusted certificates; SSL_CERT_FILE and _DIR count."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return [Path(paths.cafile)]
    return sorted(Path(paths.capath).glob("*.[0-9]")) if paths.capath else []


_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def _read(path: Path) -> Iterable[x509.Certificate]:
    """Yield the certificates of a file of the system; one that cannot be read does not spoil the others."""
    with contextlib.suppress(OSError):
        for block in _PEM.findall(path.read_bytes()):
            with contextlib.suppress(ValueError):
                yield x509.load_pem_x509_certificate(block)


def _chain(ssl_object: ssl.SSLObject) -> list[bytes]:
    """Return the certificates that the server sent, its own first; empty if it sent none."""
    leaf = ssl_object.getpeercert(binary_form=True)
    if not leaf:
        return []
    source = ssl_object if hasattr(ssl_object, "get_unverified_chain") else getattr(ssl_object, "_sslobj", None)
    try:
        sent = source.get_unverified_chain() or []  # type: ignore[union-attr]  # private before 3.13
        chain = [found if isinstance(found, bytes) else found.public_bytes(_DER) for found in sent]
    except (AttributeError, TypeError, ValueError):
        return [leaf]
    return chain if chain[:1] == [leaf] else [leaf]
