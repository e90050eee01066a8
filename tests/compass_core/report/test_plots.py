from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from compass_core.report.charts import map_panels, smooth_curve, thin_out
from compass_core.report.data import ClusterRow, Comparison, MapPoint, StudyCell, StudyReport
from compass_core.report.plots import Scale, arm_order, arms_track, change_track, shares_track
from compass_core.report.study_section import language_differences

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(FINITE, max_size=8), FINITE)
def test_scale_holds_every_value_it_was_made_for(values: list[float], extra: float) -> None:
    scale = Scale.around(values, include=[extra])
    assert scale.low < scale.high
    for value in [*values, extra]:
        slack = 1e-6 * (scale.high - scale.low)
        assert scale.low - slack <= value <= scale.high + slack
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 8


def test_scale_puts_values_where_a_ruler_would() -> None:
    scale = Scale(0.2, 0.6)
    assert math.isclose(scale.at(0.3), 25.0)
    assert (scale.at(0.0), scale.at(1.0)) == (0.0, 100.0)


def test_known_arms_come_in_their_order_and_unknown_ones_after() -> None:
    assert arm_order(["mine", "compass", "zero-shot", "mine"]) == ["zero-shot", "compass", "mine"]


def test_bar_is_as_long_as_its_share() -> None:
    row = ClusterRow(0, "a", usage_share=0.2, coverage_share=0.05, gap=0.15)
    svg = shares_track(Scale(0.0, 0.4), row, selected_share=0.3)
    assert 'width="12.5%" height="8" class="coverage"' in svg
    assert 'width="75%" height="8" class="selected"' in svg
    assert 'x1="50%" y1="0" x2="50%" y2="24" class="usage-mark"' in svg


def test_loss_on_a_cluster_is_drawn_as_a_loss() -> None:
    row = ClusterRow(0, "a", 0.1, 0.1, 0.0, accuracy_before=0.5, accuracy_after=0.4, n_items=9)
    assert 'class="change down"' in change_track(Scale(0.0, 1.0), row)


def test_plot_says_in_words_what_it_shows() -> None:
    assert "<title>Accuracy: not measured</title>" in arms_track(Scale(0, 1), [], {}, "compass")


def test_thinning_keeps_the_order_and_the_limit() -> None:
    points = [MapPoint(float(i), 0.0, "pool", i) for i in range(1_000)]
    kept = thin_out(points, 7)
    assert [point.cluster for point in kept] == [0, 142, 285, 428, 571, 714, 857]
    assert thin_out([MapPoint(math.nan, 0.0, "pool", 0)]) == []


def test_smoothed_curve_keeps_mean_and_end() -> None:
    curve = [(float(i), float(i % 2)) for i in range(1_000)]
    smooth = smooth_curve(curve, 100)
    assert len(smooth) == 100
    assert smooth[-1][0] == 999.0
    assert all(math.isclose(y, 0.5) for _, y in smooth)


def test_map_of_identical_points_is_drawn() -> None:
    points = [MapPoint(1.0, 1.0, "usage", k) for k in range(9)]
    panels = map_panels(points, {"usage": "u"}, {k: k for k in range(9)}, identity="m")
    assert len(panels) == 1
    assert "nan" not in panels[0]


def test_language_differences_follow_the_comparison_named_in_words() -> None:
    cells = [
        StudyCell("swh_Latn", seed, arm, value)
        for seed, arm, value in [(0, "compass", 0.5), (1, "compass", 0.7), (0, "random", 0.4)]
    ]
    study = StudyReport(
        languages=["swh_Latn"], seeds=[0, 1], arms=["random", "compass"], cells=cells
    )
    [(language, gain)] = language_differences(study, Comparison("compass vs random", "accuracy", 0))
    assert language == "swh_Latn"
    assert math.isclose(gain, 0.2)
    assert language_differences(study, Comparison("compass", "accuracy", 0)) == []
