"""A conversation as people read it: what was said last before an attempt failed.

While an attempt runs, what is said is only noted (`Said`, in `core.results.result.Trail`); a delivered message pays for
nothing else. `lines` makes the transcript of an attempt that failed: the newest lines, bounded and printable.
Whoever sends credentials notes them `masked`, and of a message its size. What a server repeats of them is masked where
it is told (`core.results.result`), and only there: what was said is understood as it came.
"""

from collections.abc import Iterable, Iterator, Sequence

from mailq.core.smtp.reply import Reply

Said = Reply | tuple[str, ...] | int | str
"""The server's answer; commands, as written together; a message of so many octets; or an event, in words."""

MAX_TRANSCRIPT = 2048
"""Octets of a transcript, the ends of its lines included."""

MAX_LINE = 500
"""Octets of one line of a transcript; a result has the last answer in full."""

MASK = "***"
"""Stands for what must not be told."""

_CUT = "..."


def cut(reply: Reply) -> Reply:
    """Return as much of a long reply as a transcript may come to show: a stranger's words are kept until then."""
    return reply._replace(text=reply.text[:MAX_TRANSCRIPT] + _CUT)


def masked(line: str, command: str) -> str:
    """Return a line of a `command` that carries secrets, such as `AUTH PLAIN`, as it may be told."""
    if line == command:
        return line
    return f"{command} {MASK}" if line.startswith(f"{command} ") else MASK


def without(secrets: Iterable[str], text: str) -> str:
    """Return a text in which no secret stands; of two that share their beginning the longer one comes first."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def lines(said: Sequence[Said]) -> tuple[str, ...]:
    """Return the transcript: `C:` the client, `S:` the server, `*` an event; `...` first if it had more lines."""
    newest: list[str] = []
    room = MAX_TRANSCRIPT - len(_CUT) - 1
    for line in _backwards(said):
        room -= len(line.encode()) + 1
        if room < 0:
            newest.append(_CUT)
            break
        newest.append(line)
    return tuple(reversed(newest))


def _backwards(said: Sequence[Said]) -> Iterator[str]:
    for each in reversed(said):
        for line in reversed(_written(each)):
            yield _shown(line)


def _written(said: Said) -> list[str]:
    match said:
        case Reply(code, status, text):
            *first, last = text.split("\n")
            status = f"{status} " if status else ""
            return [*(f"S: {code}-{status}{line}" for line in first), f"S: {code} {status}{last}".rstrip()]
        case tuple():
            return [f"C: {line}" for line in said]
        case int():
            return [f"* message of {said} octets"]
    return [f"* {said}"]


def _shown(line: str) -> str:
    """Return a line of at most `MAX_LINE` octets, all of which can be seen."""
    seen = line if line.isprintable() else "".join(each if each.isprintable() else "?" for each in line)
    octets = seen.encode()
    if len(octets) <= MAX_LINE:
        return seen
    return octets[: MAX_LINE - len(_CUT)].decode(errors="ignore") + _CUT
