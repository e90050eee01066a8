from __future__ import annotations

import dataclasses
import math
import re

import pytest

from compass_core.report.charts import Estimate, scatter_chart
from compass_core.report.continual_data import (
    ArmSummary,
    Claim,
    ContinualCell,
    ContinualCost,
    ContinualReport,
)
from compass_core.report.continual_section import render_continual, seen_so_far, slice_curve
from compass_core.report.continual_text import continual_markdown, continual_rows
from compass_core.report.data import RunReport, summarise_run
from compass_core.report.page import render_report

ATTACK = '"><script>alert(1)</script>|<img src=x onerror=alert(1)>'


def study(cells: list[ContinualCell], **values: object) -> ContinualReport:
    return ContinualReport(
        languages=["swh_Latn", "arb_Arab"],
        seeds=[0],
        arms=["naive"],
        n_stages=3,
        cells=cells,
        **values,  # type: ignore[arg-type]
    )


CELLS = [
    ContinualCell("swh_Latn", 0, "naive", stage, part, accuracy)
    for stage, accuracies in enumerate(([0.6, 0.2, 0.1], [0.4, 0.8, 0.1], [0.3, 0.6, None]))
    for part, accuracy in enumerate(accuracies)
]


def test_accuracy_over_time_is_the_mean_over_the_slices_seen_so_far() -> None:
    """Stage 0 sees slice 0 alone; stage 2 sees all three, of which two were measured."""
    curve = seen_so_far(study(CELLS), "naive")
    assert curve == [(0.0, 0.6), (1.0, pytest.approx(0.6)), (2.0, pytest.approx(0.45))]
    assert seen_so_far(study(CELLS), "naive", "arb_Arab") == []


def test_slice_is_shown_from_the_stage_before_it_is_learnt() -> None:
    assert slice_curve(study(CELLS), "naive", 1) == [(0.0, 0.2), (1.0, 0.8), (2.0, 0.6)]
    assert slice_curve(study(CELLS), "naive", 2) == [(1.0, 0.1)]


def test_curve_is_a_mean_over_languages_and_seeds() -> None:
    other = [dataclasses.replace(cell, language="arb_Arab", accuracy=0.0) for cell in CELLS]
    assert seen_so_far(study([*CELLS, *other]), "naive")[0] == (0.0, pytest.approx(0.3))


def test_run_with_a_continual_study_shows_it(sample_continual: ContinualReport) -> None:
    page = render_report(RunReport(run_id="r", project="p", continual=sample_continual))
    assert "no languages yet" not in page
    for words in (
        "Continual study",
        "↖ better",
        "Learning against forgetting in points: Frozen learns 0.0",
        "Slice by slice",
        "Language by language",
        "✕ does not hold",
    ):
        assert words in page
    assert page.count("<figure>") == 2 + 6 + 3


def test_index_names_the_languages_of_a_continual_study(sample_continual: ContinualReport) -> None:
    run = RunReport(run_id="r", project="p", continual=sample_continual)
    assert summarise_run(run, "r/report.html").languages == ["Swahili", "Arabic", "Hindi"]


def test_bars_of_cost_are_relative_to_the_dearest_arm() -> None:
    costs = [
        ContinualCost("swh_Latn", 0, "naive", 0, 10**9),
        ContinualCost("swh_Latn", 0, "naive", 1, 100, 50, 50),
        ContinualCost("swh_Latn", 0, "full", 1, 300),
        ContinualCost("swh_Latn", 0, "full", 2, 500),
    ]
    summary = [ArmSummary(arm=arm) for arm in ("naive", "full")]
    report = dataclasses.replace(study([], costs=costs, summary=summary), arms=["naive", "full"])
    html = render_continual(report)
    widths = re.findall(r'width="([\d.]+)%" y="4" height="10" class="cost-(\w+)"', html)
    assert widths[:3] == [("12.50", "task"), ("6.25", "replay"), ("6.25", "fisher")]
    assert widths[3] == ("100.00", "task")


def test_names_beside_points_cover_no_point_and_no_other_name() -> None:
    close = [Estimate(f"arm number {i}", "a-other", 2.0 + i / 50, 9.0 + i / 50) for i in range(4)]
    svg = scatter_chart(close, title="t", x_label="x", better="b")
    assert svg is not None
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name[^>]*>([^<]+)', svg)
    boxes = [(float(x), float(y), float(x) + 5.4 * len(name)) for x, y, name in found]
    for index, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[:index]:
            assert abs(y - other_y) >= 9 or right <= other_left or other_right <= left


def test_scatter_of_nothing_is_no_chart() -> None:
    assert scatter_chart([], title="t", x_label="x", better="b") is None


@pytest.mark.parametrize("value", [None, math.nan])
def test_arm_that_was_not_measured_is_a_dash(value: float | None) -> None:
    row = ArmSummary(
        arm="naive", learning=value, forgetting=value, intervals={"learning": (0.1, math.nan)}
    )
    report = study([], summary=[row])
    html = render_continual(report)
    assert "nan" not in html
    assert "↖ better" not in html
    assert continual_rows(report)[1] == ["Naive fine-tuning", "–", "–", "–", "–", "–"]


def test_study_of_nothing_still_has_a_section() -> None:
    report = ContinualReport(languages=[], seeds=[], arms=[], n_stages=0)
    assert "Continual study" in render_continual(report)
    assert "0 languages" in continual_markdown(report)


def test_text_from_outside_never_becomes_markup() -> None:
    report = ContinualReport(
        languages=[ATTACK, "b"],
        seeds=[0],
        arms=[ATTACK],
        n_stages=2,
        cells=[ContinualCell(ATTACK, 0, ATTACK, 0, 0, 0.5)],
        costs=[ContinualCost(ATTACK, 0, ATTACK, 1, 5)],
        summary=[
            ArmSummary(arm=ATTACK, learning=0.1, forgetting=0.1, language=which)
            for which in ("", ATTACK)
        ],
        claims=[Claim(ATTACK, ATTACK, True)],
        notes=[ATTACK],
    )
    assert "<script" not in render_continual(report)
    assert "<img" not in render_continual(report)
    assert "<script" not in continual_markdown(report).replace(r"\<", "")


def test_markdown_says_what_became_of_the_claims(sample_continual: ContinualReport) -> None:
    text = continual_markdown(sample_continual)
    assert "| ECDA | +13.3" in text
    assert "**✕ does not hold**" in text
    assert text.count("\n|") == 9
