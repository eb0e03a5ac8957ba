"""The real Postfix of the tests is what it claims to be: stdlib's smtplib can deliver to it."""

import asyncio
import smtplib

import pytest
from support.receivers import PASSWORD, USER

CONTENT = b"From: <a@sender.test>\r\nTo: <b@postfix.test>\r\nSubject: one\r\n\r\n.dot\r\n..dots\r\nend \xc3\xa9\r\n"


@pytest.fixture
async def client(postfix, certificates):
    with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.test", timeout=20) as smtp:
        smtp.starttls(context=certificates.client_context())
        yield smtp


async def test_a_message_over_starttls_arrives_octet_for_octet(postfix, client):
    client.sendmail("a@sender.test", ["octets@postfix.test"], CONTENT, mail_options=["BODY=8BITMIME"])
    assert await postfix.wait("octets@postfix.test") == [CONTENT]
    (raw,) = postfix.raw("octets@postfix.test")
    assert raw.startswith(b"Return-Path: <a@sender.test>\n")
    assert b"(using TLSv1.3 with cipher " in raw


@pytest.mark.parametrize("mechanism", ["plain", "login", "cram_md5"])
async def test_a_user_may_relay_to_any_domain(postfix, client, mechanism):
    recipient = f"{mechanism}@relayed.example"
    client.ehlo()
    client.user, client.password = USER, PASSWORD
    name = mechanism.upper().replace("_", "-")
    assert name in client.esmtp_features["auth"].split()
    code, _ = client.auth(name, getattr(client, f"auth_{mechanism}"))
    assert code == 235
    await asyncio.to_thread(client.sendmail, "a@sender.test", [recipient], CONTENT)
    assert await postfix.wait(recipient) == [CONTENT]


async def test_a_stranger_may_not_relay(client):
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        client.sendmail("a@sender.test", ["b@relayed.example"], CONTENT)
    assert refused.value.recipients["b@relayed.example"][0] == 554


async def test_a_wrong_password_is_refused(client):
    with pytest.raises(smtplib.SMTPAuthenticationError):
        client.login(USER, "not the password")


async def test_auth_is_offered_only_after_tls(postfix):
    with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.test", timeout=20) as smtp:
        smtp.ehlo()
        assert "auth" not in smtp.esmtp_features
        assert "starttls" in smtp.esmtp_features
