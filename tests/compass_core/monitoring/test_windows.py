"""How usage is cut into windows, and that what was decided stays as it was."""

import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from compass_core.config import DriftConfig, MonitoringConfig
from compass_core.monitoring.cutting import Cutting
from compass_core.monitoring.windows import share_without_unit

from .conftest import START, row

DAY = timedelta(days=1)


def titles(windows):
    return [(window.name, window.n_prompts) for window in windows]


def decide(usage, windows):
    for window in windows:
        if window.closed and not window.decided:
            usage.log.mark_decided(window)


# ------------------------------------------------------------------ by time
def test_days_are_cut_at_midnight_utc_whatever_the_records_zone(usage):
    usage.append(
        [row(1, time="2026-03-03T02:00:00+03:00"), row(2, time="2026-03-03T03:00:00+03:00")]
    )
    first, second = usage.windows(now=START + 2 * DAY)
    assert (first.start, first.end) == (START, START + DAY)
    assert (second.start, second.n_prompts) == (START + DAY, 1)


@pytest.mark.parametrize(
    ("length", "start"),
    [
        ("1h", "2026-03-05T13:00"), ("6h", "2026-03-05T12:00"), ("1d", "2026-03-05T00:00"),
        ("1w", "2026-03-02T00:00"), ("3d", "2026-03-05T00:00"),
    ],
)  # fmt: skip
def test_windows_start_at_hours_days_and_mondays(usage, length, start):
    usage.append([row(1, time="2026-03-05T13:37:00Z")])
    (window, *_empty) = usage.windows(usage.config(window_length=length))
    assert window.start == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert window.start.weekday() == 0 or length != "1w"


def test_window_closes_when_it_is_over_and_the_lateness_has_passed(usage):
    usage.append([row(1)])
    config = usage.config(lateness="2h")
    assert not usage.windows(config, now=START + timedelta(hours=25, minutes=59))[0].closed
    assert usage.windows(config, now=START + timedelta(hours=26))[0].closed
    with pytest.raises(ValueError, match="still open"):
        usage.log.mark_decided(usage.windows(config, now=START)[0])


def test_record_on_the_border_is_in_the_later_window(usage):
    usage.append([row(1, minutes=24 * 60), row(2, minutes=24 * 60 - 1)])
    assert [w.n_prompts for w in usage.windows(now=START + 2 * DAY)] == [1, 1]


def test_late_and_unordered_records_are_sorted_into_their_windows(usage):
    usage.append([row(1, minutes=3000), row(2, minutes=10), row(3, minutes=1500)])
    now = START + timedelta(days=3)
    assert [w.n_prompts for w in usage.windows(now=now)] == [1, 1, 1]


