"""Whose certificate will do before a login is sent: verified by chain and host name, or known by its fingerprint. Pure.

Mail between strangers is encrypted without asking for proof (RFC 7435). A password is meant for one server, so that
server proves who it is (RFC 8314 section 3.2, RFC 9525). `edges.tls` verifies certificates; here is what that decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STATUS = "4.7.5"
"""Enhanced status of a certificate that does not hold (RFC 3463: cryptographic failure)."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The proof that a session needs; sessions with other proof are never shared.

    `fingerprints` are SHA-256 of certificates, in lower-case hex; a certificate with one of them needs no CA.
    """

    fingerprints: tuple[str, ...] = ()

    def problem(self, certificate: Mapping[str, Any] | None, host: str) -> str | None:
        """Return which check a server's `certificate` (the result property) failed, and the remedy; None: it holds."""
        if certificate is None:
            return f"{host} has shown no certificate, so no password is sent to it"
        fingerprint = certificate.get("fingerprint", "")
        if certificate.get("verified") is True or fingerprint in self.fingerprints:
            return None
        known = " and its fingerprint is not among those configured" if self.fingerprints else ""
        return (
            f"no password is sent: the certificate of {host} is not verified ({certificate.get('result')}){known};"
            f" set tls.ca_file, or list its fingerprint {fingerprint} in smarthost.fingerprints"
        )
