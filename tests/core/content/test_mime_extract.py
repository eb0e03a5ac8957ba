"""What is extracted of a header: right for good ones, bounded and quiet for all others."""

import re
import time
from email.header import decode_header, make_header
from email.parser import BytesParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.content.mime import MAX_FIELDS, MAX_HEADER, addresses, decode, extract, normalize

MESSAGE = """\
From: =?utf-8?Q?J=C3=BCrgen_M=2E?= <j@example.com>
To: "Doe, John" <john@example.org>, jane@example.org
Cc: other@example.org
SUBJECT: =?utf-8?B?R3LDvMOf?=
 =?utf-8?B?ZQ==?= from Rome
Received: one
Received: two
\tfolded
X-Raw: jürgen
X-Empty:

To: body@example.org
"""


def test_a_message():
    assert extract(normalize(MESSAGE)) == {
        "from": "j@example.com",
        "to": ["john@example.org", "jane@example.org"],
        "subject": "Grüße from Rome",
        "headers": {
            "from": "Jürgen M. <j@example.com>",
            "to": '"Doe, John" <john@example.org>, jane@example.org',
            "cc": "other@example.org",
            "subject": "Grüße from Rome",
            "received": ["one", "two\tfolded"],
            "x-raw": "jürgen",
            "x-empty": "",
        },
    }


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", {}),
        (b"\r\n", {}),
        (b"\r\nTo: a@b.c\r\n", {}),
        (b"no header at all\r\n", {}),
        (b"To: undisclosed-recipients:;\r\n", {"headers": {"to": "undisclosed-recipients:;"}}),
        (b"From: nobody\r\n", {"headers": {"from": "nobody"}}),
        (b"Subject:\r\n", {"subject": "", "headers": {"subject": ""}}),
        (b"Subject:\r\n next line\r\n", {"subject": "next line", "headers": {"subject": "next line"}}),
        (b" lost\r\nA: b\r\n", {"headers": {"a": "b"}}),
        (b"From me Thu Jan  1\r\nA: b\r\n", {"headers": {"a": "b"}}),
        (b": nameless\r\nA: b\r\n", {"headers": {"a": "b"}}),
        (b"A: b\r\nnot a field\r\nC: d\r\n", {"headers": {"a": "b"}}),
        (b"A b: c\r\n", {}),
        (b"\xff: c\r\n", {}),
        (b"A: \xff\xc3\xbc\r\n", {"headers": {"a": "\ufffdü"}}),
        (b"A: b: c\r\n", {"headers": {"a": "b: c"}}),
        (b"A: b", {"headers": {"a": "b"}}),
    ],
)
def test_odd_headers(content, found):
    assert extract(content) == found


ADDRESSES = [
    ("a@b.c", ["a@b.c"]),
    ("<a@b.c>", ["a@b.c"]),
    ("Name <a@b.c>", ["a@b.c"]),
    ("  a@b.c ", ["a@b.c"]),
    ("a@b.c, d@e.f", ["a@b.c", "d@e.f"]),
    ("a@b.c;d@e.f", ["a@b.c", "d@e.f"]),
    ('"Doe, J" <j@b.c>', ["j@b.c"]),
    ('"x <no@b.c>" <j@b.c>', ["j@b.c"]),
    ("Doe, J <j@b.c>", ["j@b.c"]),
    ("J (a@b.c, (d@e.f)) <j@b.c>", ["j@b.c"]),
    ("a@b.c (Name)", ["a@b.c"]),
    ("Team: a@b.c, N <d@e.f>;, g@h.i", ["a@b.c", "d@e.f", "g@h.i"]),
    ("<@r1,@r2:a@b.c>", ["a@b.c"]),
    ('"two words"@b.c', ['"two words"@b.c']),
    ('"a@x"@b.c', ['"a@x"@b.c']),
    ("a@[IPv6:2001:db8::1]", ["a@[IPv6:2001:db8::1]"]),
    ("N <a@[192.0.2.1]>", ["a@[192.0.2.1]"]),
    ("=?utf-8?q?a=40b=2Ec=2C?= <j@b.c>", ["j@b.c"]),
    ("jürgen@bücher.example", ["jürgen@bücher.example"]),
    ("", []),
    ("John Doe", []),
    ("John Doe a@b.c", []),
    ("@", []),
    ("a@", []),
    ("<>", []),
    ("<a@b.c", ["a@b.c"]),
    ('"open <a@b.c>', ["a@b.c"]),
    ("a@b.c>", ["a@b.c"]),
    ("undisclosed-recipients:;", []),
]


@pytest.mark.parametrize(("value", "found"), ADDRESSES)
def test_addresses(value, found):
    assert addresses(value) == found


