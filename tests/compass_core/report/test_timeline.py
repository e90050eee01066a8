from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_core.report.monitoring_data import (
    AccuracyPoint,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)
from compass_core.report.monitoring_plots import STRIP_WINDOWS, strip, timeline
from compass_core.report.plots import Scale
from compass_core.report.timeline import MARGIN, TimeAxis, box, height_of

START = datetime(2026, 10, 1, tzinfo=UTC).timestamp()


def window(day: int, **values: object) -> WindowPoint:
    return WindowPoint(
        name=f"2026-10-{day:02}",
        start=f"2026-10-{day:02}T00:00:00+00:00",
        end=f"2026-10-{day + 1:02}T00:00:00+00:00",
        **{"score": 0.02, "threshold": 0.04, **values},  # type: ignore[arg-type]
    )


def language(*windows: WindowPoint, **values: object) -> WatchedLanguage:
    return WatchedLanguage(
        language="swh_Latn",
        name="Swahili",
        champion="1",
        windows=list(windows),
        **values,  # type: ignore[arg-type]
    )


@given(st.floats(1.0, 4e9), st.floats(60.0, 3e9))
def test_axis_has_few_round_times_and_all_of_them_inside(low: float, length: float) -> None:
    ticks = TimeAxis(low, min(low + length, 2e11)).ticks()
    assert 1 <= len(ticks) <= 7
    assert all(0.0 <= place <= 100.0 for place, _ in ticks)
    assert [place for place, _ in ticks] == sorted(place for place, _ in ticks)


def test_axis_of_ten_days_names_days_and_of_one_day_names_hours() -> None:
    days = TimeAxis(START, START + 10 * 86_400).ticks()
    assert days[0] == (0.0, "1 Oct")
    assert days[1] == (20.0, "3 Oct")
    assert [text for _, text in TimeAxis(START, START + 86_400).ticks()] == [
        "1 Oct",
        "06:00",
        "12:00",
        "18:00",
        "2 Oct",
    ]


def test_axis_of_one_moment_is_a_day_long() -> None:
    axis = TimeAxis.around([START])
    assert axis is not None
    assert axis.at(START) == 50.0
    assert TimeAxis.around([]) is None


def test_heights_are_where_a_ruler_would_put_them() -> None:
    scale = Scale(0.0, 0.04)
    assert height_of(0.0, scale, 120) == 120 - MARGIN
    assert height_of(0.04, scale, 120) == MARGIN
    assert height_of(0.02, scale, 120) == 60.0


def test_box_never_has_a_negative_size() -> None:
    assert 'width="0%" height="0"' in box(30, 20, 9, 5, "band")


def test_each_window_has_the_band_of_its_own_threshold() -> None:
    html = timeline(language(window(1, threshold=0.04), window(2, threshold=0.02)))
    assert html is not None
    bands = re.findall(r'<rect x="([\d.]+)%" y="([\d.]+)" width="50%"[^>]*class="band"', html)
    assert bands == [("0", "8"), ("50", "60")]


def test_window_twice_as_long_is_twice_as_wide() -> None:
    long = WindowPoint(
        name="long",
        start="2026-10-02T00:00:00+00:00",
        end="2026-10-04T00:00:00+00:00",
        score=0.01,
        threshold=0.04,
    )
    html = timeline(language(window(1), long))
    assert html is not None
    assert re.findall(r'width="([\d.]+)%"[^>]*class="band"', html) == ["33.33", "66.67"]


@pytest.mark.parametrize("status", ["insufficient", "empty"])
def test_window_without_a_decision_is_marked_and_has_no_band(status: str) -> None:
    html = timeline(language(window(1), window(2, status=status, score=None, threshold=None)))
    assert html is not None
    assert html.count('class="band"/>') == 1
    assert 'class="thin"' in html
    assert f"2026-10-02: {status}" in html


def test_alarm_and_drift_have_marks_of_their_own() -> None:
    drift = window(2, status="alarm", drift_detected=True)
    html = timeline(language(window(1, status="alarm"), drift))
    assert html is not None
    assert "Drift score of 2 windows: 1 alarm, 1 drift" in html
    assert "2026-10-02: drift, score 0.020, threshold 0.040" in html


def test_champion_from_before_the_first_window_serves_from_its_start() -> None:
    champions = [
        AccuracyPoint("2026-08-01T00:00:00Z", "1", 0.4),
        AccuracyPoint("2026-09-01T00:00:00Z", "2", 0.5),
        AccuracyPoint("2026-10-02T00:00:00Z", "3", 0.6),
    ]
    html = timeline(language(window(1), window(2), accuracy=champions))
    assert html is not None
    assert "Accuracy of the champion: version 2 50.0%, version 3 60.0%" in html


def test_update_is_on_the_axis_even_after_the_last_window() -> None:
    update = UpdatePoint(time="2026-10-03T00:00:00Z", version="4", status="refused")
    html = timeline(language(window(1), updates=[update]))
    assert html is not None
    assert "Updates: 1 refused" in html
    assert 'x1="100%" y1="0" x2="100%"' in html


def test_nothing_with_a_time_is_no_plot() -> None:
    assert timeline(language()) is None
    nonsense = WindowPoint(name="w", start="x", end="y", score=0.1, threshold=0.2)
    assert timeline(language(nonsense)) is None


def test_strip_shows_the_newest_windows_at_the_right() -> None:
    many = [window(day) for day in range(1, STRIP_WINDOWS + 5)]
    html = strip(language(*many, window(29, status="alarm")))
    assert f"Last {STRIP_WINDOWS} windows: {STRIP_WINDOWS - 1} stable, 1 alarm" in html
    assert html.count("b-stable") == STRIP_WINDOWS - 1
    place = re.search(r'x="([\d.]+)%"[^>]*class="b-alarm"', html)
    assert place is not None
    assert float(place[1]) > 95.0
    assert "No window yet" in strip(language())


def test_bar_of_the_strip_is_as_high_as_score_over_threshold() -> None:
    html = strip(language(window(1, score=0.04), window(2, score=0.08)))
    heights = [float(text) for text in re.findall(r'height="([\d.]+)" class="b-stable"', html)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.02)
