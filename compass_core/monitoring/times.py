"""Times of a log as instants in UTC; what cannot be one for certain is refused."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

from compass_core.errors import ConfigError

EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Anything before is a clock that was never set, a zero or a wrong unit."""

MILLISECONDS_FROM: Final = 10**11
"""Numbers from here on are milliseconds: as seconds they would be after the year 5000, and as
milliseconds smaller ones would be before 1974."""

_TOO_LARGE: Final = 10**14
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NUMBER: Final = re.compile(r"-?[0-9]{9,14}(\.[0-9]+)?")


class BadTimeError(ValueError):
    """A value that is no time, or not for certain one; says why, never what it was."""


def time_zone(name: str) -> ZoneInfo | None:
    """Return the zone called `name`; None for no name.

    Raises:
        ConfigError: there is no such zone.
    """
    if not name:
        return None
    if name not in available_timezones():
        raise ConfigError(
            f"monitoring.log.time_zone: there is no time zone {name[:60]!r}. Give an IANA name such"
            " as Africa/Nairobi or UTC."
        )
    return ZoneInfo(name)


def parse_time(value: Any, zone: ZoneInfo | None) -> datetime:
    """Return `value` as an instant in UTC.

    ISO 8601 with ``Z`` or an offset; seconds since 1970, or milliseconds where the number is
    `MILLISECONDS_FROM` or more; a `datetime`. A time without a zone is in `zone`: one that a change
    to summer time skips is taken with the offset before the change (02:30 becomes 03:30), one that
    occurs twice is the first of the two.

    Raises:
        BadTimeError: no time, no zone, not finite, or before the year 2000.

    Examples:
        >>> parse_time("2026-03-01T09:00:00+03:00", None).isoformat()
        '2026-03-01T06:00:00+00:00'
        >>> parse_time(1772344800, None) == parse_time(1772344800000, None)
        True
    """
    try:
        found = _instant(value, zone)
    except (ValueError, OverflowError) as error:
        if isinstance(error, BadTimeError):
            raise
        raise BadTimeError("not a time") from None
    if found < EARLIEST:
        raise BadTimeError("before the year 2000")
    return found


def _instant(value: Any, zone: ZoneInfo | None) -> datetime:
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return _from_number(float(text))
        value = datetime.fromisoformat(text)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        if value.tzinfo is None:
            if zone is None:
                raise BadTimeError("without a zone")
            value = value.replace(tzinfo=zone, fold=0)
        instant: datetime = value.astimezone(UTC)
        return instant
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_number(value)
    if isinstance(value, Decimal):  # the wide integers of databases come so
        return _from_number(float(value))
    raise BadTimeError("no time" if value is None else "not a time")


def _from_number(value: float) -> datetime:
    if not math.isfinite(value) or abs(value) >= _TOO_LARGE:
        raise BadTimeError("not a time")
    seconds = value / 1000 if abs(value) >= MILLISECONDS_FROM else value
    return _EPOCH + timedelta(seconds=seconds)


def microseconds(instant: datetime) -> int:
    """Return microseconds since 1970.

    Examples:
        >>> microseconds(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
        1000000
    """
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the instant `value` microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=value)
