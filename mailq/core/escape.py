"""Characters of strangers that must not reach a terminal as they are, and how they are shown. Pure.

A terminal obeys control characters (C0, DEL, C1), so they could rewrite what an operator has read. Direction marks
and overrides (UAX 9) reorder a line, and line separators, zero-width and tag characters hide where words end.
U+200C and U+200D pass: Persian, Indic scripts and emoji are spelt with them. A tab passes in text.
"""

import re

UNSAFE = (
    "\x00-\x08\x0a-\x1f\x7f-\x9f"  # C0 but for the tab, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks, embeddings, overrides, isolates
    "\u2028\u2029"  # line and paragraph separators
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff"  # lone surrogates, which no terminal can be sent
    "\U000e0000-\U000e0fff"  # tags and other characters that are not seen
)
"""The inside of a character class of regular expressions: what `escaped` escapes."""

_UNSAFE = re.compile(f"[{UNSAFE}]")


def replaced(text: str) -> str:
    """Return a text with a question mark for each character that must not be shown."""
    return text if text.isprintable() else _UNSAFE.sub("?", text)


def escaped(text: str, kept: str = "") -> str:
    r"""Return a text or JSON with \uXXXX for each character that must not be shown, but for those in `kept`.

    JSON stays valid and keeps its meaning: outside of its strings only white space could be concerned.
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: match[0] if match[0] in kept else _escape(match[0]), text)


def _escape(character: str) -> str:
    """Return the escape of JSON (RFC 8259 section 7): characters beyond U+FFFF are two surrogates."""
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