def test_windows_hold_exactly_the_records_of_their_time(usage):
    chance = random.Random(3)
    minutes = [chance.randrange(0, 20 * 24 * 60) for _ in range(400)]
    for start in range(0, 400, 37):
        usage.append([row(n, m) for n, m in list(enumerate(minutes))[start : start + 37]])
    expected: Counter = Counter(minute // (7 * 60) for minute in minutes)
    found = {}
    for window in usage.windows(usage.config(window_length="7h")):
        times = window.table["time"].to_pylist()
        assert all(window.start <= moment < window.end for moment in times)
        assert len(times) == window.n_prompts
        if times:
            found[window.start] = window.n_prompts
    # 7 h windows are counted from 1970, so only the multiset of sizes of a shifted grid differs.
    assert sum(found.values()) == sum(expected.values()) == 400


def test_decided_window_never_changes_and_late_records_are_counted(usage):
    usage.append([row(1), row(2)])
    now = START + 2 * DAY
    window = usage.windows(now=now)[0]
    keys = window.table["record_key"].to_pylist()
    usage.log.mark_decided(window)
    report = usage.append([row(3), row(4, minutes=2000)], now=now)
    assert (report.n_new, report.n_late) == (2, 1)
    first, second = usage.again().windows(now=now)
    assert (first.decided, first.n_prompts, first.n_late) == (True, 2, 1)
    assert first.table["record_key"].to_pylist() == keys
    assert (second.n_prompts, second.n_late) == (1, 0)


def test_record_between_listing_and_deciding_is_late(usage):
    usage.append([row(1)])
    window = usage.windows()[0]
    usage.append([row(2)])
    usage.log.mark_decided(window)
    found = usage.windows()[0]
    assert (found.n_prompts, found.n_late, window.table.num_rows) == (1, 1, 1)


def test_deciding_twice_changes_nothing(usage):
    usage.append([row(1)])
    window = usage.windows()[0]
    usage.log.mark_decided(window)
    usage.append([row(2)])
    usage.log.mark_decided(usage.windows()[0])
    usage.log.mark_decided(window)
    assert usage.windows()[0].n_prompts == 1


def test_window_that_only_begins_to_fill_when_later_ones_are_decided_is_not_listed(usage):
    usage.append([row(1, minutes=3000)])
    decide(usage, usage.windows())
    report = usage.append([row(2)])
    assert report.n_late == 1
    assert all(window.start > START for window in usage.windows())


def test_clock_that_goes_backwards_decides_nothing_twice_and_loses_nothing(usage):
    usage.write([row(1), row(2, minutes=1500)])
    late = START + 3 * DAY
    usage.take_in(now=late)
    decide(usage, usage.windows(now=late))
    early = START + timedelta(hours=2)
    report = usage.take_in(now=early)
    assert "went backwards" in report.warnings[0]
    found = usage.windows(now=early)
    assert [(w.decided, w.closed) for w in found if w.n_prompts] == [(True, True)] * 2
    usage.write([row(1), row(2, minutes=1500), row(3, minutes=90)])
    assert usage.take_in(now=early).n_late == 1
    assert usage.take_in(now=late + DAY).warnings == []
    assert [w.n_prompts for w in usage.windows(now=late + DAY) if w.n_prompts] == [1, 1]


# ------------------------------------------------------------------ empty windows
def test_empty_windows_in_a_row_are_one_entry(usage):
    usage.append([row(1), row(2, minutes=400 * 24 * 60)], now=START + 500 * DAY)
    found = usage.windows(now=START + 401 * DAY + timedelta(hours=2))
    assert titles(found) == [
        ("2026-03-02T00:00Z/1d", 1),
        ("2026-03-03T00:00Z/1d/empty399", 0),
        ("2027-04-06T00:00Z/1d", 1),
    ]
    gap = found[1]
    assert (gap.n_empty, gap.closed, gap.end) == (399, True, START + 400 * DAY)
    assert gap.table.num_rows == 0
    assert len(gap.sample(DriftConfig())) == 0


def test_log_that_stops_is_reported_as_empty_windows(usage):
    usage.append([row(1)])
    decide(usage, usage.windows(now=START + 3 * DAY))
    assert [w.n_empty for w in usage.windows(now=START + 3 * DAY)] == [0, 1]
    decide(usage, usage.windows(now=START + 4 * DAY))
    later = usage.windows(now=START + 4 * DAY)
    assert [(w.n_empty, w.decided) for w in later] == [(0, True), (1, True), (1, True)]


def test_no_records_make_no_windows(usage):
    assert usage.windows() == []


def test_window_that_was_empty_because_the_log_was_held_up_is_decided_when_it_fills(usage):
    usage.append([row(1)])
    now = START + 5 * DAY
    decide(usage, usage.windows(now=now))
    report = usage.append([row(2, minutes=2 * 24 * 60)], now=now)
    assert report.n_late == 0
    found = [window for window in usage.windows(now=now) if window.n_prompts]
    assert [(w.name, w.decided) for w in found] == [
        ("2026-03-02T00:00Z/1d", True),
        ("2026-03-04T00:00Z/1d", False),
    ]


def test_clock_that_was_a_year_ahead_costs_one_window_and_not_a_year(usage):
    usage.append([row(1)])
    decide(usage, usage.windows(now=START + 365 * DAY))
    usage.append([row(2, minutes=2 * 24 * 60)], now=START + 3 * DAY)
    found = usage.windows(now=START + 4 * DAY)
    assert [(w.decided, w.closed) for w in found if w.n_prompts] == [(True, True), (False, True)]


# ------------------------------------------------------------------ by count
def test_prompts_are_counted_in_the_order_they_arrived(usage):
    config = usage.config(windows="count", window_size=4)
    usage.append([row(n, minutes=1000 - n) for n in range(10)])
    found = usage.windows(config)
    assert titles(found) == [("n4/000000", 4), ("n4/000001", 4), ("n4/000002", 2)]
    assert [window.closed for window in found] == [True, True, False]
    assert found[0].table["arrival"].to_pylist() == [0, 1, 2, 3]
    assert found[0].start == START + timedelta(minutes=997)
    assert found[0].end == START + timedelta(minutes=1000)


def test_decided_count_stays_and_the_next_one_goes_on(usage):
    config = usage.config(windows="count", window_size=3)
    usage.append([row(n, minutes=n) for n in range(3)])
    decide(usage, usage.windows(config))
    assert usage.append([row(n, minutes=n - 10) for n in range(3, 7)]).n_late == 0
    found = usage.windows(config)
    assert [(w.number, w.n_prompts, w.decided, w.closed) for w in found] == [
        (0, 3, True, True),
        (1, 3, False, True),
        (2, 1, False, False),
    ]


def test_forgetting_moves_no_border_of_a_count(usage):
    config = usage.config(windows="count", window_size=3)
    usage.append([row(n) for n in range(7)])
    usage.log.forget(["record-1"])
    found = usage.windows(config)
    assert [(w.n_prompts, w.closed) for w in found] == [(2, True), (3, True), (1, False)]


def test_another_cutting_decides_nothing_again(usage):
    usage.append([row(n, minutes=60 * n) for n in range(72)])
    now = START + 3 * DAY
    decide(usage, usage.windows(now=now))
    hourly = usage.windows(usage.config(window_length="1h", lateness="0"), now=now)
    assert {window.start >= START + 2 * DAY for window in hourly} == {True}
    counted = usage.windows(usage.config(windows="count", window_size=10), now=now)
    assert all(window.number * 10 > 71 for window in counted)


def test_going_back_to_an_earlier_count_decides_no_prompt_twice(usage):
    usage.append([row(n) for n in range(40)])
    decided = []
    for size, n_windows in ((10, 1), (5, 1), (10, 5)):
        windows = usage.windows(usage.config(windows="count", window_size=size))
        waiting = [window for window in windows if window.closed and not window.decided]
        for window in waiting[:n_windows]:
            decided += window.table["arrival"].to_pylist()
            usage.log.mark_decided(window)
    assert len(set(decided)) == len(decided)
    assert sorted(decided) == [*range(15), *range(20, 40)]


# ------------------------------------------------------------------ the sample
def test_flood_of_one_prompt_counts_once(usage):
    rows = [row(n, prompt="Habari  YAKO?" if n % 2 else "habari yako?") for n in range(500)]
    rows += [row(1000 + n, prompt=f"swali la {n}", user=f"u{n}") for n in range(50)]
    usage.append(rows)
    (window, *_rest) = usage.windows()
    assert window.n_prompts == 550
    assert len(window.sample(DriftConfig())) == 51
    assert len(window.sample(DriftConfig(duplicates="count", max_prompts_per_unit=1000))) == 550


def test_nobody_counts_more_often_than_the_limit(usage):
    usage.append([row(n, user="busy" if n < 90 else f"user {n}") for n in range(100)])
    sample = usage.windows()[0].sample(DriftConfig(max_prompts_per_unit=5))
    counts = np.bincount(sample.units)
    assert counts.max() == 5
    assert len(sample) == 15


def test_sample_is_the_same_for_any_order_of_arrival(usage):
    rows = [row(n, prompt=f"swali {n % 60}" + "x" * (n % 13)) for n in range(200)]
    results = []
    for seed in range(3):
        space = f"space{seed}x"
        shuffled = random.Random(seed).sample(rows, len(rows))
        for start in range(0, 200, 60):
            usage.append(shuffled[start : start + 60], space=space)
        sample = usage.windows(space=space)[0].sample(DriftConfig(max_prompts_per_unit=3))
        results.append((sample.cluster_ids, sample.outside, sample.units))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_slow_twin_of_the_sample_agrees(usage):
    rows = [row(n, prompt=f"swali {n % 40}", user=f"user {n % 6}") for n in range(120)]
    usage.append(rows)
    window = usage.windows()[0]
    table = window.table.to_pylist()
    seen, per_user, kept = set(), defaultdict(int), []
    for entry in sorted(table, key=lambda entry: entry["record_key"]):
        if entry["text_key"] in seen:
            continue
        seen.add(entry["text_key"])
        per_user[entry["user_key"]] += 1
        if per_user[entry["user_key"]] <= 4:
            kept.append(entry)
    sample = window.sample(DriftConfig(max_prompts_per_unit=4))
    assert sample.cluster_ids.tolist() == [entry["cluster"] for entry in kept]
    groups = {user: i for i, user in enumerate(sorted({e["user_key"] for e in kept}))}
    assert sample.units.tolist() == [groups[entry["user_key"]] for entry in kept]


def test_units_are_unknown_when_nobody_is_named_or_prompts_are_the_unit(usage):
    usage.append([row(n, user=None) for n in range(5)], space="nobody")
    nobody = usage.windows(space="nobody")[0]
    assert nobody.sample(DriftConfig()).units is None
    assert share_without_unit(nobody.table, "user") == 1.0
    usage.append([row(n) for n in range(5)])
    assert usage.windows()[0].sample(DriftConfig(unit="prompt")).units is None


def test_session_stands_for_an_unknown_user_and_a_prompt_for_an_unknown_session(usage):
    rows = [
        row(1, prompt="a", user="x"), row(2, prompt="b", user="x"),
        row(3, prompt="c", user=None, session="s"), row(4, prompt="d", user=None, session="s"),
        row(5, prompt="e", user=None), row(6, prompt="f", user=None),
        row(7, prompt="g", user=None, session="t"), row(8, prompt="h", user=None, session="t"),
    ]  # fmt: skip
    usage.append(rows)
    window = usage.windows()[0]
    assert len(set(window.sample(DriftConfig()).units.tolist())) == 5
    assert len(set(window.sample(DriftConfig(unit="session")).units.tolist())) == 6
    assert share_without_unit(window.table, "user") == pytest.approx(2 / 8)


def test_units_are_unknown_where_more_than_half_of_the_prompts_are_of_nobody(usage):
    rows = [row(n, user="x" if n < 4 else None) for n in range(8)]
    usage.append(rows, space="half")
    assert usage.windows(space="half")[0].sample(DriftConfig()).units is not None
    usage.append([*rows, row(8, user=None)])
    sample = usage.windows()[0].sample(DriftConfig(max_prompts_per_unit=3))
    assert sample.units is None
    assert len(sample) == 8, "those who are known are capped all the same"


def test_cutting_is_the_same_for_numbers_and_starts():
    for length in ("1h", "5h", "1d", "2w"):
        cutting = Cutting.of(MonitoringConfig(window_length=length))
        for number in (0, 7, 123_456 // 24):
            start = cutting.start(number)
            micros = np.array([int(start.timestamp() * 1e6)], dtype=np.int64)
            assert cutting.numbers(micros, micros).tolist() == [number]
            assert cutting.numbers(micros, micros - 1).tolist() == [number - 1]
