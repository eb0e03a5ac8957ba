"""Timestamps in JSON: `YYYY-MM-DD HH:MM:SS`, always UTC, as MailerQ writes them."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

FORMAT = "%Y-%m-%d %H:%M:%S"

_LEAP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}):60((?:\.[0-9]+)?(?:Z|[+-][0-9:]+)?)")
"""A time with a leap second: the last minute of a day in UTC may have it (RFC 3339 section 5.6)."""

_LOCAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ Tt][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?")
"""Date and time of day without an offset; a date alone is not enough."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: str) -> datetime:
    """Return the moment written in `text`: MailerQ's form, or RFC 3339 with an offset or `Z`.

    Raises:
        ValueError: it is neither.
    """
    try:
        return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)
    except ValueError:
        moment = _rfc3339(text)
    if moment.tzinfo is None:
        raise ValueError("has neither the form YYYY-MM-DD HH:MM:SS nor a UTC offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the first or after the last year") from None


def _rfc3339(text: str) -> datetime:
    """Return the time in RFC 3339's form, letters in either case; a leap second is the second after it."""
    text = text.upper()
    leap = _LEAP.fullmatch(text)
    if leap is None:
        return datetime.fromisoformat(text)
    try:
        return datetime.fromisoformat(f"{leap[1]}:59{leap[2]}") + timedelta(seconds=1)
    except OverflowError:
        raise ValueError("is after the last year") from None


def assume_utc(text: str) -> str | None:
    """Return a time that names no offset as one in UTC; None where the text is none, or is in form."""
    local = text.strip()
    if _LOCAL.fullmatch(local) is None or _is_time(text) or not _is_time(f"{local}Z"):
        return None
    return f"{local}Z"


def _is_time(text: str) -> bool:
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def format_time(moment: datetime) -> str:
    """Return the moment in MailerQ's form, fractions of a second cut off."""
    passed = moment - _EPOCH
    return _format(passed.days, passed.seconds)


@lru_cache(maxsize=4096)
def _format(days: int, seconds: int) -> str:
    return (_EPOCH + timedelta(days, seconds)).strftime(FORMAT)
