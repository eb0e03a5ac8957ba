"""TLS sessions with real servers: what each certificate and cipher comes to in the result."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mailq.config.delivery import TlsConfig
from mailq.edges import tls
from mailq.edges.tls import Security, client_context, load_store

HOST = "mx.example.com"
NOW = datetime.now(UTC)
CA = trustme.CA()
OTHER_CA = trustme.CA()
MIDDLE = CA.create_child_ca()
ECDSA, RSA = trustme.KeyType.ECDSA, trustme.KeyType.RSA


@pytest.fixture
def ca_file(tmp_path):
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def security(ca_file):
    return Security(TlsConfig(ca_file=ca_file))


def server_context(certificate, **settings):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for name, value in settings.items():
            setattr(context, name, value)
    return context


def self_signed(tmp_path):
    """Return a server context with a certificate that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
    certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
    pem = tmp_path / "self.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@asynccontextmanager
async def session(context, security) -> AsyncIterator[ssl.SSLObject]:
    """Run a TLS server and yield a client's session with it."""

    async def serve(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=security.context, server_hostname=HOST)
        try:
            yield writer.get_extra_info("ssl_object")
        finally:
            writer.close()
            await writer.wait_closed()


async def facts(context, security, host=HOST):
    async with session(context, security) as ssl_object:
        return security.facts(ssl_object, host)


CERTIFICATES = {
    "good, EC": (CA, {"key_type": ECDSA}, HOST, "ok"),
    "good, RSA": (CA, {"key_type": RSA}, HOST, "ok"),
    "through a middle": (MIDDLE, {}, HOST, "ok"),
    "wildcard": (CA, {"identities": ["*.example.com"]}, HOST, "ok"),
    "IPv4 subject": (CA, {"identities": ["192.0.2.1"]}, "192.0.2.1", "ok"),
    "IPv6 subject": (CA, {"identities": ["2001:db8::1"]}, "2001:db8:0::1", "ok"),
    "wrong name": (CA, {}, "mx.example.org", "hostname mismatch"),
    "wrong IP subject": (CA, {"identities": ["192.0.2.1"]}, "192.0.2.2", "IP address mismatch"),
    "unknown CA": (OTHER_CA, {}, HOST, "unable to get local issuer certificate"),
    "expired": (
        CA,
        {"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=1)},
        HOST,
        "certificate has expired",
    ),
    "not yet valid": (CA, {"not_before": NOW + timedelta(days=1)}, HOST, "certificate is not yet valid"),
}


@pytest.mark.parametrize(("ca", "options", "host", "result"), CERTIFICATES.values(), ids=CERTIFICATES)
async def test_certificates(security, ca, options, host, result):
    options = {"identities": [HOST], **options}
    certificate = ca.issue_cert(*options.pop("identities"), **options)
    shown = (await facts(server_context(certificate), security, host))["certificate"]
    assert (shown["verified"], shown["result"]) == (result == "ok", result)
    assert shown["version"] == 3
    assert shown["self-signed"] is False
    assert len(shown["fingerprint"]) == 64


async def test_self_signed(security, tmp_path):
    shown = (await facts(self_signed(tmp_path), security))["certificate"]
    assert (shown["verified"], shown["result"], shown["self-signed"]) == (False, "self-signed certificate", True)
    assert shown["subject"] == shown["issuer"] == {"common": HOST}


@pytest.mark.parametrize(("ca", "result"), [(CA, "ok"), (OTHER_CA, "self-signed certificate in certificate chain")])
async def test_the_root_sent_along(security, tmp_path, ca, result):
    certificate = ca.issue_cert(HOST)
    pem = tmp_path / "chain.pem"
    pem.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + ca.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    assert (await facts(context, security))["certificate"]["result"] == result


async def test_without_the_chain_the_leaf_is_judged_alone(security):
    async with session(server_context(MIDDLE.issue_cert(HOST)), security) as ssl_object:

        class Bare:
            cipher, version, getpeercert = ssl_object.cipher, ssl_object.version, ssl_object.getpeercert

        shown = security.facts(Bare(), HOST)["certificate"]
        assert shown["result"] == "unable to get local issuer certificate"
        assert security.facts(ssl_object, HOST)["certificate"]["result"] == "ok"


@pytest.mark.parametrize(
    ("version", "protocol", "name", "bits", "identity", "family"),
    [
        ("TLSv1_2", "TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", 128, 49199, "TLSv1.2"),
        ("TLSv1_2", "TLSv1.2", "AES256-SHA", 256, 0x35, "SSLv3"),
        ("TLSv1_1", "TLSv1.1", "ECDHE-RSA-AES256-SHA", 256, 0xC014, "TLSv1.0"),
        ("TLSv1", "TLSv1", "ECDHE-RSA-AES128-SHA", 128, 0xC013, "TLSv1.0"),
    ],
)
async def test_ciphers(security, version, protocol, name, bits, identity, family):
    spoken = ssl.TLSVersion[version]
    context = server_context(CA.issue_cert(HOST, key_type=RSA), minimum_version=spoken, maximum_version=spoken)
    context.set_ciphers(f"{name}:@SECLEVEL=0")
    assert (await facts(context, security))["cipher"] == {
        "name": name,
        "bits": bits,
        "algbits": bits,
        "version": family,
        "id": identity,
        "protocol": protocol,
    }


async def test_tls_1_3(security):
    context = server_context(CA.issue_cert(HOST), minimum_version=ssl.TLSVersion.TLSv1_3)
    cipher = (await facts(context, security))["cipher"]
    assert (cipher["protocol"], cipher["version"]) == ("TLSv1.3", "TLSv1.3")
    assert cipher["id"] in {0x1301, 0x1302, 0x1303}


@pytest.mark.parametrize(
    ("minimum", "spoken", "good"),
    [
        ("1.0", "TLSv1", True),
        ("1.1", "TLSv1", False),
        ("1.1", "TLSv1_1", True),
        ("1.2", "TLSv1_1", False),
        ("1.2", "TLSv1_2", True),
        ("1.3", "TLSv1_2", False),
        ("1.3", "TLSv1_3", True),
    ],
)
async def test_min_version(ca_file, minimum, spoken, good):
    security = Security(TlsConfig(ca_file=ca_file, min_version=minimum))
    version = ssl.TLSVersion[spoken]
    context = server_context(CA.issue_cert(HOST), minimum_version=version, maximum_version=version)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if good:
        assert (await facts(context, security))["certificate"]["verified"] is True
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await facts(context, security)


def test_contexts_verify_nothing_in_the_handshake():
    context = client_context(TlsConfig())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_before_the_handshake_there_are_no_facts(security):
    assert security.facts(security.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()), HOST) == {}


