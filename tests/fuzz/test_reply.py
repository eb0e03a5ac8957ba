"""Any stream of octets as replies: the same however cut, never more kept than allowed, and linear work."""

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz import targets
from mailq.core.smtp.reply import MAX_LINE, MAX_REPLY, MalformedReplyError, ReplyReader

CODES = [b"250", b"220", b"354", b"421", b"550", b"599", b"199", b"600", b"25", b"2500", b"abc", b""]
TEXTS = [b"ok", b"", b"5.1.1 no", b"2.0.0", b"5.1.1", b"\x00\x1b[2J", b"\xff\xc2\x85", "\u202e\u2028".encode(), b"x\ry"]
LINES = st.builds(
    lambda code, mark, text, end: code + mark + text + end,
    st.sampled_from(CODES),
    st.sampled_from([b" ", b"-", b"", b"_", b"\t"]),
    st.sampled_from(TEXTS) | st.binary(max_size=20),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b"\0\r\n", b""]),
)
LONG = st.builds(lambda size, end: b"250-" + b"x" * size + end, st.integers(MAX_LINE - 8, MAX_LINE + 2), LINES)
STREAMS = st.lists(LINES | LONG, max_size=30).map(b"".join) | st.binary(max_size=500)


@given(STREAMS)
@example(b"250 ok\r\n" + b"2" * (MAX_LINE + 1))
@example(b"250-" + b"x" * (MAX_LINE - 5) + b"\r\n250 y\r\n")
def test_a_stream_is_the_same_replies_however_it_is_cut(stream):
    targets.reply(stream)


@given(STREAMS, st.lists(st.integers(1, 6000), max_size=20))
def test_what_is_kept_is_bounded_at_every_moment(stream, sizes):
    reader = ReplyReader()
    for piece in targets.cut(stream, sizes):
        try:
            reader.feed(piece)
        except MalformedReplyError:
            return
        assert len(reader._buffer) <= MAX_LINE
        assert reader._size <= MAX_REPLY
        assert len(reader._codes) == len(reader._lines)
        assert sum(map(len, reader._lines)) <= MAX_REPLY
        assert len(reader._lines) <= MAX_REPLY // 4


ENDLESS = [b"250-\n", b"250-x\r\n", b"250-" + b"y" * 4000 + b"\r\n", b"2", b"250-", b"\xff", b"250-\x00\xc3\xa9\r\n"]


@pytest.mark.parametrize("piece", ENDLESS)
def test_a_server_that_never_ends_is_cut_off_soon_and_cheaply(piece):
    count = 0

    def endless():
        nonlocal count
        while True:
            count += 1
            yield piece

    tracemalloc.start()
    try:
        replies, over = targets.read(endless())
        assert over
        assert {reply.code for reply in replies} <= {250}  # judged by what was read of it
        assert count * len(piece) <= 2 * MAX_REPLY
        assert tracemalloc.get_traced_memory()[1] < 20 * MAX_REPLY
    finally:
        tracemalloc.stop()


def test_a_flood_in_one_read_costs_memory_in_proportion():
    flood = b"250\n" * 64 * 1024  # as much as one read brings
    tracemalloc.start()
    try:
        assert len(ReplyReader().feed(flood)) == 64 * 1024
        assert tracemalloc.get_traced_memory()[1] < 100 * len(flood)
    finally:
        tracemalloc.stop()
