"""Addresses: what is accepted, what is refused, and that nothing accepted can leave its brackets."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.jobs.address import MAX_ADDRESS, Address, AddressError, ascii_domain, parse_address, read_address

ACCEPTED = [
    ("info@example.org", "info@example.org"),
    ("Info@EXAMPLE.org", "Info@example.org"),
    ("info@example.org.", "info@example.org"),
    ("a@b", "a@b"),
    ("first.last+tag@sub.example.org", "first.last+tag@sub.example.org"),
    ("double..dot@example.org", "double..dot@example.org"),
    (".dot.@example.org", ".dot.@example.org"),
    ("!#$%&'*+-/=?^_`{|}~@example.org", "!#$%&'*+-/=?^_`{|}~@example.org"),
    ('"two words"@example.org', '"two words"@example.org'),
    ('"a@b"@example.org', '"a@b"@example.org'),
    ('"a\\"b"@example.org', '"a\\"b"@example.org'),
    ('"a SIZE=1 b"@example.org', '"a SIZE=1 b"@example.org'),
    ('""@example.org', '""@example.org'),
    ('"info"@example.org', "info@example.org"),
    ('"first.last"@example.org', "first.last@example.org"),
    ('"in\\fo"@example.org', "info@example.org"),
    ('"a..b"@example.org', '"a..b"@example.org'),
    ('".a"@example.org', '".a"@example.org'),
    ('"a\\ \\\\b"@example.org', '"a \\\\b"@example.org'),
    ('"\u7528\u6237"@example.org', "\u7528\u6237@example.org"),
    ("user@_dmarc.example.org", "user@_dmarc.example.org"),
    ("user@münchen.example", "user@xn--mnchen-3ya.example"),
    ("user@MÜNCHEN.example", "user@xn--mnchen-3ya.example"),
    ("user@faß.example", "user@xn--fa-hia.example"),
    ("user@日本\u3002example", "user@xn--wgv71a.example"),
    ("jürgen@example.org", "jürgen@example.org"),
    ("用户@例子.example", "用户@xn--fsqu00a.example"),
    ("user@[192.0.2.1]", "user@[192.0.2.1]"),
    ("user@[IPv6:2001:DB8:0:0:0:0:0:1]", "user@[IPv6:2001:db8::1]"),
    ("user@[ipv6:::1]", "user@[IPv6:::1]"),
    ("a" * 68 + "@example.org", "a" * 68 + "@example.org"),
    ("bounce+" + "a=" * 300 + "@example.org", "bounce+" + "a=" * 300 + "@example.org"),
    ("a" * 888 + "@example.org", "a" * 888 + "@example.org"),
    ("user@\U0001f389.example", "user@xn--dk8h.example"),
    ("user@i\u2764.example", "user@xn--i-7iq.example"),
    ("\u0645\u06cc\u200c\u062e@example.org", "\u0645\u06cc\u200c\u062e@example.org"),
    (f"a@{'.'.join(['b' * 63] * 3)}.{'c' * 60}", f"a@{'.'.join(['b' * 63] * 3)}.{'c' * 60}"),
]


@pytest.mark.parametrize(("text", "printed"), ACCEPTED)
def test_accepts(text, printed):
    address = parse_address(text)
    assert str(address) == printed
    assert parse_address(printed) == address


REFUSED = [
    ("", "local@domain"),
    ("info", "local@domain"),
    ("@example.org", "local@domain"),
    ("info@", "local@domain"),
    ("info@.", "not a valid name"),
    ("<info@example.org>", "local part"),
    ("info@example.org>", "not a valid name"),
    ("Info <info@example.org>", "local part"),
    ("two words@example.org", "local part"),
    ("two\u00a0words@example.org", "local part"),
    ("two\u2028words@example.org", "local part"),
    ("a@b@example.org", "local part"),
    ("a,b@example.org", "local part"),
    ("a(comment)@example.org", "local part"),
    ('"open@example.org', "local part"),
    ('"a"b"@example.org', "local part"),
    ('"a\\"@example.org', "local part"),
    ("\ud800@example.org", "local part"),
    ('"\ud800"@example.org', "local part"),
    ("a@example.org\r\nRCPT TO:<b@example.org>", "control"),
    ("a\r\n@example.org", "control"),
    ('"a\r\nDATA"@example.org', "control"),
    ("a\x00@example.org", "control"),
    ("a\x7f@example.org", "control"),
    ("a\x85@example.org", "control"),
    ("a@example.org\n", "control"),
    ("a@exam\tple.org", "control"),
    ("a@exam ple.org", "not a valid name"),
    ("a@-example.org", "not a valid name"),
    ("a@example-.org", "not a valid name"),
    ("a@example..org", "not a valid name"),
    ("a@.example.org", "not a valid name"),
    ("a@example.org..", "not a valid name"),
    (f"a@{'b' * 64}.org", "not a valid name"),
    ("a@exämple .org", "IDN"),
    ("a@\u0661.example", "IDN"),
    ("a@\ud800.example", "IDN"),
    ("a@[192.0.2.1", "literal"),
    ("a@[192.0.2]", "literal"),
    ("a@[192.0.2.256]", "literal"),
    ("a@[2001:db8::1]", "literal"),
    ("a@[IPv6:192.0.2.1]", "literal"),
    ("a@[IPv6:fe80::1%eth0]", "scope"),
    ("a@[IPv6:fe80::1%> SIZE=1]", "scope"),
    ("a@[]", "literal"),
    ("a@[example.org]", "literal"),
    ("a" * 889 + "@example.org", "900 octets"),
    ("ü" * 445 + "@example.org", "900 octets"),
    ("a@" + "b" * 1_000_000, "900 octets"),
    ("a@" + "ü." * 500_000, "900 octets"),
    ('"> SIZE=1"@example.org', "local part"),
    ('"a> SIZE=1 <b"@example.org', "local part"),
    ('"a\\> SIZE=1 \\<b"@example.org', "local part"),
    ("\u200bjo@example.org", "U+200B"),
    ("j\u2060o@example.org", "U+2060"),
    ('"j\u202eo"@example.org', "U+202E"),
    ("a@\U0001f469\u200d\U0001f680.example", "IDN"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[repr(text)[:40] for text, _ in REFUSED])
def test_refuses(text, reason):
    with pytest.raises(AddressError, match=re.escape(reason)):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "international", "literal"),
    [
        ("a@example.org", False, None),
        ("a@münchen.example", False, None),
        ("ä@example.org", True, None),
        ("a@[192.0.2.1]", False, "192.0.2.1"),
        ("a@[IPv6:2001:db8::1]", False, "2001:db8::1"),
    ],
)
def test_properties(text, international, literal):
    address = parse_address(text)
    assert address.international is international
    assert address.literal == literal


def test_domain_alone():
    assert ascii_domain("MX.Bücher.Example.") == "mx.xn--bcher-kva.example"
    with pytest.raises(AddressError):
        ascii_domain("[192.0.2.1]")


ALPHABET = 'ab.@<>"\\ []%:;,()\t\r\n\x00\x7f\x85\u00a0\u2028ü日\ud8001-_IPv6'
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=ALPHABET, max_size=40),
    st.builds("{}@{}".format, st.text(alphabet=ALPHABET, max_size=12), st.text(alphabet=ALPHABET, max_size=12)),
    st.builds("u@[IPv6:fe80::1{}]".format, st.text(alphabet=ALPHABET, max_size=12)),
    st.builds('"{}"@example.org'.format, st.text(alphabet=ALPHABET, max_size=12)),
)


@given(TEXTS, st.sampled_from([parse_address, read_address]))
def test_whatever_is_accepted_is_safe_between_angle_brackets(text, parse):
    try:
        address = parse(text)
    except AddressError:
        return
    printed = str(address)
    assert len(printed.encode()) <= MAX_ADDRESS
    assert not re.search(r"[\x00-\x1f\x7f-\x9f<>]", printed)
    outside = printed if not address.local.startswith('"') else f"@{address.domain}"
    assert not re.search(r"\s", outside)
    assert address.domain.isascii()
    assert parse_address(printed) == address


@given(st.text())
def test_never_raises_anything_else(text):
    for parse in (parse_address, read_address, ascii_domain):
        with contextlib.suppress(AddressError):
            assert isinstance(parse(text), Address | str)


BLANKS = ("had blanks or line ends around it, which were removed",)
BRACKETS = ("had angle brackets, which were removed",)
NAME = ("had a display name, which was removed",)


@pytest.mark.parametrize(
    ("text", "printed", "mended"),
    [
        ("jo@a.test", "jo@a.test", ()),
        (" jo@a.test", "jo@a.test", BLANKS),
        ("jo@a.com ", "jo@a.com", BLANKS),
        (" jo@a.com", "jo@a.com", BLANKS),
        ("jo@a.test\n", "jo@a.test", BLANKS),
        ("\tjo@a.test\r\n", "jo@a.test", BLANKS),
        ("\u200bjo@a.test\xa0", "jo@a.test", BLANKS),
        ("\ufeffjo@a.test", "jo@a.test", BLANKS),
        ("<jo@a.test>", "jo@a.test", BRACKETS),
        ("Jo <jo@a.test>", "jo@a.test", NAME),
        ('"Smith, Jo" <jo@a.test>', "jo@a.test", NAME),
        ('"jo@a.test" <jo@a.test>', "jo@a.test", NAME),
        ("J\xf6 O'Neill < jo@a.test >", "jo@a.test", NAME),
        ("=?utf-8?q?J=C3=B6?= <jo@a.test>", "jo@a.test", NAME),
        (" Jo <jo@a.test>\n", "jo@a.test", BLANKS + NAME),
        ('Jo <"j o"@a.test>', '"j o"@a.test', NAME),
    ],
)
def test_reads_what_stands_around_an_address(text, printed, mended):
    address = read_address(text)
    assert (str(address), address.mended) == (printed, mended)
    assert address == parse_address(printed)


@pytest.mark.parametrize(
    "text",
    [
        "a@a.test, b@a.test",
        "a@a.test; b@a.test",
        "a@a.test b@a.test",
        "a@a.test, Jo <b@a.test>",
        "a@a.test <b@a.test>",
        "<a@a.test> <b@a.test>",
        "<a@a.test>, <b@a.test>",
        "Jo\r\n <a@a.test>",
        "<<a@a.test>>",
        "<a@a.test",
        "a@a.test>",
        "Jo <>",
        "Jo (work) <a@a.test>",
        "a@a.test (work)",
        "@b.test:a@a.test",
        "<@b.test:a@a.test>",
        "mailto:a@a.test",
        "team: a@a.test;",
        "@a.test",
        "<@a.test>",
        "Postmaster",
        "a@a.test> SIZE=1 <b@a.test",
        '"x" <a@a.test> SIZE=1',
        "Jo <" + "a" * 2000 + "@a.test>",
        "",
        " ",
    ],
)
def test_several_addresses_comments_and_routes_are_no_address(text):
    with pytest.raises(AddressError):
        read_address(text)
