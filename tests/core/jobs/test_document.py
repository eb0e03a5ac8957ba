"""Documents: what can be read is read, what cannot be is refused with a remedy, and all work is bounded before."""

import gzip
import json
import secrets
import struct
import zlib

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailq.core.broker.messages import Consumed
from mailq.core.jobs.document import (
    FEW,
    HALF,
    MAX_DEPTH,
    RESULTS_VALUES,
    UNCOUNTED,
    VALUE,
    InvalidJobError,
    OversizeBodyError,
    load,
    read_document,
    unpack,
)
from mailq.core.jobs.json_text import SLICE, count_values, mend_surrogates

LIMIT = 1_000_000
JOB = {"recipient": "b@b.test", "mime": "x"}
PLAIN = orjson.dumps(JOB)
ZIPPED = gzip.compress(PLAIN)
BOM = b"\xef\xbb\xbf"


def refusal(body, encoding=None, limit=LIMIT):
    with pytest.raises(InvalidJobError) as caught:
        read_document(body, encoding, limit)
    return caught.value


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        *((name, PLAIN) for name in ("", "utf-8", "UTF-8", "Utf-8", "utf8", "UTF8", "identity", "Identity")),
        *((name, PLAIN) for name in (None, "binary", "us-ascii", "US-ASCII", "identity, utf-8", " utf-8 ; identity ")),
        *((name, ZIPPED) for name in ("gzip", "GZIP", "x-gzip", "X-GZip", "gzip:UTF-8", "gzip, UTF-8", "UTF-8,gzip")),
        *((name, ZIPPED) for name in ("utf-8, gzip", "UTF-8:GZIP", " gzip ")),
        # The body tells: no JSON text begins as gzip does.
        (None, ZIPPED),
        ("utf-8", ZIPPED),
        ("gzip", PLAIN),
        # RFC 1952 section 2.2: members follow each other; tar and tapes pad with zeros.
        ("gzip", gzip.compress(PLAIN[:9]) + gzip.compress(PLAIN[9:])),
        ("gzip", gzip.compress(b"") * 999 + ZIPPED),
        ("gzip", ZIPPED + b"\0" * 512),
        ("gzip", gzip.compress(PLAIN[:9]) + gzip.compress(PLAIN[9:]) + b"\0"),
        # RFC 8259 section 8.1.
        (None, BOM + PLAIN),
        ("utf-8", BOM + PLAIN),
        ("gzip", gzip.compress(BOM + PLAIN)),
        (None, b" \r\n\t" + PLAIN + b"\n"),
    ],
)
def test_every_spelling_is_read(encoding, body):
    assert read_document(body, encoding, LIMIT) == JOB


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "utf-16", "iso-8859-1", "gzip, br", "gzip:UTF-16"])
def test_a_coding_that_cannot_be_undone_is_told_if_the_document_can_be_read(encoding):
    trouble = refusal(PLAIN, encoding)
    assert "cannot decode; use gzip or leave it out" in trouble.reason
    assert trouble.document == JOB


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (zlib.compress(PLAIN), "deflate", "names 'deflate', which mailq cannot decode; use gzip or leave it out"),
        (zlib.compress(PLAIN), "gzip", "not JSON"),
        (b"\x28\xb5\x2f\xfd", "ZSTD", "names 'zstd', which mailq cannot decode; use gzip or leave it out"),
        (b"\x00", "\x1b[2J", r"names '\\x1b[2j', which"),
        (b"", "gzip", "not JSON"),
        (ZIPPED[:-4], "gzip", "cut short; publish it anew"),
        (ZIPPED[:9], "gzip", "cut short; publish it anew"),
        (ZIPPED[:12] + b"\xff" + ZIPPED[13:], "gzip", "damaged"),
        (ZIPPED + b"x", "gzip", "followed by something else; publish the gzip stream alone"),
        (gzip.compress(b"") * 1000 + ZIPPED, "gzip", "more than 1000 members; compress it as one"),
        (PLAIN.decode().encode("utf-16"), None, "octet 0xff at 0 is not UTF-8"),
        (b'{"mime":"\xe9"}', None, "octet 0xe9 at 9 is not UTF-8"),
        (PLAIN + b"\0", None, "not JSON"),
        (b'{"x":NaN}', None, "not JSON"),
        (b'{"x":Infinity}', None, "not JSON"),
        (b'{"x":NaN,"y":"\\ud83d"}', None, "not JSON"),
        (b'{"x":-Infinity,"y":"\\ud83d"}', None, "not JSON"),
        (b'{"x":"\\ud83d"', None, "not JSON"),
        (orjson.dumps(PLAIN.decode()), None, "not an object; publish one JSON object"),
        (b"[" + PLAIN + b"]", None, "not an object; publish one JSON object"),
    ],
)
def test_of_what_is_no_document_nothing_can_be_told(body, encoding, reason):
    trouble = refusal(body, encoding)
    assert reason.replace("\\\\", "\\") in trouble.reason
    assert trouble.document is None
    assert trouble.reason.isprintable()
    assert ";" in trouble.reason  # the remedy


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\uDE00", "\ufffd"),
        (rb"cut \uD83D", "cut \ufffd"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\ud83d\ude00\ude00", "\U0001f600\ufffd"),
        (rb"\ud83d\n\ude00", "\ufffd\n\ufffd"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\\\ud83d", "\\\ufffd"),
        (rb"\\\\ud83d\\\\\ude00", "\\\\ud83d\\\\\ufffd"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(text, mended):
    document = read_document(b'{"mime":"' + text + b'","label":["' + text + b'"]}', None, LIMIT)
    assert document == {"mime": mended, "label": [mended]}


def test_what_was_mended_is_told():
    assert load(unpack(rb'{"x":"\ud83d"}', None, LIMIT)) == ({"x": "\ufffd"}, (HALF,))
    assert load(unpack(rb'{"x":"\ud83d\ude00"}', None, LIMIT))[1] == ()


@given(st.lists(st.sampled_from([r"\ud83d", r"\ude00", r"\\", r"\"", r"\n", "u", "d83d", "é"]), max_size=12))
def test_what_is_mended_is_what_a_lenient_reader_reads(parts):
    text = '{"x":"' + "".join(parts) + '"}'
    lenient = json.loads(text)["x"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert read_document(text.encode(), None, LIMIT) == {"x": lenient}


def test_pairs_are_whole_wherever_a_slice_ends():
    for shift in range(14):
        text = b'{"x":"' + b"y" * (SLICE - 20 + shift) + rb"\ud83d\ude00\ud83d" + b'"}'
        assert orjson.loads(mend_surrogates(text))["x"].endswith("y\U0001f600\ufffd")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.booleans(), st.booleans())
@example({"x": "\ud83d"}, True, False)
@example({"\ud83d": [float("nan")]}, False, True)
@example({"x": 10**400}, False, False)
def test_whatever_is_read_can_be_written_and_read_again_to_the_same(document, zipped, bom):
    text = BOM * bom + json.dumps(document, ensure_ascii=True).encode()
    try:
        found = read_document(gzip.compress(text) if zipped else text, None, LIMIT)
    except InvalidJobError as trouble:
        found = trouble.document or {}
    text = orjson.dumps(found)
    assert orjson.dumps(read_document(text, None, LIMIT)) == text


def nested(depth):
    return b'{"recipient":"b@b.test","a/b":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("depth", [MAX_DEPTH, 245])
def test_what_is_deep_can_be_put_into_an_event(depth):
    assert orjson.dumps({"data": {"message": [read_document(nested(depth), None, LIMIT)]}})


@pytest.mark.parametrize("depth", [252, 260, 900])
def test_what_is_too_deep_is_told_without_it(depth):
    trouble = refusal(nested(depth))
    assert (trouble.pointer, trouble.document) == ("/a~1b", {"recipient": "b@b.test"})
    assert "nested too deeply to be given back" in trouble.reason


def test_values_are_counted_outside_of_strings():
    text = orjson.dumps({"mime": 'a: "b", [c]\\' * 1000, "list": [{"a": 1}, {"b": "x,y"}] * 10})
    assert count_values(text, 0, 10**6) == 1 + 3 + 10 * 2 * 3
    assert count_values(text, 10**6, 10**6) == 10**6


@pytest.mark.parametrize("shift", range(8))
def test_values_are_counted_wherever_a_slice_ends(shift):
    text = b'{"x":"' + b"y" * (SLICE - 12 + shift) + rb"\\\",[," + b'","z":[1,2]}'
    assert count_values(text, 0, 10**6) == 6


@given(VALUES)
def test_no_document_has_more_values_than_are_counted(value):
    def number(each):
        if isinstance(each, dict):
            return 1 + sum(1 + number(inner) for inner in each.values())
        return 1 + sum(map(number, each)) if isinstance(each, list) else 1

    text = json.dumps({"x": value}, separators=(",", ":")).encode()
    assert count_values(text, 0, 10**6) + 1 >= number({"x": value}) / 2


def test_a_body_of_many_values_is_refused_before_it_is_parsed():
    body = b'{"x":[' + b"{}," * (RESULTS_VALUES + 2000) + b"{}]}"
    with pytest.raises(InvalidJobError, match=r"more values than worker\.max_values allows; send fewer") as caught:
        unpack(gzip.compress(body), "gzip", 10 * LIMIT, 1000)
    assert caught.value.document is None


def test_somewhat_too_many_values_are_told_on_the_result_queues():
    document = JOB | {"x": [0] * 20_000}
    unpacked = unpack(orjson.dumps(document), None, LIMIT, 10_000)
    with pytest.raises(InvalidJobError, match=r"more values than worker\.max_values allows") as caught:
        load(unpacked)
    assert caught.value.document == document


def test_results_that_mailq_added_do_not_count():
    document = JOB | {"x": [0] * 9000, "results": [{"state": "rcptto", "code": 451}] * 2000}
    assert load(unpack(orjson.dumps(document), None, LIMIT, 10_000)) == (document, ())


def test_the_weight_is_that_of_the_values_where_they_are_many():
    few = orjson.dumps({"mime": "a, b: c\n" * 10_000})
    many = orjson.dumps({"x": [{}] * (UNCOUNTED // 2)})
    assert unpack(few, None, LIMIT).weight == len(few) > UNCOUNTED
    assert unpack(many, None, LIMIT).weight == len(many) + VALUE * (UNCOUNTED + 2)
    assert FEW < UNCOUNTED + 2


def bomb(size):
    """Return gzip of so many spaces, made a member at a time so that the test itself stays small."""
    pack = zlib.compressobj(9, wbits=31)
    return b"".join(pack.compress(b" " * LIMIT) for _ in range(size // LIMIT)) + pack.flush()


def test_a_gzip_bomb_is_refused_by_what_it_says_of_itself(monkeypatch):
    packed = bomb(100 * LIMIT)
    monkeypatch.setattr("mailq.core.jobs.content_encoding.zlib.decompressobj", None)
    with pytest.raises(OversizeBodyError, match="more than 1000000 octets; send less, or raise"):
        unpack(packed, "gzip", LIMIT)


@pytest.mark.parametrize("end", [struct.pack("<I", 5), b"\0" * 9])
def test_a_gzip_bomb_that_lies_unfolds_no_further_than_the_limit(end):
    packed = bomb(20 * LIMIT)
    lie = packed[:-4] + end if len(end) == 4 else packed + end
    with pytest.raises(OversizeBodyError, match="more than 1000000 octets"):
        unpack(lie, "gzip", LIMIT)


def test_a_large_body_is_whole_however_many_pieces_it_takes():
    document = JOB | {"mime": secrets.token_hex(300_000) + "x" * 3 * LIMIT}
    assert read_document(gzip.compress(orjson.dumps(document)), "gzip", 10 * LIMIT) == document


def test_many_members_unfold_no_further_than_the_limit():
    with pytest.raises(OversizeBodyError, match="more than 1000000 octets"):
        unpack(gzip.compress(b" " * 300_000) * 4, "gzip", LIMIT)


@pytest.mark.parametrize(
    ("body", "octets", "zipped"),
    [
        (PLAIN, len(PLAIN), False),
        (ZIPPED, max(len(ZIPPED), len(PLAIN)), True),
        (gzip.compress(b"x" * 5000), 5000, True),
    ],
)
@pytest.mark.parametrize("encoding", [None, "gzip", "GZIP:UTF-8"])
def test_the_size_of_a_message_does_not_depend_on_how_its_encoding_is_spelt(body, octets, zipped, encoding):
    consumed = Consumed(body, 1, content_encoding=encoding)
    assert (consumed.octets, consumed.zipped) == (octets, zipped)
