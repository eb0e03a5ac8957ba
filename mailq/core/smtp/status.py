"""Where a reply has its enhanced status code (RFC 3463): first of all, as RFC 2034 says, or somewhere else. Pure.

Many servers write it as they like: `#5.1.1`, `[5.1.1]`, `(5.1.1)`, `5.1.1:`, `5.1.1<address>`, or only in the last
line.
Elsewhere than in its place a code counts only if its class is that of the reply, and its subject a registered one:
addresses and version numbers look alike.
"""

import re
from collections.abc import Sequence

_FIRST = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)")
_BEGINS = re.compile(r"([245]\.[0-7]\.[0-9]{1,3})(?:[:;,<-]|\s|$)\s*")
_MARKED = re.compile(r"(?:[#(\[]|(?<!version):)\s?([245]\.[0-7]\.[0-9]{1,3})(?![.0-9])")
LOOKED_AT = 1000
"""Characters of a line that are searched."""


def separate(code: int, lines: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the status of a reply, None if it has none, and its lines without it where it stands in its place."""
    first = _FIRST.match(lines[0]) if lines else None
    if first is not None:
        return first[1], _without(first[1], lines)
    if code < 400:
        return None, list(lines)
    status = next(filter(None, (_begun(code, line) for line in lines)), None)
    if status is not None:
        return status, _without(status, lines)
    return next(filter(None, (inside(code, line) for line in lines)), None), list(lines)


def inside(code: int, text: str) -> str | None:
    """Return a status of the class of `code` that stands in a text as `#5.1.1`, `(5.1.1)`, `[5.1.1]` or `: 5.1.1`."""
    for found in _MARKED.finditer(text[:LOOKED_AT]):
        if found[1][0] == str(code)[0]:
            return found[1]
    return None


def _begun(code: int, line: str) -> str | None:
    found = _BEGINS.match(line)
    return found[1] if found and found[1][0] == str(code)[0] else None


def _without(status: str, lines: Sequence[str]) -> list[str]:
    """Return lines without a status that each may begin with; what follows it without a blank stays."""
    matches = [(line, _FIRST.match(line)) for line in lines]
    return [line[found.end() :] if found and found[1] == status else line for line, found in matches]
