"""Replies: the form of RFC 5321 section 4.2, however split, and nothing without a bound."""

import itertools
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.smtp.reply import (
    MAX_BLANK,
    MAX_LINE,
    MAX_REPLY,
    MalformedReplyError,
    Reply,
    ReplyReader,
    make_reply,
    printable,
)

VALID = [
    (b"250 ok\r\n", [Reply(250, None, "ok")]),
    (b"250\r\n", [Reply(250, None, "")]),
    (b"250 \r\n", [Reply(250, None, "")]),
    (b"250 ok\n", [Reply(250, None, "ok")]),
    (b"354 go ahead\r\n", [Reply(354, None, "go ahead")]),
    (b"250 2.1.5 Recipient ok\r\n", [Reply(250, "2.1.5", "Recipient ok")]),
    (b"550 5.1.1\r\n", [Reply(550, "5.1.1", "")]),
    (b"550 5.1.1x no\r\n", [Reply(550, None, "5.1.1x no")]),
    (b"250 3.0.0 no such class\r\n", [Reply(250, None, "3.0.0 no such class")]),
    ("550 5.\u0661.1 no digits\r\n".encode(), [Reply(550, None, "5.\u0661.1 no digits")]),
    (b"250-mx.example\r\n250-SIZE 100\r\n250 HELP\r\n", [Reply(250, None, "mx.example\nSIZE 100\nHELP")]),
    (b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 three\r\n", [Reply(550, "5.7.1", "one\ntwo\nthree")]),
    (b"550-5.7.1 one\r\n550 5.7.10 two\r\n", [Reply(550, "5.7.1", "one\n5.7.10 two")]),
    (b"250-a\r\n250\r\n", [Reply(250, None, "a\n")]),
    (b"250 a\r\n550 b\r\n354 c\r\n", [Reply(250, None, "a"), Reply(550, None, "b"), Reply(354, None, "c")]),
    (b"250 n\x00l \x1b[31m\x07\xc2\x85\r\n", [Reply(250, None, "n?l ?[31m??")]),
    (b"250 \xff caf\xc3\xa9\r\n", [Reply(250, None, "� café")]),
    (b"250 a\rb\r\n", [Reply(250, None, "a?b")]),
    (b"599 unheard of\r\n", [Reply(599, None, "unheard of")]),
    (b"250\tok\r\n", [Reply(250, None, "ok")]),
    (b"250ok\r\n", [Reply(250, None, "ok")]),
    (b"550User unknown\r\n", [Reply(550, None, "User unknown")]),
    (b"250_ok\r\n", [Reply(250, None, "_ok")]),
    (b"250\r\r\n", [Reply(250, None, "")]),
    (b"250 ok\r\r\n", [Reply(250, None, "ok")]),
    (b"\r\n250 ok\r\n", [Reply(250, None, "ok")]),
    (b" \r\n\n\t\n250 ok\r\n\r\n", [Reply(250, None, "ok")]),
    (b"250-a\r\n\r\n250 b\r\n", [Reply(250, None, "a\nb")]),
    (b"250-a\r\n251 b\r\n", [Reply(251, None, "a\nb")]),
    (b"550-a\r\n554 5.7.1 b\r\n", [Reply(554, "5.7.1", "a\nb")]),
    (b"250-a\r\n550 b\r\n", [Reply(550, None, "a\nb")]),
    (b"550-a\r\n250 b\r\n", [Reply(550, None, "a\nb")]),
    (b"450-a\r\n550-b\r\n250 c\r\n", [Reply(550, None, "a\nb\nc")]),
    (b"220-a\r\n521 b\r\n", [Reply(521, None, "a\nb")]),
]


@pytest.mark.parametrize(("stream", "replies"), VALID)
def test_reads(stream, replies):
    reader = ReplyReader()
    assert reader.feed(stream) == replies
    assert not reader.pending


@pytest.mark.parametrize(("stream", "replies"), VALID)
def test_reads_the_same_when_split_anywhere(stream, replies):
    for place in range(len(stream) + 1):
        reader = ReplyReader()
        assert reader.feed(stream[:place]) + reader.feed(stream[place:]) == replies
    reader = ReplyReader()
    assert [reply for octet in stream for reply in reader.feed(bytes([octet]))] == replies


@given(st.lists(st.sampled_from(VALID), max_size=6), st.lists(st.integers(min_value=0, max_value=400), max_size=8))
def test_reads_the_same_when_glued(parts, cuts):
    stream = b"".join(octets for octets, _ in parts)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = ReplyReader()
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert [reply for piece in pieces for reply in reader.feed(piece)] == [reply for _, each in parts for reply in each]


MALFORMED = [
    b"hello\r\n",
    b"25 ok\r\n",
    b"2500 ok\r\n",
    b"150 too low\r\n",
    b"650 too high\r\n",
    b"000 zero\r\n",
    b"-250 ok\r\n",
    b" 250 ok\r\n",
    b"\x00250 ok\r\n",
    "٢٥٠ ok\r\n".encode(),
    b"<html>\r\n",
    b"\x16\x03\x01\x02\n",
]


@pytest.mark.parametrize("stream", MALFORMED)
def test_refuses(stream):
    with pytest.raises(MalformedReplyError) as caught:
        ReplyReader().feed(stream)
    assert not caught.value.replies
    assert str(caught.value).isprintable()


def read(*pieces):
    """Return the replies in a stream and whether rubbish ended it."""
    reader = ReplyReader()
    replies = []
    try:
        for piece in pieces:
            replies += reader.feed(piece)
    except MalformedReplyError as trouble:
        return [*replies, *trouble.replies], True
    return replies, False


@pytest.mark.parametrize("rubbish", MALFORMED)
def test_a_whole_reply_before_rubbish_counts_however_they_arrive(rubbish):
    stream = b"250 2.0.0 queued\r\n" + rubbish
    for place in range(len(stream) + 1):
        assert read(stream[:place], stream[place:]) == ([Reply(250, "2.0.0", "queued")], True)


LEGIBLE = [
    (b"250-a\r\nnonsense\r\n", Reply(250, None, "a")),
    (b"550-a\r\n150 b\r\n", Reply(550, None, "a")),
    (b"354-a\r\n250 b\r\n", Reply(250, None, "a\nb")),
    (b"550-a\r\n354 b\r\n", Reply(550, None, "a\nb")),
    (b"250-a\r\n" + b"\n" * (MAX_BLANK + 1), Reply(250, None, "a")),
    (b"550-" + b"x" * MAX_REPLY + b"\r\n250 b\r\n", Reply(550, None, "x" * (MAX_LINE - 4))),
    (b"250 " + b"x" * MAX_REPLY + b"\r\n", Reply(250, None, "x" * (MAX_LINE - 4))),
]


@pytest.mark.parametrize(("stream", "reply"), LEGIBLE)
def test_a_reply_that_goes_on_illegibly_is_judged_by_what_was_read_and_is_the_last(stream, reply):
    assert read(stream) == ([reply], True)
    assert read(*(stream[place : place + 1] for place in range(len(stream)))) == ([reply], True)


def test_a_long_line_is_cut():
    for size in (MAX_LINE - 4, MAX_LINE - 3, MAX_LINE, 5000, MAX_REPLY - 6):
        stream = b"250 2.0.0 queued " + b"x" * (size - 13) + b"\r\n250 next\r\n"
        first = Reply(250, "2.0.0", "queued " + "x" * min(size - 13, MAX_LINE - 17))
        assert read(stream) == read(stream[:4000], stream[4000:]) == ([first, Reply(250, None, "next")], False)


def test_a_line_without_end_and_without_a_code_is_refused():
    assert read(*[b"2"] * MAX_LINE) == ([], False)
    assert read(*[b"2"] * (MAX_LINE + 1)) == ([], True)


def test_blank_lines_without_end_are_refused():
    assert read(b"\r\n" * MAX_BLANK + b"250 ok\r\n") == ([Reply(250, None, "ok")], False)
    assert read(b"\r\n" * (MAX_BLANK + 1)) == ([], True)


def test_a_reply_without_end_is_ended_in_bounded_memory():
    tracemalloc.start()
    try:
        replies, over = read(*[b"250-\r\n"] * 10_000)
        assert [reply.code for reply in replies] == [250]
        assert over
        assert tracemalloc.get_traced_memory()[1] < 40 * MAX_REPLY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("stream", "rest"),
    [
        (b"250 2.0.0 queued", [Reply(250, "2.0.0", "queued")]),
        (b"250-queued\r\n", [Reply(250, None, "queued")]),
        (b"250-queued\r\n25", [Reply(250, None, "queued")]),
        (b"250-queued\r\n550", [Reply(550, None, "queued\n")]),
        (b"250", [Reply(250, None, "")]),
        (b"25", []),
        (b"nonsense", []),
        (b"250 ok\r\n", []),
        (b"", []),
    ],
)
def test_of_an_answer_that_the_end_of_the_stream_cuts_off_the_code_decides(stream, rest):
    reader = ReplyReader()
    reader.feed(stream)
    assert reader.rest() == rest
    assert not reader.pending