WORDS = [
    ("=?utf-8?q?a=C3=BC_b?=", "aü b"),
    ("=?UTF-8?B?w7w=?=", "ü"),
    ("=?utf-8?B?w7w?=", "ü"),
    ("=?utf-8*de?Q?=C3=BC?=", "ü"),
    ("=?iso-8859-1?Q?=FC?=", "ü"),
    ("=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", "日本"),
    ("=?koi8-u?Q?=A4?=", "є"),
    ("=?utf-8?Q?a?= =?utf-8?Q?b?=", "ab"),
    ("=?utf-8?Q?a?=\t=?iso-8859-1?Q?=FC?=", "aü"),
    ("=?utf-8?Q?a?= b =?utf-8?Q?c?=", "a b c"),
    ("=?utf-8?Q?=C3?= =?utf-8?Q?=BC?=", "ü"),
    ("(=?utf-8?Q?a?=)", "(a)"),
    ("=?utf-8?Q??=", ""),
    ("=?utf-8?Q?=FF?=", "=?utf-8?Q?=FF?="),
    ("=?utf-8?Q?a?= =?utf-8?Q?=FF?=", "a =?utf-8?Q?=FF?="),
    ("=?utf-8?B?!!?=", "=?utf-8?B?!!?="),
    ("=?utf-8?B?w?=", "=?utf-8?B?w?="),
    ("=?nonsense?Q?a?=", "=?nonsense?Q?a?="),
    ("=?unicode_escape?Q?=5Cx00?=", "=?unicode_escape?Q?=5Cx00?="),
    ("=?punycode?Q?a-?=", "=?punycode?Q?a-?="),
    ("=?zlib?Q?a?=", "=?zlib?Q?a?="),
    ("=?utf-8?X?a?=", "=?utf-8?X?a?="),
    ("=?utf-8?Q?a b?=", "=?utf-8?Q?a b?="),
    ("=?utf-8?Q?=0D=0ABcc:_x?=", "=?utf-8?Q?=0D=0ABcc:_x?="),
    ("=?utf-8?B?G1szMW0=?=", "=?utf-8?B?G1szMW0=?="),
    ("=?=?=?", "=?=?=?"),
]


@pytest.mark.parametrize(("value", "text"), WORDS)
def test_encoded_words(value, text):
    assert decode(value) == text


@given(st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=80))
def test_whatever_python_encodes_is_decoded(text):
    written = re.sub(r"\r?\n", "", make_header([(text, "utf-8")]).encode())
    assert decode(written) == str(make_header(decode_header(written)))


FIELDS = st.lists(
    st.one_of(
        st.builds(
            "{}:{}".format,
            st.sampled_from(["To", "to", "From", "X-1", "Received", "", "From ", "bad name", "\x7f", "ü", "a;b"]),
            st.text(alphabet=' \tab:,<>"=?\x0b\x0c\x1c\x85\u2028ü\x00', max_size=12),
        ),
        st.sampled_from([" folded", "\tfolded\t", " ", "From me", "no field", "", "Subject: =?utf-8?q?a?=", ": x"]),
    ),
    max_size=12,
)


@given(FIELDS, st.sampled_from(["\n\nTo: body\n", "\n", ""]))
def test_agrees_with_pythons_parser(lines, end):
    content = normalize("\n".join(lines) + end)
    expected = {}
    for name, value in BytesParser().parsebytes(content).raw_items():
        unfolded = value.replace("\r\n", "").encode("ascii", "surrogateescape").decode().strip(" \t")
        expected.setdefault(name.lower(), []).append(decode(unfolded))
    headers = extract(content).get("headers", {})
    assert {name: value if isinstance(value, list) else [value] for name, value in headers.items()} == expected


PIECES = st.sampled_from(
    b'From: |To: |Subject|:| |\t|\r\n|\n|\r|<|>|(|)|"|\\|@|,|;|[|]|a|=?utf-8?Q?|=?|?=|=?x?B?|*|\xff|\x00|=0A'.split(
        b"|"
    )
)


@given(st.one_of(st.binary(), st.lists(PIECES, max_size=60).map(b"".join)))
def test_never_raises(content):
    found = extract(content)
    assert set(found) <= {"from", "to", "subject", "headers"}
    assert None not in found.values()


def test_a_long_header_is_looked_at_in_part():
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000))
    headers = extract(b"Subject: s\r\n" + lines + b"\r\n")["headers"]
    assert 60 < len(headers) < 70
    assert set(map(len, headers.values())) == {1, 1000}
    assert extract(b"A: " + b"b" * MAX_HEADER + b"\r\n") == {}


def test_many_fields_are_looked_at_in_part():
    headers = extract(b"A: b\r\n" * 10_000)["headers"]
    assert headers == {"a": ["b"] * MAX_FIELDS}


@pytest.mark.parametrize(
    "piece",
    ["(", ")", "<", '"', '\\"', "[", "@", "a@", "a@ ", "=?", "=?u?q?", "=?utf-8?q?a?= ", "=?a*", ",", ":", "\\"],
)
def test_hostile_headers_cost_little(piece):
    value = (piece * (MAX_HEADER // len(piece)))[: MAX_HEADER - 100].encode()
    for name in (b"To", b"From", b"Subject"):
        start = time.process_time()
        extract(name + b": " + value + b" x\r\n\r\n")
        assert time.process_time() - start < 1
