"""Real certificates taken apart and put together wrong: each is described and judged, and nothing else happens."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import Store
from hypothesis import given, settings
from hypothesis import strategies as st

from mailq.core.smtp.certificate import MAX_NAMES, MAX_TEXT, describe, verify

HOST = "mx.example.com"
NOW = datetime.now(UTC) + timedelta(minutes=1)


def der(certificate):
    return x509.load_pem_x509_certificate(certificate.bytes()).public_bytes(Encoding.DER)


ROOT = trustme.CA()
MIDDLE = ROOT.create_child_ca()
LEAF = MIDDLE.issue_cert(HOST, "*.example.com", "192.0.2.1", "2001:db8::1", common_name="täst")
CHAIN = [*map(der, LEAF.cert_chain_pems)]
STORE = Store([x509.load_pem_x509_certificate(ROOT.cert_pem.bytes())])
ROOT_DER = der(ROOT.cert_pem)


@dataclass
class Node:
    """One value of DER: its tag octet, and its octets or the values in it."""

    tag: int
    octets: bytes = b""
    inside: list["Node"] = field(default_factory=list)

    def all(self):
        yield self
        for node in self.inside:
            yield from node.all()

    def encode(self):
        octets = b"".join(node.encode() for node in self.inside) if self.inside else self.octets
        if len(octets) < 128:
            return bytes([self.tag, len(octets)]) + octets
        size = len(octets).to_bytes((len(octets).bit_length() + 7) // 8)
        return bytes([self.tag, 128 + len(size)]) + size + octets


def parse(octets):
    """Return the values in DER, those in octet strings too where they look like DER."""
    nodes = []
    while octets:
        tag, size, start = octets[0], octets[1], 2
        if size & 128:
            start += size & 127
            size = int.from_bytes(octets[2:start])
        if start + size > len(octets):
            raise ValueError(octets)
        content, octets = octets[start : start + size], octets[start + size :]
        node = Node(tag, content)
        if tag & 32 or tag == 4:
            try:
                node.inside = parse(content)
            except (ValueError, IndexError):
                node.inside = []
        nodes.append(node)
    return nodes


def test_taken_apart_and_put_together_it_is_the_same():
    for each in CHAIN:
        assert parse(each)[0].encode() == each
        assert len(list(parse(each)[0].all())) > 50


CONTENTS = st.binary(max_size=8) | st.sampled_from(
    [
        b"",
        b"\0",
        b"\x80",
        b"\xff" * 9,
        b"\x7f" + b"\xff" * 20,
        b"20301313256161Z",
        b"991231235959Z",
        b"00000000000000Z",
        b"\x1b[2J\r\n",
        b"\xed\xa0\x80",
        b"\xd8\x00",
        b"a\0.example.com",
        b"*",
        b"*.",
        b".",
        b"." * 300,
        b"x" * 5000,
    ]
)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from(["octets", "tag", "drop", "twice", "many", "swap", "take"]),
        CONTENTS,
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def changed(octets, changes):
    """Return a certificate with some of its values changed; its lengths are right again, its signature is not."""
    (top,) = parse(octets)
    for place, change, content, number in changes:
        nodes = list(top.all())
        node = nodes[place % len(nodes)]
        match change:
            case "octets":
                node.octets, node.inside = content, []
            case "tag":
                node.tag = number
            case "drop" if node.inside:
                del node.inside[number % len(node.inside)]
            case "twice" if node.inside:
                node.inside.append(node.inside[number % len(node.inside)])
            case "many" if node.inside and len(top.encode()) < 20_000:
                node.inside += [node.inside[number % len(node.inside)]] * 300
            case "swap":
                node.inside.reverse()
            case "take":
                other = parse(octets)[0]
                node.inside.append(list(other.all())[number % 50])
    return top.encode()


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([CHAIN[0], CHAIN[1], ROOT_DER]), CHANGES, st.sampled_from([HOST, "192.0.2.1", "[2001:db8::1]", ""])
)
def test_a_certificate_with_other_values_is_described_and_never_holds(octets, changes, host):
    broken = changed(octets, changes)

    record = describe(broken)

    text = orjson.dumps(record).decode()
    assert len(text) < 13 * MAX_TEXT * 6 + MAX_NAMES * (MAX_TEXT * 6 + 3)
    assert not re.search(r"\\u00[01]|[\x7f-\x9f]", text)
    for chain in ([broken], [broken, CHAIN[1]], [broken, *CHAIN], [broken] * 50):
        verdict = verify(chain, host, STORE, NOW)
        assert verdict.isprintable()
        assert broken in (*CHAIN, ROOT_DER) or verdict != "ok"
    assert verify([CHAIN[0], broken, CHAIN[1]], HOST, STORE, NOW) == "ok"
    assert verify([CHAIN[0], broken], HOST, STORE, NOW) == "ok" or broken != CHAIN[1]
    assert verify([CHAIN[0]], HOST, Store([x509.load_der_x509_certificate(ROOT_DER)]), NOW) != "ok"


@given(st.binary(max_size=300), st.integers(0, 3))
def test_rubbish(octets, place):
    described = describe(octets)
    assert set(described) == {"fingerprint"}
    chain = [*CHAIN]
    chain.insert(place, octets)
    verdict = verify(chain, HOST, STORE, NOW)
    assert verdict == ("ok" if place else "certificate cannot be read")
