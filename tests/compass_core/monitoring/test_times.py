from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.errors import ConfigError
from compass_core.monitoring.times import (
    MILLISECONDS_FROM,
    BadTimeError,
    from_microseconds,
    microseconds,
    parse_time,
    time_zone,
)

BERLIN = time_zone("Europe/Berlin")
NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-01T09:00:00Z",
        "2026-03-01T12:00:00+03:00",
        "2026-03-01 12:00:00+0300",
        " 2026-03-01T04:00:00-05:00 ",
        1772355600,
        1772355600.0,
        1772355600000,
        "1772355600",
        datetime(2026, 3, 1, 9, tzinfo=UTC),
        datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=3))),
    ],
)
def test_one_instant_written_in_any_accepted_way_is_one_instant(value):
    assert parse_time(value, None) == NINE


@pytest.mark.parametrize(
    "value", ["2026-03-01T09:00:00", "2026-03-01", datetime(2026, 3, 1, 9), date(2026, 3, 1)]
)
def test_time_without_a_zone_is_refused_unless_the_log_names_one(value):
    with pytest.raises(BadTimeError, match="without a zone"):
        parse_time(value, None)
    assert parse_time(value, time_zone("UTC")).date() == date(2026, 3, 1)


@pytest.mark.parametrize(
    "value",
    [
        None, "", "yesterday", "2026-13-01T00:00:00Z", "2026-03-01T23:59:60Z", True, [], {},
        float("nan"), float("inf"), 10**14, -(10**14), 10**30, "9999-12-31T23:59:59-12:00",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_without_repeating_it(value):
    with pytest.raises(BadTimeError, match=r"^(not a time|no time)$"):
        parse_time(value, None)


@pytest.mark.parametrize("value", [0, 1, -5, "1970-01-01T00:00:00Z", 946684799, "0001-01-01T00Z"])
def test_time_before_the_year_2000_is_absurd(value):
    with pytest.raises(BadTimeError):
        parse_time(value, None)


def test_numbers_are_seconds_below_the_threshold_and_milliseconds_from_it_on():
    assert parse_time(MILLISECONDS_FROM - 1, None).year == 5138
    with pytest.raises(BadTimeError, match="before the year 2000"):
        parse_time(MILLISECONDS_FROM, None)


def test_skipped_hour_of_summer_time_is_taken_with_the_offset_before_the_change():
    assert parse_time("2026-03-29T02:30:00", BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_hour_that_occurs_twice_is_the_first_of_the_two():
    assert parse_time("2026-10-25T02:30:00", BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    with_fold = datetime(2026, 10, 25, 2, 30, fold=1)
    assert parse_time(with_fold, BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


def test_unknown_time_zone_says_what_to_write():
    with pytest.raises(ConfigError, match="Africa/Nairobi"):
        time_zone("Mars/Olympus")


@given(st.datetimes(datetime(2000, 1, 2), datetime(2100, 1, 1)), st.integers(-840, 840))
def test_any_offset_gives_the_same_instant(naive, offset):
    zone = timezone(timedelta(minutes=offset))
    instant = naive.replace(tzinfo=UTC)
    assert parse_time(instant.astimezone(zone).isoformat(), None) == instant
    assert from_microseconds(microseconds(instant)) == instant
