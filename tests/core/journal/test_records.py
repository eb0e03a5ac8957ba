"""Records: what was written is read, whatever stands after it; and what records mean together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.journal import records as codec
from mailq.core.journal.index import JournalIndex
from mailq.core.journal.records import (
    HEADER_SIZE,
    MAX_ANSWER,
    MAX_RECORD,
    EntryId,
    EntryState,
    Header,
    JobKey,
    Mark,
    Tail,
    decode,
    decode_header,
    encode_header,
    tail,
)

A, B, C = b"a" * 8, b"b" * 8, b"c" * 8
KEY = JobKey(b"k" * 16, marked=True)
EQUAL = JobKey(b"e" * 16, marked=False)

serials = st.integers(0, 2**64 - 1)
moments = st.integers(0, 2**32 - 1)
digests = st.binary(min_size=16, max_size=16)
keys = st.builds(JobKey, digests, st.booleans())
entries = st.builds(EntryId, st.sampled_from([A, B, C]), st.integers(0, 3))
records = st.one_of(
    st.builds(codec.intent, st.integers(0, 3), st.builds(JobKey, st.sampled_from([b"k" * 16]), st.booleans()), moments),
    st.builds(codec.intent, serials, keys, moments),
    st.builds(codec.answer, st.integers(0, 3), st.binary(max_size=100)),
    st.builds(codec.ending, st.sampled_from([Mark.WITHDRAWN, Mark.RELEASED, Mark.SETTLED]), entries),
    st.builds(codec.published, st.lists(st.integers(0, 3), min_size=1, max_size=4)),
    st.builds(codec.claim, entries, moments),
    st.builds(codec.trial, st.sampled_from([Mark.TRIAL, Mark.TRIED]), digests, moments),
)


def index_of(*written, dead=()):
    """Return the index of (writer, record, record...) in that order."""
    index = JournalIndex()
    for writer in dict.fromkeys(each[0] for each in written):
        index.begin(Header(writer, 1, 0))
    for writer in dead:
        index.died(writer)
    for writer, *records in written:
        index.apply(writer, decode(b"".join(records))[0])
    return index


@given(st.lists(records, max_size=20))
def test_whole_records_are_read_whole(written):
    bodies, used = decode(b"".join(written))
    assert [record[8:] for record in written] == bodies
    assert used == sum(map(len, written))


@given(st.lists(records, max_size=8), records, st.data())
def test_what_stands_before_a_torn_tail_is_found(written, last, data):
    cut = data.draw(st.integers(0, len(last) - 1))
    whole = b"".join(written)
    rest = last[:cut] + bytes(data.draw(st.sampled_from([0, 9, 5000])))
    if rest[: len(last)] == last:  # what was cut off were zeros
        return
    bodies, used = decode(whole + rest)
    assert (len(bodies), used) == (len(written), len(whole))
    assert tail(rest) is (Tail.TORN if any(rest) else Tail.CLEAN)


@given(st.lists(records, min_size=2, max_size=8), st.data())
def test_a_flipped_bit_ends_the_reading_and_is_told_from_a_torn_tail(written, data):
    whole = bytearray(b"".join(written))
    place = data.draw(st.integers(0, len(whole) - len(written[-1]) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    bodies, used = decode(bytes(whole))
    assert used <= place
    assert [record[8:] for record in written[: len(bodies)]] == bodies
    assert len(bodies) < len(written)


def test_damage_is_damage():
    first, second = codec.intent(1, KEY, 0), codec.intent(2, KEY, 0)
    broken = bytearray(first)
    broken[20] ^= 1
    assert tail(bytes(broken) + second + bytes(100)) is Tail.CORRUPT
    assert tail(bytes(len(first)) + second) is Tail.CORRUPT


@given(st.lists(st.one_of(records, st.binary(max_size=60)), max_size=20), st.sampled_from([A, B, C]))
def test_nothing_that_is_read_raises(pieces, writer):
    data = b"".join(pieces)
    bodies, used = decode(data)
    assert used <= len(data)
    tail(data[used:])
    decode_header(data)
    index = index_of((A,), (B,), (C,), dead=[C])
    index.apply(writer, bodies)
    index.apply(writer, [piece for piece in pieces if piece])
    index.state(KEY)
    index.state(EQUAL)
    index.died(B)
    index.begin(Header(A, 2, 0))
    index.forget(writer)
    index.forget(next(each for each in (A, B, C) if each != writer))


def test_a_length_is_not_believed():
    assert decode((0xFFFFFFFF).to_bytes(4, "little") + bytes(100)) == ([], 0)
    longest = codec.answer(1, b"x" * MAX_ANSWER)
    assert len(longest) == MAX_RECORD
    assert decode(longest)[1] == MAX_RECORD
    assert decode(codec.answer(1, b"x" * (MAX_ANSWER + 1))) == ([], 0)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 8 * 27))
def test_a_header_is_whole_or_none(writer, number, begun, bit):
    header = encode_header(Header(writer, number, begun))
    assert decode_header(header + b"more") == Header(writer, number, begun)
    assert decode_header(header[:-1]) is None
    broken = bytearray(header)
    broken[bit // 8 % HEADER_SIZE] ^= 1 << bit % 8
    assert decode_header(bytes(broken)) is None


INTENT = codec.intent(1, KEY, 5)
TWIN = codec.intent(1, EQUAL, 5)
ANSWER = codec.answer(1, b"yes")
OWN_END = codec.ending(Mark.SETTLED, EntryId(A, 1))
CLAIM = codec.claim(EntryId(A, 1), 5)


@pytest.mark.parametrize(
    ("key", "written", "dead", "state"),
    [
        (KEY, [(A,)], [], EntryState.UNKNOWN),
        (KEY, [(A, INTENT)], [], EntryState.UNDERWAY),
        (KEY, [(A, INTENT)], [A], EntryState.DOUBT),
        (KEY, [(A, INTENT, codec.ending(Mark.WITHDRAWN, EntryId(A, 1)))], [A], EntryState.UNKNOWN),
        (KEY, [(A, INTENT, ANSWER)], [A], EntryState.ANSWERED),
        (KEY, [(A, INTENT, ANSWER)], [], EntryState.ANSWERED),
        (KEY, [(A, INTENT, ANSWER, OWN_END)], [], EntryState.SETTLED),
        (KEY, [(A, INTENT, ANSWER, OWN_END)], [A], EntryState.SETTLED),
        (KEY, [(A, INTENT, ANSWER), (B, CLAIM)], [A], EntryState.UNDERWAY),
        (KEY, [(B, CLAIM), (A, INTENT, ANSWER)], [A], EntryState.UNDERWAY),
        (KEY, [(A, INTENT, ANSWER), (B, CLAIM)], [A, B], EntryState.ANSWERED),
        (KEY, [(A, INTENT), (B, CLAIM)], [A, B], EntryState.DOUBT),
        (KEY, [(A, INTENT, ANSWER), (B, CLAIM, OWN_END)], [A, B], EntryState.SETTLED),
        (KEY, [(B, CLAIM, OWN_END), (A, INTENT, ANSWER)], [A, B], EntryState.SETTLED),
        (KEY, [(A, INTENT, ANSWER), (B, CLAIM, codec.ending(Mark.RELEASED, EntryId(A, 1)))], [A], EntryState.ANSWERED),
        (KEY, [(A, INTENT), (B, INTENT)], [A], EntryState.UNDERWAY),
        (KEY, [(A, INTENT), (B, INTENT, ANSWER, codec.ending(Mark.SETTLED, EntryId(B, 1)))], [A], EntryState.SETTLED),
        (EQUAL, [(A, TWIN, ANSWER)], [A], EntryState.ANSWERED),
        (EQUAL, [(A, TWIN, ANSWER)], [], EntryState.UNDERWAY),
        (EQUAL, [(A, TWIN, ANSWER, codec.ending(Mark.RELEASED, EntryId(A, 1)))], [], EntryState.ANSWERED),
        (EQUAL, [(A, TWIN, ANSWER, OWN_END)], [A], EntryState.UNKNOWN),
        (EQUAL, [(B, CLAIM, OWN_END), (A, TWIN, ANSWER)], [A], EntryState.UNKNOWN),
    ],
)
def test_how_a_job_stands(key, written, dead, state):
    assert index_of(*written, dead=dead).state(key).state is state


def test_what_a_next_file_does_not_say_again_is_over():
    index = index_of((A, INTENT, codec.intent(2, EQUAL, 5), codec.claim(EntryId(B, 1), 5)), (B, INTENT), dead=[B])
    index.begin(Header(A, 2, 0))
    index.apply(A, decode(codec.intent(2, EQUAL, 5))[0])
    assert index.state(EQUAL).state is EntryState.UNDERWAY
    assert index.state(KEY).state is EntryState.DOUBT


def test_a_forgotten_writer_leaves_nothing():
    index = index_of((A, INTENT), (B, CLAIM, OWN_END))
    index.forget(A)
    index.forget(B)
    assert not any((index._writers, index._open, index._claims, index._ended))


def test_only_trials_that_nobody_survived_count():
    digest = b"d" * 16
    begun, survived = codec.trial(Mark.TRIAL, digest, 1), codec.trial(Mark.TRIED, digest, 1)
    index = index_of((A, begun, begun, survived), (B, begun), (C, survived, begun, survived), dead=[A, C])
    assert index.trials(digest) == 1
    index.died(B)
    assert index.trials(digest) == 2


def test_what_is_settled_is_remembered_and_no_longer_open():
    index = index_of((A,))
    for number in range(30_000):
        key = JobKey(number.to_bytes(16), marked=True)
        index.apply(A, decode(codec.intent(number, key, 1) + codec.ending(Mark.SETTLED, EntryId(A, number)))[0])
    assert not index._writers[A].items
    assert not index._open
    index.forget(A)  # a copy of a retry may come after the file is gone
    assert index.state(JobKey((0).to_bytes(16), marked=True)).state is EntryState.SETTLED


@given(st.lists(records, max_size=20))
def test_what_a_writer_left_open_is_told_by_the_records_of_it_alone(written):
    index = index_of((A, *written), dead=[A])
    left = index.open(A)
    copy = index_of((A, *left), dead=[A])
    assert copy.open(A) == left
    assert copy._writers[A].items.keys() == index._writers[A].items.keys()
    for key in (KEY, JobKey(KEY.digest, marked=False)):
        if index.state(key).state is not EntryState.SETTLED:
            assert copy.state(key) == index.state(key)
