"""Schedules of attempts: a list of seconds or a formula, and how many attempts a schedule has room for. Pure.

A formula such as `5*2^n` is EmailEngine's exponential back-off: `n` is the number of attempts made, so that the waits
are 10, 20, 40 seconds and so on. The formula becomes the list that it stands for, and nothing else knows formulas.
"""

import re
from collections.abc import Sequence
from itertools import takewhile

LONGEST = 31_536_000
"""Seconds of the longest wait, a year."""

MOST = 100
"""Waits in a schedule at most; the last repeats."""

FORMULA = r"^[1-9][0-9]{0,4}\*[1-9][0-9]?(\.[0-9]{1,3})?\^n$"
"""The form of a formula: seconds, `*`, factor, `^n`. Whatever has this form begins with a wait of less than a year."""


def from_formula(text: str) -> tuple[int, ...]:
    """Return the waits in seconds that a formula stands for, up to a year.

    Raises:
        ValueError: the text is no formula.
    """
    if not re.fullmatch(FORMULA, text):
        raise ValueError('is neither a list of seconds nor a formula such as "5*2^n"')
    base, _, factor = text.removesuffix("^n").partition("*")
    waits = (round(int(base) * float(factor) ** n) for n in range(1, MOST + 1))
    return tuple(takewhile(lambda wait: wait <= LONGEST, waits))


def planned(made: int, at: float, end: float, schedule: Sequence[int], most: int) -> int:
    """Return the number of attempts until a job is given up, of which `made` are made and the last is at `at`.

    `end` is the moment after which no attempt is made; both are in seconds on one clock. There are `most` at most.
    """
    while schedule and made < most:
        wait = schedule[min(made, len(schedule)) - 1] if made else 0
        if made >= len(schedule):
            return min(made + max(int((end - at) // wait), 0), most)
        at += wait
        if at > end:
            break
        made += 1
    return made
