"""`python -m bench.classify`: what the classification of a failed attempt costs in CPU time.

Replies that a worker has seen the like of, replies that it has not, replies in words that nobody knows, and
replies made to cost; and how long the rules take to load. The corpus of the tests is what is classified, where a
first time counts by rules just loaded. Thread CPU time, the best of several rounds, so that what else runs on
the machine counts little. The last line is one JSON object; exit status 1 if a budget is exceeded.
"""

import random
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from mailq.core.answers.classify import Ruleset
from mailq.core.answers.rules import read_reply
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.data import bounces

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "replies.toml"

BUDGET = {"load_ms": 50.0, "known_us": 30.0}
"""What loading and one classification may cost."""

ROUNDS = 20

LOADS = 6
"""Rounds of what takes rules that have seen nothing yet."""

Sent = tuple[Reply, Sequence[str]]
"""A reply and the hosts that send it."""


def measure() -> dict[str, float]:
    """Return the figures: milliseconds to load the rules, microseconds a reply, and how many there are of both."""
    rules = bounces()
    ruleset = Ruleset.load([rules])
    replies = _replies(ruleset)
    random.Random(1).shuffle(replies)  # noqa: S311 - the same order each time
    rounds = [_fresh(rules, replies) for _ in range(LOADS)]
    figures = {name: min(figures[name] for figures in rounds) for name in rounds[0]}
    figures["known_us"] = min(_each(ruleset, replies) for _ in range(ROUNDS))
    figures["hostile_us"] = _each(ruleset, _hostile(replies))
    figures = {name: round(value, 1) for name, value in figures.items()}
    return figures | {"rules": len(ruleset.rules), "replies": len(replies)}


def main() -> int:
    """Measure, print, and return the exit status."""
    figures = measure()
    what = {
        "load_ms": "ms to load the rules",
        "first_us": "µs a reply, the first that a worker sees",
        "unlike_us": "µs a reply, unlike those seen before",
        "strange_us": "µs a reply, the letters of its words shuffled, none like it seen before",
        "known_us": "µs a reply, of a kind seen before",
        "hostile_us": "µs a reply of 32 KB, made of the rules' words",
    }
    for name, words in what.items():
        budget = f" (budget {BUDGET[name]:g})" if name in BUDGET else ""
        sys.stdout.write(f"{figures[name]:10.1f} {words}{budget}\n")
    sys.stdout.write(f"{orjson.dumps(figures).decode()}\n")
    return int(any(figures[name] > budget for name, budget in BUDGET.items()))


def _fresh(rules: str, replies: Sequence[Sent]) -> dict[str, float]:
    """Return what loading costs, and replies of which the rules just loaded have not seen the like."""
    half = len(replies) // 2
    loaded: list[Ruleset] = []
    figures = {"load_ms": 1000 * _seconds(lambda: loaded.append(Ruleset.load([rules])))}
    figures["first_us"] = _each(loaded[0], replies[:half])
    figures["unlike_us"] = _each(loaded[0], replies[half:])
    figures["strange_us"] = _each(Ruleset.load([rules]), _strange(replies))
    return figures


def _strange(replies: Sequence[Sent]) -> list[Sent]:
    dice = random.Random(3)  # noqa: S311 - the same texts each time

    def shuffled(word: str) -> str:
        return "".join(dice.sample(word, len(word))) if word.isalpha() else word

    return [(reply._replace(text=" ".join(map(shuffled, reply.text.split()))), hosts) for reply, hosts in replies]


def _replies(ruleset: Ruleset) -> list[Sent]:
    pages = tomllib.loads(CORPUS.read_text("utf-8"))["page"]
    return [
        (read_reply(text), ruleset.host_of(page.get("provider", "")))
        for page in pages
        for _, _, text in page.get("replies", []) + page.get("held_out", [])
    ]


def _hostile(replies: Sequence[Sent]) -> list[Sent]:
    dice = random.Random(2)  # noqa: S311 - the same texts each time
    words = [word for reply, _ in replies for word in reply.text.split()]
    texts = [" ".join(dice.choices(words, k=8000))[: 32 * 1024] for _ in range(200)]
    return [(Reply(550, None, text), ()) for text in texts]


def _each(ruleset: Ruleset, replies: Sequence[Sent]) -> float:
    """Return microseconds of CPU a reply."""

    def work() -> None:
        for reply, hosts in replies:
            ruleset.classify(
                state=State.RCPTTO,
                kind=Kind.ERROR,
                code=reply.code,
                status=reply.status or f"{reply.code // 100}.0.0",
                text=reply.text,
                hosts=hosts,
                from_peer=True,
            )

    return _seconds(work) / len(replies) * 1e6


def _seconds(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


if __name__ == "__main__":
    sys.exit(main())
