from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compass_core.report.data import (
    ArmResult,
    ClusterRow,
    Comparison,
    LanguageReport,
    MapPoint,
    RunReport,
    StudyCell,
    StudyReport,
    summarise_run,
)
from compass_core.report.page import render_index, render_report, write_report

ATTACK = "\"><script>alert(1)</script><img src=x onerror=alert(1)>' onload='x"
RTL = "دولة، مدينة"
ARMS = [ArmResult("zero-shot", 0.3, 0.2, 0.4, n_items=50), ArmResult("compass", 0.5, 0.4, 0.6)]


class Outline(HTMLParser):
    """Collects elements and attributes, and complains where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "hr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def run_of(*languages: LanguageReport, **values: object) -> RunReport:
    return RunReport(run_id="r1", project="p", languages=list(languages), **values)  # type: ignore[arg-type]


def attacked_run() -> RunReport:
    language = LanguageReport(
        language=ATTACK,
        name=ATTACK,
        script=ATTACK,
        status="failed",
        error=ATTACK,
        arms=[*ARMS, ArmResult(ATTACK, 0.4)],
        clusters=[ClusterRow(3, ATTACK, 0.5, 0.1, 0.4, 9, 5, 0.1, 0.2, 4)],
        points=[MapPoint(0.0, 0.0, "usage", 3), MapPoint(1.0, 2.0, "selected", 3)],
        source_counts={ATTACK: {3: 5}},
        health={ATTACK: 0.5},
        health_warnings=[ATTACK],
        verdict_reasons=[ATTACK],
        history={ATTACK: [(0.0, 1.0), (1.0, 0.5)]},
        trivial={ATTACK: 0.1},
        selection_curve=[{"k": 2.0, ATTACK: 0.1}],
        chosen_k=2,
        timings={ATTACK: 1.0},
        links={ATTACK: ATTACK, "click": "javascript:alert(1)", "data": "data:text/html,x"},
        fingerprints={ATTACK: ATTACK},
    )
    study = StudyReport(
        languages=[ATTACK],
        seeds=[0],
        arms=[ATTACK, "compass"],
        cells=[StudyCell(ATTACK, 0, ATTACK, 0.5)],
        comparisons=[Comparison(ATTACK, "accuracy", 0.1, 0.0, 0.2), Comparison("a", ATTACK, 0.1)],
    )
    return RunReport(
        run_id=ATTACK,
        project=ATTACK,
        title=ATTACK,
        started=ATTACK,
        finished=ATTACK,
        config_summary={ATTACK: ATTACK},
        notes=[ATTACK],
        languages=[language],
        study=study,
        versions={ATTACK: ATTACK},
        links={ATTACK: ATTACK},
        main_arm=ATTACK,
    )


def test_text_from_the_data_never_becomes_markup() -> None:
    report = attacked_run()
    for page in (render_report(report), render_index([summarise_run(report, ATTACK)])):
        parsed = outline(page)
        names = {name for name, _ in parsed.elements}
        assert not names & {"script", "img", "iframe", "object", "link", "base", "form"}
        attributes = {name for _, attrs in parsed.elements for name in attrs}
        assert not [name for name in attributes if name.startswith("on")]


def test_links_lead_to_pages_and_files_only() -> None:
    parsed = outline(render_report(attacked_run()))
    addresses = [attrs["href"] or "" for name, attrs in parsed.elements if name == "a"]
    assert addresses
    assert not [
        href for href in addresses if re.match(r"\s*(javascript|data|vbscript):", href, re.I)
    ]


def test_page_loads_nothing_from_anywhere(sample_run: RunReport) -> None:
    page = render_report(sample_run)
    parsed = outline(page)
    assert not [attrs for _, attrs in parsed.elements if "src" in attrs or "srcset" in attrs]
    assert not re.search(r"@import|url\(|https?://(?!127\.0\.0\.1)", page)
    policy = [attrs for name, attrs in parsed.elements if attrs.get("http-equiv")]
    assert "default-src 'none'" in (policy[0]["content"] or "")


def test_every_language_is_mentioned_and_reachable(sample_run: RunReport) -> None:
    page = render_report(sample_run)
    parsed = outline(page)
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = [attrs["href"] or "" for name, attrs in parsed.elements if name in {"a", "use"}]
    assert {href[1:] for href in inside if href.startswith("#")} <= set(ids)
    for language in sample_run.languages:
        assert language.name in page
        assert f"#language-{language.language.replace('_', '-')}" in inside


def test_equal_reports_give_equal_pages(sample_run: RunReport) -> None:
    assert render_report(sample_run) == render_report(dataclasses.replace(sample_run))


def test_page_of_six_languages_stays_small(sample_run: RunReport) -> None:
    many = [dataclasses.replace(sample_run.languages[0], language=f"x{i}") for i in range(6)]
    crowded = [
        dataclasses.replace(
            language,
            clusters=[
                dataclasses.replace(row, cluster=i) for i, row in enumerate(language.clusters * 3)
            ][:120],
            points=language.points * 50,
        )
        for language in many
    ]
    page = render_report(dataclasses.replace(sample_run, languages=crowded))
    assert len(page.encode()) < 1_500_000


def test_right_to_left_label_keeps_its_direction_to_itself() -> None:
    row = ClusterRow(0, RTL, 0.5, 0.1, 0.4, 9, 5)
    page = render_report(run_of(LanguageReport(language="arb_Arab", name="Arabic", clusters=[row])))
    assert f'<bdi dir="auto">{RTL}</bdi>' in page


def test_control_characters_and_endless_labels_are_tamed() -> None:
    row = ClusterRow(0, "a\x00b\ud800c\n" + "x" * 100_000, 0.5, 0.1, 0.4)
    page = render_report(
        run_of(LanguageReport(language="swh_Latn", name="Swahili", clusters=[row]))
    )
    page.encode("utf-8")
    assert "\x00" not in page
    assert "x" * 200 not in page


def test_half_a_character_in_the_data_never_keeps_a_page_from_being_written(
    tmp_path: Path,
) -> None:
    arm = ArmResult("arm \ud800", 0.5, 0.4, 0.6)
    language = LanguageReport(language="swh_Latn", name="Swahili", arms=[arm])
    page = write_report(run_of(language), tmp_path)
    assert "Swahili" in page.read_text(encoding="utf-8")


def test_empty_run_says_so() -> None:
    assert "no languages yet" in render_report(run_of())
    assert "No run yet" in render_index([])


def test_language_with_nothing_measured_still_has_a_page() -> None:
    nothing = LanguageReport(language="swh_Latn", name="Swahili")
    failed = LanguageReport(
        language="yor_Latn", name="Yoruba", status="failed", error="E15 no file"
    )
    page = render_report(run_of(nothing, failed))
    outline(page)
    assert "E15 no file" in page
    assert "Selection only" in page


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_a_dash_and_never_a_mark(value: float | None) -> None:
    language = LanguageReport(
        language="swh_Latn",
        name="Swahili",
        arms=[ArmResult("zero-shot", value, value, value), ArmResult("compass", 0.5, value, value)],
        clusters=[ClusterRow(0, "a", 0.2, math.nan, math.nan, 1, 0, value, value, 2)],
        history={"compass": [(0, math.nan), (1, 1.0)]},
        trivial={"majority": value},
        health={"silhouette": value},
        selection_curve=[{"k": 4, "silhouette": value}],
    )
    page = render_report(run_of(language))
    outline(page)
    assert "nan" not in re.sub(r"<[a-z]+ |[a-z]*nan[a-z]+", "", page)
    assert "inf%" not in page


def test_folded_clusters_are_still_on_the_page(sample_run: RunReport) -> None:
    page = render_report(sample_run)
    assert "23 more clusters" in page


def test_advice_names_random_only_where_random_was_trained(sample_run: RunReport) -> None:
    assert "with Random" in render_report(sample_run)
    language = LanguageReport(language="swh_Latn", name="Swahili", arms=ARMS)
    assert "with Random" not in render_report(run_of(language))


def test_advice_admits_unequal_budgets() -> None:
    arms = [*ARMS, ArmResult("random", 0.4, n_selected=10, steps=5)]
    language = LanguageReport(language="swh_Latn", name="Swahili", arms=arms)
    assert "did not train on the same number" in render_report(run_of(language))


def test_index_lists_the_newest_run_first(sample_run: RunReport) -> None:
    older = summarise_run(sample_run, "old/report.html")
    newer = dataclasses.replace(older, started="2027-01-01T00:00:00+00:00", href="new/report.html")
    page = render_index([older, newer])
    outline(page)
    assert page.index("new/report.html") < page.index("old/report.html")
    assert "4 promoted, 1 kept, 1 failed" in page


def test_clusters_of_several_languages_stand_beside_each_other(sample_run):
    page = render_report(sample_run)
    assert "Clusters, language by language" in page
    first = sample_run.languages[0]
    alone = dataclasses.replace(sample_run, languages=[first])
    assert "Clusters, language by language" not in render_report(alone)


def test_the_curve_of_one_candidate_is_no_chart(sample_run):
    tried = dataclasses.replace(sample_run.languages[0], chosen_by="silhouette")
    page = render_report(dataclasses.replace(sample_run, languages=[tried]))
    assert "Silhouette by number of clusters" in page
    one = dataclasses.replace(tried, selection_curve=tried.selection_curve[:1])
    assert "by number of clusters" not in render_report(
        dataclasses.replace(sample_run, languages=[one])
    )


def test_index_leads_to_usage_over_time_where_it_is_watched(sample_run: RunReport) -> None:
    summary = summarise_run(sample_run, "r/report.html")
    assert "monitoring.html" not in render_index([summary])
    page = render_index([summary], monitoring="monitoring.html")
    assert '<a href="monitoring.html"' in page
