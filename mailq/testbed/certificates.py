"""Certificates for the lab: a test authority of one's own and the server certificates it issues.

Makes what tests and `mailq demo` need of X.509 (RFC 5280): a CA, server certificates for names and
IP addresses, and the wrong ones (expired, not yet valid, self-signed). Writes PEM files, private keys
readable by their owner alone. Decides nothing about trust and is of no use outside a lab.
"""

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Validity = Literal["valid", "expired", "future"]

_YEAR = timedelta(days=365)
_SPAN: dict[Validity, tuple[timedelta, timedelta]] = {
    "valid": (-timedelta(days=1), _YEAR),
    "expired": (-_YEAR, -timedelta(days=1)),
    "future": (timedelta(days=1), _YEAR),
}


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A server's certificate chain and private key as PEM files."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a new TLS context for a server with this certificate (TLS 1.2 and newer)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that only its own lab trusts; `file` is its certificate as PEM."""

    directory: Path
    file: Path
    certificate: x509.Certificate
    key: Key

    @classmethod
    def create(cls, directory: Path, name: str = "mailq lab CA") -> Self:
        """Make a new authority whose files, and those of what it issues, go to `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        key = _new_key("ec")
        subject = _name(name)
        usage = _key_usage(signs_certificates=True)
        certificate = (
            _builder(subject, subject, key, key, "valid")
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        file = directory / "ca.pem"
        file.write_bytes(_pem(certificate))
        return cls(directory, file, certificate, key)

    def issue(
        self,
        *names: str,
        validity: Validity = "valid",
        self_signed: bool = False,
        key_type: Literal["ec", "rsa"] = "ec",
    ) -> ServerCertificate:
        """Make a server certificate for the given host names and IP addresses (at least one).

        With `self_signed` it is not vouched for by this authority but by itself.
        """
        key = _new_key(key_type)
        subject = _name(names[0])
        issuer, signer = (subject, key) if self_signed else (self.certificate.subject, self.key)
        certificate = (
            _builder(subject, issuer, key, signer, validity)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(signer, hashes.SHA256())
        )
        stem = f"server-{certificate.serial_number:x}"
        issued = ServerCertificate(self.directory / f"{stem}.pem", self.directory / f"{stem}.key")
        issued.chain.write_bytes(_pem(certificate) if self_signed else _pem(certificate) + _pem(self.certificate))
        _write_key(issued.key, key)
        return issued

    def client_context(self) -> ssl.SSLContext:
        """Return a new TLS context for a client that trusts this authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.file))


def _new_key(key_type: Literal["ec", "rsa"]) -> Key:
    if key_type == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mailq lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, signer: Key, validity: Validity
) -> x509.CertificateBuilder:
    begin, end = _SPAN[validity]
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: Key) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
