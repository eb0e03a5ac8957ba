"""Certificates: what is said of them, and by which reason they do not hold; none makes trouble."""

import hashlib
import ipaddress
import re
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Store
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.smtp.certificate import describe, verify

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOST = "mx.example.com"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)

CA = x509.BasicConstraints(ca=True, path_length=None)
NOT_CA = x509.BasicConstraints(ca=False, path_length=None)
LAST_CA = x509.BasicConstraints(ca=True, path_length=0)
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])


class Made:
    """A certificate with its key, to be shown or to sign others."""

    def __init__(self, name, *extensions, by=None, key=None, start=NOW - DAY, end=NOW + DAY, critical=False):
        attributes = name if isinstance(name, list) else [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name(attributes)
        signer = by or self
        builder = x509.CertificateBuilder(issuer_name=signer.name, subject_name=self.name)
        builder = builder.public_key(self.key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(end)
        for extension in extensions:
            builder = builder.add_extension(
                extension, critical=critical or isinstance(extension, x509.BasicConstraints)
            )
        algorithm = None if isinstance(signer.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        self.certificate = builder.sign(signer.key, algorithm)
        self.der = self.certificate.public_bytes(Encoding.DER)


def names(*wanted):
    kinds = [x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name) for name in wanted]
    return x509.SubjectAlternativeName(kinds)


def usage(*wanted):
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
    )
    return x509.KeyUsage(**{name: name in wanted for name in [*every.split(), "encipher_only", "decipher_only"]})


ROOT = Made("Root", CA)
OTHER = Made("Other root", CA)
TWIN = Made("Root", CA)
MIDDLE = Made("Middle", CA, usage("key_cert_sign"), by=ROOT)
LEAF = Made("leaf", names(HOST), by=ROOT)
STORE = Store([ROOT.certificate])


def check(*chain, host=HOST, store=STORE, now=NOW):
    return verify([made.der for made in chain], host, store, now)


CHAINS = {
    "signed by a root": ([LEAF], "ok"),
    "root sent along": ([LEAF, ROOT], "ok"),
    "through a middle": ([Made("x", names(HOST), by=MIDDLE), MIDDLE], "ok"),
    "in any order": ([Made("x", names(HOST), by=MIDDLE), ROOT, MIDDLE], "ok"),
    "RSA": ([Made("x", names(HOST), by=ROOT, key=RSA_KEY)], "ok"),
    "P-384": ([Made("x", names(HOST), by=ROOT, key=ec.generate_private_key(ec.SECP384R1()))], "ok"),
    "for servers": ([Made("x", names(HOST), SERVER, NOT_CA, by=ROOT)], "ok"),
    "for anything": ([Made("x", names(HOST), ANY, by=ROOT)], "ok"),
    "a trusted root itself": ([ROOT], "hostname mismatch"),
    "middle not sent": ([Made("x", names(HOST), by=MIDDLE)], "unable to get local issuer certificate"),
    "other root": ([Made("x", names(HOST), by=OTHER)], "unable to get local issuer certificate"),
    "other root sent": ([Made("x", names(HOST), by=OTHER), OTHER], "self-signed certificate in certificate chain"),
    "root of the same name": ([Made("x", names(HOST), by=TWIN)], "certificate signature failure"),
    "self-signed": ([Made("x", names(HOST))], "self-signed certificate"),
    "self-signed CA": ([Made("x", names(HOST), CA)], "self-signed certificate"),
    "self-signed, expired": ([Made("x", start=NOW - 3 * DAY, end=NOW - DAY)], "self-signed certificate"),
    "expired": ([Made("x", names(HOST), by=ROOT, start=NOW - DAY, end=NOW - DAY / 2)], "certificate has expired"),
    "not yet": ([Made("x", names(HOST), by=ROOT, start=NOW + DAY / 2, end=NOW + DAY)], "certificate is not yet valid"),
    "expired, other name": ([Made("x", by=ROOT, start=NOW - DAY, end=NOW - DAY / 2)], "certificate has expired"),
    "expired, other root": (
        [Made("x", by=OTHER, start=NOW - DAY, end=NOW - DAY / 2)],
        "unable to get local issuer certificate",
    ),
    "other name": ([Made("x", names("mx.example.org"), by=ROOT)], "hostname mismatch"),
    "for clients": ([Made("x", names(HOST), CLIENT, by=ROOT)], "unsuitable certificate purpose"),
    "signed by a leaf": ([Made("x", names(HOST), by=LEAF), LEAF], "invalid CA certificate"),
    "critical and unknown": (
        [Made("x", x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), by=ROOT, critical=True)],
        "unhandled critical extension",
    ),
}


@pytest.mark.parametrize(("chain", "result"), CHAINS.values(), ids=CHAINS)
def test_verify(chain, result):
    assert check(*chain) == result


