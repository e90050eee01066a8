"""The page about usage over time: all languages at a glance, then one section for each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compass_core import storage
from compass_core.report.document import document
from compass_core.report.markup import (
    Child,
    Html,
    clean,
    exact_p,
    link,
    moment,
    percent,
    table,
    tag,
    user_text,
)
from compass_core.report.monitoring_data import MonitoringReport, WatchedLanguage, to_json
from compass_core.report.monitoring_plots import STRIP_WINDOWS, UPDATE_TEXT, strip
from compass_core.report.monitoring_section import render_watched, score_text, state_badge
from compass_core.report.monitoring_state import (
    STATE_MEANING,
    STATE_TEXT,
    by_urgency,
    closed_windows,
    seconds,
    state_of,
    updates_in_order,
    window_name,
)
from compass_core.report.parts import anchor, bullet_list, scrolling

PAGE_NAME = "monitoring.html"
DATA_NAME = "monitoring.json"


def write_monitoring(report: MonitoringReport, folder: Path) -> Path:
    """Write ``monitoring.html`` and ``monitoring.json`` into `folder`; return the page."""
    storage.write_text(folder / DATA_NAME, to_json(report))
    storage.write_text(folder / PAGE_NAME, render_monitoring(report))
    return folder / PAGE_NAME


def render_monitoring(report: MonitoringReport) -> str:
    """Return the page; equal reports give equal pages."""
    languages = by_urgency(report.languages)
    body = [_head(report)]
    if languages:
        body.append(_overview(languages))
        first = next((item for item in languages if item.windows), None)
        body += [render_watched(item, is_open=item is first) for item in languages]
    else:
        advice = tag("code", "compass monitor")
        body.append(tag("p", "No language is watched yet. Start with: ", advice, class_="note"))
    body.append(_footer(report))
    return document(report.title, body)


def _head(report: MonitoringReport) -> Html:
    count = len(report.languages)
    facts = [f"{count} language{'s' if count != 1 else ''}", f"as of {moment(report.created)}"]
    notes = (
        tag(
            "div", tag("b", "Before you read the numbers"), bullet_list(report.notes), class_="note"
        )
        if report.notes
        else None
    )
    return tag(
        "header",
        tag("h1", user_text(report.title)),
        tag("p", " · ".join(facts), class_="facts"),
        notes,
    )


def _overview(languages: list[WatchedLanguage]) -> Html:
    counts = Counter(state_of(language) for language in languages)
    tiles = [
        tag("div", tag("b", str(counts[state])), state_badge(state), class_="tile")
        for state in STATE_TEXT
        if counts[state]
    ]
    meanings = [[state_badge(state), STATE_MEANING[state]] for state in STATE_TEXT if counts[state]]
    header: list[Child] = [
        "Language",
        "State",
        f"Last {STRIP_WINDOWS} windows",
        "Last window",
        "Score (threshold)",
        "p",
        "Novelty",
        "Champion",
        "Last update",
    ]
    rows = [_overview_row(language) for language in languages]
    caption = (
        "What needs a look comes first. Bars: drift score over its threshold, the line is 1; "
        "orange: alarm, red with ◆: drift, grey stub: too small for a decision"
    )
    return tag(
        "section",
        tag("h2", "All languages"),
        tag("div", *tiles, class_="tiles"),
        scrolling(table(header, rows, caption=caption, class_="fleet cards"), "All languages"),
        tag(
            "details",
            tag("summary", "What the states mean"),
            table(["State", "Meaning"], meanings, caption="States on this page", class_="states"),
            class_="more",
        ),
        class_="card",
        id="overview",
    )


def _overview_row(language: WatchedLanguage) -> list[Child]:
    windows = closed_windows(language)
    last = windows[-1] if windows else None
    return [
        tag("a", user_text(language.name, 60), href=f"#{anchor(language.language)}"),
        state_badge(state_of(language)),
        strip(language),
        user_text(window_name(last), 40) if last else "–",
        score_text(last) if last else "–",
        exact_p(last.p_value) if last else "–",
        percent(last.novel_current) if last else "–",
        _champion(language),
        _last_update(language),
    ]


def _champion(language: WatchedLanguage) -> str:
    if not language.champion:
        return "–"
    known = [point for point in language.accuracy if point.version == language.champion]
    newest = max(known, key=lambda point: seconds(point.time) or 0.0, default=None)
    accuracy = f", {percent(newest.accuracy)}" if newest else ""
    return f"v{clean(language.champion, 20)}{accuracy}"


def _last_update(language: WatchedLanguage) -> str:
    updates = updates_in_order(language)
    if not updates:
        return "–"
    text = UPDATE_TEXT.get(updates[-1].status, updates[-1].status)
    return f"{text}, {moment(updates[-1].time)[:10]}"


def _footer(report: MonitoringReport) -> Html:
    parts: list[Child] = []
    if report.links:
        rows = [[user_text(name), link(url, url)] for name, url in report.links.items()]
        parts.append(table(["What", "Where"], rows, caption="Where to look further"))
    if report.versions:
        rows = [[user_text(name), tag("code", clean(v))] for name, v in report.versions.items()]
        parts.append(table(["Name", "Value"], rows, caption="Versions"))
    text = (
        "Drift score: Jensen–Shannon divergence of the clusters' shares in bits, 0 to 1. Its "
        "threshold belongs to the sizes of its window, so windows have different ones. All times "
        "are UTC. A dash means: not measured. The numbers are in monitoring.json."
    )
    return tag("footer", tag("div", *parts, class_="columns"), tag("p", text, class_="hint"))
