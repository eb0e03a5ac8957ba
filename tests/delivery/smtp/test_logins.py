"""Whom a password is sent to: the server that it is meant for, by certificate or fingerprint, and nobody else."""

import asyncio
from hashlib import sha256

import pytest
from support.dialogue import SECRET, deliver, parse
from support.dialogue_server import DialogueServer, authority, certificate

from mailq.config import Config
from mailq.core.jobs.job import Smarthost
from mailq.core.smtp.trust import Trust
from mailq.core.traffic.routes import Login, Route, Source, Target, Tls
from mailq.service.build import policy_of

OPENING = r"""
@ smarthost.username=me
S: 220 mx.example ESMTP
C: EHLO client\.example
S: 250-mx.example
S: 250 STARTTLS
C: STARTTLS
S: 220 2.0.0 go ahead
S! starttls
C: EHLO client\.example
S: 250-mx.example
S: 250 AUTH PLAIN
"""
REFUSED = f"{OPENING}=> starttls error 454 4.7.5"
LOGS_IN = rf"""{OPENING}
C: AUTH PLAIN AG1lAGNvcnJlY3QgaG9yc2U=
S: 235 2.7.0 welcome
C: MAIL FROM:<news@sender\.example>
S: 550 5.7.1 no
=> mailfrom error 550 5.7.1
"""
FINGERPRINT = sha256(certificate()).hexdigest()


@pytest.fixture
def ca_file(tmp_path):
    path = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return str(path)


async def attempt(text, **options):
    """Return the result of an attempt that goes as the dialogue says."""
    dialogue = parse(text)
    with DialogueServer(dialogue) as server:
        result = await deliver(server.addresses, dialogue.options | options)
        assert await asyncio.to_thread(server.finish) is None
    assert (result.state, result.kind) == (dialogue.expected.state, dialogue.expected.kind)
    return result


async def test_a_verified_server_gets_the_password(ca_file):
    await attempt(LOGS_IN, **{"smarthost.verify": "always", "tls.ca_file": ca_file})


async def test_a_server_of_an_unknown_ca_does_not_and_the_result_says_what_to_do():
    result = await attempt(REFUSED, **{"smarthost.verify": "always"})

    assert "the certificate of 127.0.0.1 is not verified (" in result.description
    assert f"list its fingerprint {FINGERPRINT} in smarthost.fingerprints" in result.description
    assert "tls.ca_file" in result.description
    assert not [line for line in result.transcript if "AUTH PLAIN" in line and line.startswith("C:")]


@pytest.mark.parametrize(
    "form", [FINGERPRINT, FINGERPRINT.upper(), ":".join(FINGERPRINT[i : i + 2] for i in range(0, 64, 2))]
)
async def test_a_fingerprint_is_enough(form):
    await attempt(LOGS_IN, **{"smarthost.verify": "always", "smarthost.fingerprints": {"127.0.0.1": [form]}})


@pytest.mark.parametrize("fingerprints", [{"127.0.0.1": ["0" * 64]}, {"mx.example": [FINGERPRINT]}])
async def test_a_fingerprint_of_another_certificate_or_host_is_not(fingerprints):
    await attempt(REFUSED, **{"smarthost.verify": "always", "smarthost.fingerprints": fingerprints})


@pytest.mark.parametrize("verify", ["remote", "never"])
async def test_this_host_is_taken_at_its_word_unless_it_has_to_prove_its_name(verify):
    await attempt(LOGS_IN, **{"smarthost.verify": verify})


def policy(**smarthost):
    return policy_of(Config.model_validate({"smarthost": smarthost}))


@pytest.mark.parametrize(
    ("hostname", "verify", "trusted"),
    [
        ("mail.example.com", "remote", True),
        ("192.0.2.1", "remote", True),
        ("2001:db8::1", "remote", True),
        ("localhost.example.com", "remote", True),
        ("127.0.0.1", "remote", False),
        ("127.8.9.1", "remote", False),
        ("::1", "remote", False),
        ("localhost", "remote", False),
        ("127.0.0.1", "always", True),
        ("mail.example.com", "never", False),
    ],
)
def test_every_server_that_is_elsewhere_proves_who_it_is(hostname, verify, trusted):
    """A name that the DNS leads to this host is elsewhere too."""
    mine = policy(verify=verify)
    own = Smarthost(hostname=hostname, username="me", password=SECRET)

    assert (mine.trust(own) is not None) is trusted
    assert mine.trust(Smarthost(hostname=hostname)) is None
    assert mine.trust(None) is None


def test_what_may_travel_in_the_clear_needs_no_proof():
    own = Smarthost(hostname="mail.example.com", username="me", password=SECRET)

    assert policy(plaintext_auth=True).trust(own) is None
    with pytest.raises(ValueError, match="plaintext_auth sends passwords to any server"):
        policy(plaintext_auth=True, fingerprints={"mail.example.com": [FINGERPRINT]})


def test_fingerprints_hold_for_a_host_in_any_letter_case():
    mine = policy(fingerprints={"Mail.Example.COM": [FINGERPRINT]})

    for hostname in ("mail.example.com", "MAIL.example.com."):
        own = Smarthost(hostname=hostname, username="me", password=SECRET)
        assert mine.trust(own) == Trust((FINGERPRINT,))
    with pytest.raises(ValueError, match="is no SHA-256 fingerprint"):
        policy(fingerprints={"mail.example.com": ["abc"]})


def test_sessions_are_not_shared_across_what_was_proven():
    source, target = Source(None, "client.example"), Target("mail.example.com", "192.0.2.1", 25)
    login = Login("me", SECRET)
    routes = [Route(source, target, Tls.REQUIRED, login, "", trust) for trust in (None, Trust(), Trust((FINGERPRINT,)))]

    assert len(set(routes)) == len(routes)
    assert SECRET not in repr(routes)


def test_a_server_without_a_certificate_proves_nothing():
    assert "has shown no certificate" in (Trust().problem(None, "mail.example.com") or "")