async def test_a_verdict_is_kept_for_an_hour_by_chain_and_host(ca_file, monkeypatch):
    judged = []
    monkeypatch.setattr(tls, "verify", lambda chain, host, store, now: judged.append((host, now)) or "ok")
    clock = [NOW]
    security = Security(TlsConfig(ca_file=ca_file), now=lambda: clock[0])
    for certificate in (CA.issue_cert(HOST), CA.issue_cert(HOST)):
        async with session(server_context(certificate), security) as ssl_object:
            judged.clear()
            for host, minutes in ((HOST, 0), (HOST, 59), ("other.example", 59), (HOST, 60), (HOST, 61)):
                clock[0] = NOW + timedelta(minutes=minutes)
                assert security.facts(ssl_object, host)["certificate"]["result"] == "ok"
            assert [(host, (now - NOW).seconds // 60) for host, now in judged] == [
                (HOST, 0),
                ("other.example", 59),
                (HOST, 60),
            ]


async def test_what_is_kept_is_bounded(security, monkeypatch):
    monkeypatch.setattr(tls, "CACHE_SIZE", 10)
    async with session(server_context(CA.issue_cert(HOST)), security) as ssl_object:
        for number in range(50):
            security.facts(ssl_object, f"{number}.example")
    assert len(security._known) == 10
    assert {host for _, host in security._known} == {f"{number}.example" for number in range(40, 50)}


def test_under_uvloop(ca_file):
    security = Security(TlsConfig(ca_file=ca_file))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(facts(server_context(MIDDLE.issue_cert(HOST)), security))
    assert found["certificate"]["result"] == "ok"
    assert found["cipher"]["protocol"] == "TLSv1.3"


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_a_wrong_ca_file_is_named_at_the_start(tmp_path, content):
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tls\.ca_file: .*wrong\.pem"):
        Security(TlsConfig(ca_file=str(path)))


def test_the_system_store_survives_certificates_that_cannot_be_read(tmp_path, monkeypatch):
    bundle = tmp_path / "bundle.pem"
    broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    bundle.write_bytes(b"# roots\n" + broken + CA.cert_pem.bytes() + broken)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    certificate = CA.issue_cert(HOST)
    der = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
    assert tls.verify([der], HOST, load_store(""), NOW) == "ok"


def test_the_system_store_may_be_a_directory_or_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert load_store("") is None
    (tmp_path / "0123abcd.0").write_bytes(CA.cert_pem.bytes())
    assert load_store("") is not None
