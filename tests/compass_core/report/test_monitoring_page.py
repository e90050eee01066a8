from __future__ import annotations

import dataclasses
import math
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compass_core.report.monitoring_data import (
    AccuracyPoint,
    MonitoringReport,
    MovedCluster,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
    from_json,
)
from compass_core.report.monitoring_page import render_monitoring, write_monitoring
from compass_core.report.monitoring_state import by_urgency
from compass_core.report.monitoring_text import (
    monitoring_markdown,
    overview_markdown,
    overview_rows,
)

ATTACK = "\"><script>alert(1)</script><img src=x onerror=alert(1)>' onload='x|[a](javascript:x)"


class Elements(HTMLParser):
    """Collects elements and attributes, and complains where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "hr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def attacked() -> MonitoringReport:
    window = WindowPoint(
        name=ATTACK,
        start="2026-10-01T00:00:00Z",
        end="2026-10-02T00:00:00Z",
        status="alarm",
        score=0.1,
        threshold=0.05,
        moved=[MovedCluster(ATTACK, 0.1, 0.2)],
        drift_detected=True,
        unit=ATTACK,
        champion=ATTACK,
        event=ATTACK,
        notes=[ATTACK],
    )
    update = UpdatePoint(
        time="2026-10-02T01:00:00Z",
        event=ATTACK,
        version=ATTACK,
        status="refused",
        reasons=[ATTACK],
        run_id=ATTACK,
    )
    language = WatchedLanguage(
        language=ATTACK,
        name=ATTACK,
        champion=ATTACK,
        base=ATTACK,
        windows=[window, dataclasses.replace(window, name="w", start=ATTACK, end=ATTACK)],
        updates=[update, dataclasses.replace(update, time=ATTACK)],
        accuracy=[AccuracyPoint("2026-10-01T01:00:00Z", ATTACK, 0.5), AccuracyPoint(ATTACK, "2")],
        event=ATTACK,
        event_state="pending",
        n_quarantined={ATTACK: 3},
        notes=[ATTACK],
    )
    broken = dataclasses.replace(language, language="b", error=ATTACK)
    return MonitoringReport(
        created=ATTACK,
        title=ATTACK,
        languages=[language, broken],
        notes=[ATTACK],
        links={ATTACK: ATTACK, "click": "javascript:alert(1)"},
        versions={ATTACK: ATTACK},
    )


def test_text_from_users_never_becomes_markup() -> None:
    parsed = Elements(render_monitoring(attacked()))
    names = {name for name, _ in parsed.elements}
    assert not names & {"script", "img", "iframe", "object", "link", "base", "form"}
    attributes = {name for _, attrs in parsed.elements for name in attrs}
    assert not [name for name in attributes if name.startswith("on")]
    addresses = [attrs["href"] or "" for name, attrs in parsed.elements if name == "a"]
    assert not [href for href in addresses if re.match(r"\s*(javascript|data):", href, re.I)]


def test_text_from_users_never_breaks_a_markdown_table() -> None:
    report = attacked()
    for text in (
        monitoring_markdown(report.languages[0]),
        monitoring_markdown(report.languages[1]),
        overview_markdown(report),
    ):
        assert "<script" not in text.replace(r"\<", "")
        assert "](javascript" not in text.replace(r"\]", "")
        tables = [line for line in text.splitlines() if line.startswith("|")]
        columns = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
        assert len(set(columns)) <= 3


def test_page_loads_nothing_and_runs_nothing(sample_monitoring: MonitoringReport) -> None:
    page = render_monitoring(sample_monitoring)
    parsed = Elements(page)
    assert not [attrs for _, attrs in parsed.elements if "src" in attrs]
    assert not re.search(r"@import|url\(|https?://(?!127\.0\.0\.1)", page)
    assert "default-src &#x27;none&#x27;" in page


def test_42_languages_are_at_a_glance_and_reachable(sample_monitoring: MonitoringReport) -> None:
    page = render_monitoring(sample_monitoring)
    parsed = Elements(page)
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = [attrs["href"] or "" for name, attrs in parsed.elements if name == "a"]
    anchors = [href[1:] for href in inside if href.startswith("#")]
    assert len(anchors) == 42
    assert set(anchors) <= set(ids)
    order = [
        f"language-{item.language}".replace("_", "-")
        for item in by_urgency(sample_monitoring.languages)
    ]
    assert anchors == order
    assert len(page.encode()) < 3_000_000


def test_page_says_how_the_p_values_came_about(sample_monitoring: MonitoringReport) -> None:
    page = render_monitoring(sample_monitoring)
    for words in (
        "by permuting users",
        "19\u202f999 permutations, seed ",
        "an alarm is p at or below the level",
        "Clusters of fewer than 20 users are never shown",
        "Jensen–Shannon",
    ):
        assert words in page


def test_every_plot_has_words(sample_monitoring: MonitoringReport) -> None:
    page = render_monitoring(sample_monitoring)
    named = re.findall(r'<svg[^>]*role="img"[^>]*>', page)
    titled = re.findall(r'<svg[^>]*role="img"[^>]*><title>[^<]+</title>', page)
    assert len(named) == len(titled)
    assert len(named) > 200


def test_equal_reports_give_equal_pages_in_any_order(sample_monitoring: MonitoringReport) -> None:
    mixed = random.Random(5)
    languages = [
        dataclasses.replace(
            item,
            windows=mixed.sample(item.windows, len(item.windows)),
            accuracy=mixed.sample(item.accuracy, len(item.accuracy)),
        )
        for item in mixed.sample(sample_monitoring.languages, 42)
    ]
    shuffled = dataclasses.replace(sample_monitoring, languages=languages)
    assert render_monitoring(shuffled) == render_monitoring(sample_monitoring)


def test_share_of_too_few_users_is_not_a_number() -> None:
    window = WindowPoint(
        name="w",
        start="",
        end="",
        status="alarm",
        p_value=0.001,
        moved=[MovedCluster("topic", None, 0.06)],
    )
    language = WatchedLanguage(language="swh_Latn", name="Swahili", champion="1", windows=[window])
    page = render_monitoring(MonitoringReport(created="", languages=[language]))
    assert "few → 6.0%" in page
    assert "| topic | few | 6.0% |" in monitoring_markdown(language)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_a_dash_and_never_a_mark(value: float | None) -> None:
    window = WindowPoint(
        name="w",
        start="2026-10-01T00:00:00Z",
        end="2026-10-02T00:00:00Z",
        score=value,
        threshold=value,
        p_value=value,
        level=value,
        novel_current=value,
        novel_reference=value,
    )
    language = WatchedLanguage(
        language="swh_Latn",
        name="Swahili",
        champion="1",
        windows=[window],
        updates=[UpdatePoint(time="2026-10-02T00:00:00Z", forgetting=value)],
        accuracy=[AccuracyPoint("2026-10-01T00:00:00Z", "1", value, value, value)],
    )
    page = render_monitoring(MonitoringReport(created="", languages=[language]))
    Elements(page)
    assert not re.search(r"\b(nan|inf)\b", page)
    assert not re.search(r"\b(nan|inf)\b", monitoring_markdown(language))


def test_what_holds_for_every_window_is_said_once() -> None:
    windows = [
        WindowPoint(name=f"w{i}", start="", end="", notes=["users unknown", f"{i} counted"])
        for i in range(3)
    ]
    language = WatchedLanguage(language="swh_Latn", name="Swahili", champion="1", windows=windows)
    page = render_monitoring(MonitoringReport(created="", languages=[language]))
    assert page.count("users unknown") == 1
    assert all(page.count(f"{i} counted") == 1 for i in range(3))


def test_sizes_of_window_and_reference_are_stated() -> None:
    window = WindowPoint(
        name="w", start="", end="", n_prompts=900, n_units=300, n_reference=80, units_reference=40
    )
    language = WatchedLanguage(language="swh_Latn", name="Swahili", champion="1", windows=[window])
    page = render_monitoring(MonitoringReport(created="", languages=[language]))
    assert "900 by 300 users" in page
    assert "reference: 80 by 40 users" in page


def test_nobody_watched_says_so() -> None:
    page = render_monitoring(MonitoringReport(created="2026-10-01T00:00:00Z"))
    assert "No language is watched yet" in page
    assert overview_rows(MonitoringReport(created=""))[1:] == []


def test_thousands_of_windows_stay_one_page() -> None:
    windows = [
        WindowPoint(
            name=f"w{index}",
            start=f"20{10 + index // 365:02}-01-01T00:00:00Z",
            end=f"20{10 + index // 365:02}-12-{1 + index % 28:02}T00:00:00Z",
            score=0.1,
            threshold=0.2,
        )
        for index in range(3_000)
    ]
    language = WatchedLanguage(language="swh_Latn", name="Swahili", champion="1", windows=windows)
    page = render_monitoring(MonitoringReport(created="", languages=[language]))
    assert "2960 older windows are in monitoring.json" in page
    assert len(page.encode()) < 300_000


def test_markdown_is_short_and_has_the_newest_window_first(
    sample_monitoring: MonitoringReport,
) -> None:
    language = next(item for item in sample_monitoring.languages if item.event_state == "pending")
    text = monitoring_markdown(language)
    assert text.startswith("## Amharic: ◆ Drift\n")
    assert text.index("2026-11-13") < text.index("2026-11-12")
    assert "What moved in 2026-11-13" in text
    assert "34 earlier windows" in text
    assert len(text) < 4_000


def test_terminal_rows_are_one_per_language(sample_monitoring: MonitoringReport) -> None:
    rows = overview_rows(sample_monitoring)
    assert len(rows) == 43
    assert {len(row) for row in rows} == {8}
    assert rows[2][:2] == ["Amharic", "◆ Drift"]


def test_sample_page_is_written_beside_the_data_it_was_made_from(
    sample_monitoring: MonitoringReport, tmp_path: Path
) -> None:
    folder = Path(os.environ.get("COMPASS_REPORT_SAMPLE", tmp_path))
    page = write_monitoring(sample_monitoring, folder)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert from_json((folder / "monitoring.json").read_text("utf-8")) == sample_monitoring
