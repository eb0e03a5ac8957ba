"""A server's certificate: what the result says of it, and whether it holds for the MX host.

`describe` gives MailerQ's `certificate` object; `verify` the verdict on it, in OpenSSL's words where
it has one. Nothing here refuses a connection: that is the TLS policy's affair. A certificate comes
from a stranger, so both functions return what they can for whatever octets they get, bounded.

The chain is verified by cryptography (RFC 5280 section 6.1: signatures, validity, CA constraints,
path length, name constraints), with the name kept apart from it, and without the rules that browsers
add for public sites: mail servers with certificates of a private CA are not called bad for a missing
key identifier. The name is compared by RFC 9525 section 6: DNS names, a wildcard for the whole first
label, IP addresses. Where a certificate has no DNS names its common name counts, as RFC 7672
section 3.2.3 allows for mail, unless a CA above is limited to certain names.
"""

import hashlib
import ipaddress
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from mailq.core.escape import replaced
from mailq.core.times import format_time

MAX_NAMES = 100
"""Alternative names that are shown."""

MAX_TEXT = 255
"""Characters of one name that are shown."""

MAX_CHAIN = 10
"""Certificates of a chain that are looked at."""

OK = "ok"
"""What `verify` returns for a certificate that holds."""

_STRANGE = (
    ValueError,
    TypeError,
    OverflowError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises over certificates that are not as they should be."""

_SHOWN = {
    "common": NameOID.COMMON_NAME,
    "country": NameOID.COUNTRY_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "state": NameOID.STATE_OR_PROVINCE_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
}

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", bound=x509.ExtensionType)


def describe(der: bytes) -> dict[str, Any]:
    """Return the `certificate` result property for a certificate, without `verified` and `result`.

    Times are UTC. `keyusage` has bit i for bit i of the KeyUsage extension (RFC 5280 section
    4.2.1.3), so digitalSignature is 1: of the usual masks the only one in which MailerQ's documented
    value of 1 makes sense. `fingerprint` is the SHA-256 of the certificate in hex. What the
    certificate does not have, or has in a form that cannot be read, is absent.
    """
    record: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):  # of what strangers put into certificates
        certificate = _load(der)
        for name, read in _PROPERTIES.items():
            value = _tried(read, certificate) if certificate else None
            if value is not None and value not in ({}, []):
                record[name] = value
    record["fingerprint"] = hashlib.sha256(der).hexdigest()
    return record


def verify(chain: Sequence[bytes], host: str, store: Store | None, now: datetime) -> str:
    """Return "ok", or why the certificate does not hold for `host` (a host name or an IP address).

    `chain` is what the server sent, its own certificate first. Trust is judged before time and time
    before the name, so that the first thing to repair is named.
    """
    with warnings.catch_warnings(action="ignore"):
        leaf, *others = [_load(der) for der in chain[:MAX_CHAIN]] or [None]
        if leaf is None:
            return "certificate cannot be read"
        issuers = [certificate for certificate in others if certificate is not None]
        try:
            return _verify(leaf, issuers, host, store, now)
        except _STRANGE:
            return "certificate rejected"


def _verify(
    leaf: x509.Certificate, issuers: list[x509.Certificate], host: str, store: Store | None, now: datetime
) -> str:
    moment = min(max(now, leaf.not_valid_before_utc), leaf.not_valid_after_utc)
    try:
        path = _path(leaf, issuers, store, moment)
    except VerificationError as trouble:
        return _reason(str(trouble), leaf, issuers, now)
    if now > moment:
        return "certificate has expired"
    if now < moment:
        return "certificate is not yet valid"
    if not _for_servers(leaf):
        return "unsuitable certificate purpose"
    return _name_trouble(leaf, path, host)


def _path(
    leaf: x509.Certificate, issuers: list[x509.Certificate], store: Store | None, moment: datetime
) -> list[x509.Certificate]:
    """Return the certificates from the leaf to one that is trusted."""
    if store is None:
        raise VerificationError("no interior errors")
    builder = PolicyBuilder().store(store).time(moment).extension_policies(ca_policy=_ISSUER, ee_policy=_LEAF)
    return builder.build_client_verifier().verify(leaf, issuers).chain


def _is_ca(_policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("basicConstraints: not a CA")


def _may_sign(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("keyUsage: must not sign certificates")


_LEAF = ExtensionPolicy.permit_all()
_ISSUER = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_ca)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
)

_REASONS = {
    "signature does not match": "certificate signature failure",
    "permitted name constraints": "permitted subtree violation",
    "excluded name constraint": "excluded subtree violation",
    "path length": "path length constraint exceeded",
    "critical extensions": "unhandled critical extension",
    "basicConstraints": "invalid CA certificate",
    "keyUsage": "invalid CA certificate",
}
"""What cryptography says of a chain, and OpenSSL's words for it."""


def _reason(text: str, leaf: x509.Certificate, issuers: list[x509.Certificate], now: datetime) -> str:
    """Return why no chain to a trusted certificate was found."""
    if _self_signed(leaf):
        return "self-signed certificate"
    if "validation time" in text:
        early = any(now < issuer.not_valid_before_utc for issuer in issuers)
        return "certificate is not yet valid" if early else "certificate has expired"
    for said, reason in _REASONS.items():
        if said in text:
            return reason
    if any(_self_signed(issuer) for issuer in issuers):
        return "self-signed certificate in certificate chain"
    return "unable to get local issuer certificate" if "no interior errors" in text else "certificate rejected"


def _for_servers(leaf: x509.Certificate) -> bool:
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    wanted = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    return usage is None or any(purpose in usage for purpose in wanted)


def _name_trouble(leaf: x509.Certificate, path: list[x509.Certificate], host: str) -> str:
    """Return "ok" if the certificate is for `host`."""
    names = _extension(leaf, x509.SubjectAlternativeName) or x509.SubjectAlternativeName([])
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        patterns = names.get_values_for_type(x509.DNSName)
        if not patterns and not any(_extension(issuer, x509.NameConstraints) for issuer in path):
            patterns = [_name(leaf.subject).get("common", "")]
        return OK if any(_matches(pattern, host) for pattern in patterns) else "hostname mismatch"
    return OK if ip in names.get_values_for_type(x509.IPAddress) else "IP address mismatch"


def _matches(pattern: str, host: str) -> bool:
    """Tell whether a DNS name of a certificate, perhaps with a wildcard, is that of the host."""
    pattern, host = pattern.lower().removesuffix("."), host.lower().removesuffix(".")
    if pattern.startswith("*."):
        label, _, domain = host.partition(".")
        return bool(label) and "." in domain and pattern[2:] == domain
    return bool(host) and pattern == host


def _load(der: bytes) -> x509.Certificate | None:
    return _tried(x509.load_der_x509_certificate, der)


def _tried(read: Callable[[A], T], argument: A) -> T | None:
    try:
        return read(argument)
    except _STRANGE:
        return None


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _key_usage(certificate: x509.Certificate) -> int | None:
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None:
        return None
    names = _USAGES if usage.key_agreement else _USAGES[:-2]
    return sum(1 << place for place, name in enumerate(names) if getattr(usage, name))


def _self_signed(certificate: x509.Certificate) -> bool:
    if certificate.issuer != certificate.subject:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except _STRANGE:
        return False
    return True


def _name(name: x509.Name) -> dict[str, str]:
    values = {key: name.get_attributes_for_oid(oid) for key, oid in _SHOWN.items()}
    return {key: _text(found[0].value) for key, found in values.items() if found}


def _alternatives(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName) or ()
    shown = (name for name in names if isinstance(name, x509.DNSName | x509.IPAddress))
    return [_text(str(name.value)) for name in islice(shown, MAX_NAMES)]


def _text(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode("utf-8", "replace")
    return replaced(text[:MAX_TEXT]).replace("\t", "?")


_PROPERTIES: dict[str, Callable[[x509.Certificate], Any]] = {
    "notbefore": lambda certificate: format_time(certificate.not_valid_before_utc),
    "notafter": lambda certificate: format_time(certificate.not_valid_after_utc),
    "version": lambda certificate: certificate.version.value + 1,
    "keyusage": _key_usage,
    "self-signed": _self_signed,
    "subject": lambda certificate: _name(certificate.subject),
    "issuer": lambda certificate: _name(certificate.issuer),
    "altnames": _alternatives,
}
