"""What becomes of each message consumed: it ends in one of these ways, or it is in flight.

consumed = success + failure + rescheduled + delayed + poisoned + returned + repeated + in flight, for each
process and for all: what does not add up is a bug (`mailq_drift`).
"""

from mailq.core.answers.verdict import Outcome
from mailq.core.states import Word


class Disposition(Word):
    """How a consumed message ended."""

    SUCCESS = "success"
    """Its result, a success, is published."""
    FAILURE = "failure"
    """Its result, a failure, is published."""
    RESCHEDULED = "rescheduled"
    """It is on its way to another attempt, and its result published."""
    DELAYED = "delayed"
    """It is on its way back, without an attempt."""
    POISONED = "poisoned"
    """It is in the poison queue."""
    RETURNED = "returned"
    """The broker has it again, unchanged."""
    REPEATED = "repeated"
    """It was a repetition: all that it asked for was done and published before."""


ENDS: dict[Outcome, Disposition] = {
    Outcome.SUCCESS: Disposition.SUCCESS,
    Outcome.FAILURE: Disposition.FAILURE,
    Outcome.RETRY: Disposition.RESCHEDULED,
}
"""How a message ends whose result is published, by the verdict."""
