"""What must not reach a terminal as it is, and that JSON keeps its meaning when that is escaped."""

import json

import pytest

from mailq.core.escape import escaped, replaced

UNSAFE = [
    "\x00", "\x07", "\x0a", "\x0d", "\x1b", "\x7f", "\x80", "\x85", "\x9b", "\x9f",
    "\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)),
    "\u2028", "\u2029", "\u00ad", "\u180e", "\u200b", "\u2060", "\ufeff", "\ufffb", "\ud800", "\udfff",
    "\U000e0001", "\U000e0041",
]  # fmt: skip
SAFE = ["a", "\t", "ü", "\u00a0", "\u200c", "\u200d", "日", "\ufffd", "👩\u200d💻", "[red]"]


@pytest.mark.parametrize("character", UNSAFE, ids=ascii)
def test_what_a_terminal_obeys_or_a_reader_does_not_see_is_escaped(character):
    assert replaced(f"a{character}b") == "a?b"
    text = escaped(f"a{character}b")
    assert text.isprintable()
    assert text.startswith("a\\u")
    if not "\ud800" <= character <= "\udfff":
        assert json.loads(f'"{text}"') == f"a{character}b"
    assert escaped(f"a{character}b", kept=character) == f"a{character}b"


@pytest.mark.parametrize("text", SAFE, ids=ascii)
def test_what_can_be_read_stays(text):
    assert replaced(text) == escaped(text) == text
