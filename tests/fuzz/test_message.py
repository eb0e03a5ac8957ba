"""A valid job with any AMQP headers and properties: what mailq publishes of it is fit for the broker."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import targets

SEEDS = sorted((Path(targets.__file__).parent / "seeds" / "message").iterdir())

FIXED = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8, "f": 4, "d": 8, "T": 8, "D": 5}
"""AMQP's types of fixed size, by their letter: octets."""

NAMES = st.sampled_from(
    [b"CC", b"bcc", b"cC", b"x-mailq-publication", b"x-mailq-rounds", b"X-Death", b"n", b"", b"\xff"]
)


def long(kind):
    return lambda octets: kind + struct.pack(">I", len(octets)) + octets


def field(name, value):
    return bytes((len(name),)) + name + value


BOUNDS = st.sampled_from([b"\0", b"\xff", b"\x80", b"\x7f"])
PLAIN = st.sampled_from(sorted(FIXED)).flatmap(
    lambda kind: st.builds(
        lambda first, rest: kind.encode() + first + rest, BOUNDS, BOUNDS.map(lambda each: each * (FIXED[kind] - 1))
    )
) | st.binary(max_size=60).map(long(b"S"))
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3).map(b"".join).map(long(b"A"))
        | st.lists(st.builds(field, NAMES, inner), max_size=3).map(b"".join).map(long(b"F"))
    ),
    max_leaves=8,
)
TABLES = st.lists(st.builds(field, NAMES, VALUES), max_size=5).map(b"".join)


@given(TABLES, st.binary(max_size=400), st.booleans())
def test_every_publication_of_a_valid_job_can_be_published(table, text, escaped):
    table = table[:1020] + bytes(-len(table[:1020]) % 4)
    targets.message(bytes((len(table) // 4, 0 if escaped else 255)) + table + text)


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_seeds(seed):
    targets.message(seed.read_bytes())
