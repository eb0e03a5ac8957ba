"""Timestamps in JSON: `YYYY-MM-DD HH:MM:SS`, always UTC, as MailerQ writes them."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

FORMAT = "%Y-%m-%d %H:%M:%S"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: str) -> datetime:
    """Return the moment written in `text`: MailerQ's form, or RFC 3339 with an offset or `Z`.

    Raises:
        ValueError: it is neither.
    """
    try:
        return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)
    except ValueError:
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("has neither the form YYYY-MM-DD HH:MM:SS nor a UTC offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the first or after the last year") from None


def format_time(moment: datetime) -> str:
    """Return the moment in MailerQ's form, fractions of a second cut off."""
    passed = moment - _EPOCH
    return _format(passed.days, passed.seconds)


@lru_cache(maxsize=4096)
def _format(days: int, seconds: int) -> str:
    return (_EPOCH + timedelta(days, seconds)).strftime(FORMAT)