def issued_below(*extensions, **more):
    middle = Made("Below", *extensions, by=ROOT, **more)
    return [Made("x", names(HOST), by=middle), middle]


@pytest.mark.parametrize(
    ("chain", "result"),
    [
        (issued_below(NOT_CA), "invalid CA certificate"),
        (issued_below(CA, usage("digital_signature")), "invalid CA certificate"),
        (issued_below(CA, start=NOW - DAY, end=NOW - DAY / 2), "certificate has expired"),
        (issued_below(CA, start=NOW + DAY / 2), "certificate is not yet valid"),
        (issued_below(CA, x509.NameConstraints([x509.DNSName("example.com")], None), critical=True), "ok"),
        (
            issued_below(CA, x509.NameConstraints([x509.DNSName("example.org")], None), critical=True),
            "permitted subtree violation",
        ),
        (
            issued_below(CA, x509.NameConstraints(None, [x509.DNSName("example.com")]), critical=True),
            "excluded subtree violation",
        ),
    ],
)
def test_verify_what_a_ca_may(chain, result):
    assert check(*chain) == result


def test_the_path_length_of_a_ca_counts():
    last = Made("Last", LAST_CA, by=ROOT)
    more = Made("More", CA, by=last)
    assert check(Made("x", names(HOST), by=last), last) == "ok"
    assert check(Made("x", names(HOST), by=more), more, last) == "path length constraint exceeded"


def test_a_common_name_does_not_escape_name_constraints():
    limited = x509.NameConstraints([x509.DNSName("example.org")], None)
    middle = Made("Limited", CA, limited, by=ROOT, critical=True)
    assert check(Made(HOST, by=middle), middle) == "hostname mismatch"
    assert check(Made(HOST, by=MIDDLE), MIDDLE) == "ok"


def test_a_trusted_certificate_is_its_own_root():
    alone = Made("alone", names(HOST))
    assert check(alone, store=Store([alone.certificate])) == "ok"
    assert check(alone, store=Store([alone.certificate]), now=NOW + 2 * DAY) == "certificate has expired"


def test_nothing_is_trusted_without_a_store():
    assert check(LEAF, store=None) == "unable to get local issuer certificate"
    assert check(ROOT, store=None) == "self-signed certificate"


@pytest.mark.parametrize(("now", "result"), [(NOW - DAY, "ok"), (NOW + DAY, "ok")])
def test_the_first_and_the_last_second_count(now, result):
    assert check(LEAF, now=now) == result


HOSTS = [
    (["mx.example.com"], "MX.Example.COM", True),
    (["MX.example.com"], "mx.example.com.", True),
    (["a.example.com", "mx.example.com"], "mx.example.com", True),
    (["*.example.com"], "mx.example.com", True),
    (["*.example.com"], "a.mx.example.com", False),
    (["*.example.com"], "example.com", False),
    (["*.example.com"], ".example.com", False),
    (["*.com"], "example.com", False),
    (["*"], "com", False),
    (["m*.example.com"], "mx.example.com", False),
    (["mx.*.com"], "mx.example.com", False),
    (["example.com"], "mx.example.com", False),
    (["xn--bcher-kva.example"], "xn--bcher-kva.example", True),
    ([ipaddress.ip_address("192.0.2.1")], "192.0.2.1", True),
    ([ipaddress.ip_address("192.0.2.1")], "192.0.2.2", False),
    ([ipaddress.ip_address("2001:db8::1")], "2001:DB8:0::1", True),
    ([ipaddress.ip_address("2001:db8::1")], "[2001:db8::1]", True),
    (["192.0.2.1"], "192.0.2.1", False),
    ([ipaddress.ip_address("192.0.2.1")], "mx.example.com", False),
    (["mx.example.com"], "", False),
]


@pytest.mark.parametrize(("wanted", "host", "good"), HOSTS)
def test_names(wanted, host, good):
    mismatch = "IP address mismatch" if re.fullmatch(r"[0-9.]+", host) else "hostname mismatch"
    assert check(Made("x", names(*wanted), by=ROOT), host=host) == ("ok" if good else mismatch)


def test_the_common_name_counts_only_without_dns_names():
    assert check(Made(HOST, by=ROOT)) == "ok"
    assert check(Made("*.example.com", by=ROOT)) == "ok"
    assert check(Made(HOST, names(ipaddress.ip_address("192.0.2.1")), by=ROOT)) == "ok"
    assert check(Made(HOST, names("other.example"), by=ROOT)) == "hostname mismatch"
    assert check(Made("192.0.2.1", by=ROOT), host="192.0.2.1") == "IP address mismatch"
    assert check(Made([], by=ROOT)) == "hostname mismatch"


