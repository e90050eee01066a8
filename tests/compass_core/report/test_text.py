from __future__ import annotations

from compass_core.report.data import ArmResult, ClusterRow, LanguageReport, RunReport
from compass_core.report.text import (
    evaluation_table_markdown,
    gap_table_markdown,
    health_table_markdown,
    source_table_markdown,
    summary_rows,
    verdict_markdown,
)


def language(**values: object) -> LanguageReport:
    return LanguageReport(language="swh_Latn", name="Swahili", **values)  # type: ignore[arg-type]


def test_gap_table_is_sorted_by_gap_and_bounded(sample_run: RunReport) -> None:
    text = gap_table_markdown(sample_run.languages[0])
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    gaps = [float(row.split(" | ")[3]) for row in rows]
    assert len(gaps) == 15
    assert gaps == sorted(gaps, reverse=True)
    assert "33 more" in text


def test_label_cannot_break_a_markdown_table() -> None:
    row = ClusterRow(0, "a|b\n# <script> [x](javascript:y)", 0.5, 0.1, 0.4, 9, 5)
    text = gap_table_markdown(language(clusters=[row]))
    [line] = [line for line in text.splitlines() if "script" in line]
    assert r"a\|b \# \<script\> \[x\]" in line


def test_source_table_adds_up(sample_run: RunReport) -> None:
    text = source_table_markdown(language(source_counts={"deu_Latn": {0: 3, 4: 1}, "x": {0: 12}}))
    assert "16 examples selected" in text
    assert "| German | 4 | 25.0% |" in text


def test_empty_language_gives_short_texts_and_no_error() -> None:
    for render in (gap_table_markdown, source_table_markdown, evaluation_table_markdown):
        assert "Nothing to show" in render(language())
    assert "Selection only" in verdict_markdown(language())


def test_evaluation_table_has_arms_and_trivial_baselines(sample_run: RunReport) -> None:
    text = evaluation_table_markdown(sample_run.languages[0])
    assert text.index("Zero-shot") < text.index("COMPASS") < text.index("Majority")


def test_verdict_gives_every_reason() -> None:
    text = verdict_markdown(language(status="kept", verdict_reasons=["first", "second"]))
    assert "- first\n- second\n" in text
    assert "Kept the champion" in text


def test_summary_has_a_row_per_language_and_says_why(sample_run: RunReport) -> None:
    rows = summary_rows(sample_run)
    assert [len(row) for row in rows] == [9] * 7
    assert rows[0][1] == "Zero-shot"
    assert rows[-1][1:7] == ["–"] * 6
    assert rows[-1][-1].startswith("E16")


def test_summary_shows_the_interval_beside_the_estimate() -> None:
    run = RunReport(
        run_id="r", project="p", languages=[language(arms=[ArmResult("compass", 0.5, 0.44, 0.561)])]
    )
    assert summary_rows(run)[1][1] == "50.0% [44–56]"


def test_health_table_says_what_each_figure_means_and_what_looked_wrong(sample_run):
    shown = language(
        health={"retrieval_at_1": 0.725, "js_after": 0.0213, "mixing": [0.1, 0.9]},
        health_warnings=["12 of 48 clusters hold mostly one language."],
    )
    text = health_table_markdown(shown)
    assert "| Translations found | 0.72" in text
    assert "Distance usage–coverage after" in text
    assert "mixing" not in text
    assert "⚠ 12 of 48 clusters" in text
