"""The delay queues: the lengths that there are, and the one for a wait. Pure."""

STEPS: dict[str, int] = {
    "1s": 1,
    "2s": 2,
    "5s": 5,
    "15s": 15,
    "30s": 30,
    "1m": 60,
    "2m": 120,
    "5m": 300,
    "10m": 600,
    "15m": 900,
    "30m": 1800,
    "1h": 3600,
    "2h": 7200,
    "4h": 14400,
    "8h": 28800,
    "12h": 43200,
    "24h": 86400,
}
"""The delay queues: name to seconds, ascending."""


LATE_SECONDS = 1.0


LATE_SHARE = 0.05
"""A hop may be late by the larger of these two; it is never early."""


def delay_step(seconds: float) -> str:
    """Return the name of the delay queue for a wait of so many seconds.

    The smallest step that is at most 5 % or 1 s too long, else the largest that is not too long.
    """
    late = max(LATE_SECONDS, seconds * LATE_SHARE)
    below = "1s"
    for name, step in STEPS.items():
        if seconds <= step <= seconds + late:
            return name
        if step < seconds:
            below = name
    return below