@pytest.mark.parametrize("chain", [[], [b""], [b"rubbish"], [b"", LEAF.der]])
def test_a_certificate_that_is_none(chain):
    assert verify(chain, HOST, STORE, NOW) == "certificate cannot be read"


def test_rubbish_behind_a_good_certificate_is_passed_over():
    assert verify([LEAF.der, b"rubbish"], HOST, STORE, NOW) == "ok"


def test_only_so_much_of_a_chain_is_looked_at():
    leaf = Made("x", names(HOST), by=MIDDLE)
    assert check(leaf, *[LEAF] * 8, MIDDLE) == "ok"
    assert check(leaf, *[LEAF] * 9, MIDDLE) == "unable to get local issuer certificate"


def test_describe():
    subject = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "California"),
        x509.NameAttribute(NameOID.LOCALITY_NAME, "Mountain View"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "not shown"),
        x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.com"),
    ]
    alternatives = names("mx.example.com", ipaddress.ip_address("192.0.2.1"), "*.example.com")
    made = Made(subject, alternatives, usage("digital_signature"), by=ROOT)
    assert describe(made.der) == {
        "notbefore": "2030-01-30 12:00:00",
        "notafter": "2030-02-01 12:00:00",
        "version": 3,
        "keyusage": 1,
        "self-signed": False,
        "subject": {
            "common": "mx.example.com",
            "country": "US",
            "locality": "Mountain View",
            "state": "California",
            "organization": "Example",
        },
        "issuer": {"common": "Root"},
        "altnames": ["mx.example.com", "192.0.2.1", "*.example.com"],
        "fingerprint": hashlib.sha256(made.der).hexdigest(),
    }


def test_describe_leaves_out_what_is_not_there():
    assert set(describe(Made([], by=ROOT).der)) == {
        "notbefore",
        "notafter",
        "version",
        "self-signed",
        "issuer",
        "fingerprint",
    }
    assert describe(b"rubbish") == {"fingerprint": hashlib.sha256(b"rubbish").hexdigest()}


@pytest.mark.parametrize(
    ("wanted", "mask"),
    [
        (["digital_signature", "key_encipherment"], 5),
        (["key_cert_sign", "crl_sign"], 96),
        (["key_agreement"], 16),
        (["key_agreement", "encipher_only"], 144),
        (["key_agreement", "decipher_only"], 272),
    ],
)
def test_key_usage(wanted, mask):
    assert describe(Made("x", usage(*wanted), by=ROOT).der)["keyusage"] == mask


def test_self_signed_is_a_matter_of_the_signature():
    assert describe(ROOT.der)["self-signed"] is True
    assert describe(Made("x", key=ed25519.Ed25519PrivateKey.generate()).der)["self-signed"] is True
    assert describe(Made("Root", by=ROOT).der)["self-signed"] is False


def test_what_a_stranger_writes_is_bounded():
    many = names(*(f"{number}.example" for number in range(1000)))
    described = describe(Made([x509.NameAttribute(NameOID.STREET_ADDRESS, "x")], many).der)
    assert described["altnames"] == [f"{number}.example" for number in range(100)]
    control = x509.NameAttribute(NameOID.COMMON_NAME, "a\x1b[31m\r\nb\x00\x85")
    long = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 5000, _validate=False)
    made = Made([control, long], names("d" * 5000, "evil\r\n.example"))
    described = describe(made.der)
    assert described["subject"] == {"common": "a?[31m??b??", "organization": "o" * 255}
    assert described["altnames"] == ["d" * 255, "evil??.example"]


def test_warnings_about_strange_certificates_are_kept_quiet():
    with pytest.warns(UserWarning, match="length"):
        country = x509.NameAttribute(NameOID.COUNTRY_NAME, "USA", _validate=False)
    made = Made([country], names(HOST), by=ROOT)
    assert describe(made.der)["subject"] == {"country": "USA"}
    assert check(made) == "ok"


DERS = [ROOT.der, LEAF.der, MIDDLE.der, Made(HOST, names(HOST), usage("digital_signature"), SERVER, by=ROOT).der]


@given(
    st.sampled_from(DERS),
    st.lists(st.tuples(st.integers(min_value=0), st.integers(min_value=0, max_value=255)), min_size=1, max_size=4),
    st.integers(min_value=0, max_value=3),
)
def test_no_certificate_makes_trouble(der, changes, cut):
    octets = bytearray(der)
    for place, octet in changes:
        octets[place % len(octets)] = octet
    broken = bytes(octets[: len(octets) - cut])
    described = describe(broken)
    assert described["fingerprint"] == hashlib.sha256(broken).hexdigest()
    assert None not in described.values()
    assert broken == der or verify([broken], HOST, STORE, NOW) != "ok"
    assert verify([LEAF.der, broken], HOST, STORE, NOW) == "ok"
