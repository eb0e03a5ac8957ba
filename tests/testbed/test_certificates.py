"""Certificates of the lab are what they claim to be, judged by OpenSSL in a real handshake."""

import asyncio
import ssl
import stat

import pytest

from mailq.testbed.certificates import Authority


async def _shake_hands(certificate, client, name):
    """Return what a client sees that connects to a server with `certificate`."""

    async def close(_reader, writer):
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=certificate.context()) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        seen = writer.get_extra_info("peercert")
        writer.close()
        return seen


@pytest.mark.parametrize("key_type", ["ec", "rsa"])
@pytest.mark.parametrize("name", ["mx.test", "127.0.0.1", "::1"])
async def test_a_good_certificate_is_trusted_for_its_names(certificates, name, key_type):
    certificate = certificates.issue("mx.test", "127.0.0.1", "::1", key_type=key_type)
    client = certificates.client_context()
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    seen = await _shake_hands(certificate, client, name)
    assert ("DNS", "mx.test") in seen["subjectAltName"]


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"validity": "expired"}, "mx.test", "certificate has expired"),
        ({"validity": "future"}, "mx.test", "certificate is not yet valid"),
        ({"self_signed": True}, "mx.test", "self.signed certificate"),
        ({}, "other.test", "Hostname mismatch"),
    ],
)
async def test_bad_certificates_are_bad_in_the_way_that_was_asked_for(certificates, options, name, reason):
    certificate = certificates.issue("mx.test", **options)
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        await _shake_hands(certificate, certificates.client_context(), name)


async def test_another_authority_is_not_trusted(certificates, tmp_path):
    stranger = Authority.create(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        await _shake_hands(certificates.issue("mx.test"), stranger.client_context(), "mx.test")


def test_private_keys_are_readable_by_their_owner_alone(certificates):
    key = certificates.issue("mx.test").key
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