def test_the_limit_is_for_each_reply_not_for_the_connection():
    reader = ReplyReader()
    for _ in range(100):
        assert len(reader.feed(b"250 " + b"x" * 1000 + b"\r\n")) == 1


def test_pending():
    reader = ReplyReader()
    assert not reader.pending
    reader.feed(b"2")
    assert reader.pending
    reader.feed(b"50-a\r\n")
    assert reader.pending
    reader.feed(b"250 b\r\n")
    assert not reader.pending


@given(st.binary(max_size=300))
def test_never_raises_anything_else_and_never_shows_a_control(stream):
    try:
        replies = ReplyReader().feed(stream)
    except MalformedReplyError as trouble:
        replies = trouble.replies
    for reply in replies:
        assert 200 <= reply.code <= 599
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", reply.text)


@pytest.mark.parametrize(
    ("code", "positive", "permanent", "closing"),
    [(250, True, False, False), (354, False, False, False), (421, False, False, True), (550, False, True, False)],
)
def test_meaning_of_the_code(code, positive, permanent, closing):
    reply = make_reply(code, [])
    assert (reply.positive, reply.permanent, reply.closing) == (positive, permanent, closing)
    assert reply.text == ""


def test_printable():
    assert printable(b"a\x00b\rc\nd\te \r") == "a?b?c?d\te"
    assert printable(b"x" * 300) == "x" * 200
    assert printable("é".encode() * 2, limit=3) == "é�"
