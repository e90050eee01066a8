"""Usage over time as short text: Markdown for Prefect's artifacts, rows for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from compass_core.report.markup import clean, exact_p, moment, number, percent, points
from compass_core.report.monitoring_data import MonitoringReport, WatchedLanguage, WindowPoint
from compass_core.report.monitoring_plots import UPDATE_TEXT, window_text
from compass_core.report.monitoring_section import method_text, move_text
from compass_core.report.monitoring_state import (
    STATE_MEANING,
    STATE_TEXT,
    by_urgency,
    closed_windows,
    in_order,
    state_of,
    updates_in_order,
    window_name,
)
from compass_core.report.text import markdown_text

MAX_WINDOWS = 10
"""Windows in an artifact; the page has the rest."""

MAX_MOVED = 8
MAX_UPDATES = 5


def monitoring_markdown(language: WatchedLanguage) -> str:
    """Return state, last windows, what moved in the last one, and last updates of one language."""
    state = state_of(language)
    lines = [
        f"## {markdown_text(language.name)}: {STATE_TEXT[state]}",
        "",
        f"{STATE_MEANING[state].capitalize()}.",
        "",
    ]
    if language.error:
        return "\n".join([*lines, markdown_text(language.error, 1_000), ""])
    lines += [f"- {markdown_text(note, 500)}" for note in language.notes]
    lines += [""] if language.notes else []
    lines += _windows(language)
    tested = [window for window in closed_windows(language) if window.p_value is not None]
    if tested:
        lines += _moved(tested[-1])
    lines += _updates(language)
    return "\n".join(lines).rstrip() + "\n"


def overview_markdown(report: MonitoringReport) -> str:
    """Return one row for each language, those that need a look first."""
    rows = [[markdown_text(cell) for cell in row] for row in overview_rows(report)]
    lines = ["## All languages", ""]
    return "\n".join([*lines, *_table(rows[0], rows[1:]), ""])


def overview_rows(report: MonitoringReport) -> list[list[str]]:
    """Return header and rows of the overview as plain text, for a terminal."""
    rows = [["Language", "State", "Last window", "Score", "Threshold", "p", "Champion", "Update"]]
    for language in by_urgency(report.languages):
        windows = closed_windows(language)
        last = windows[-1] if windows else None
        updates = updates_in_order(language)
        rows.append(
            [
                clean(language.name, 40),
                STATE_TEXT[state_of(language)],
                clean(window_name(last), 40) if last else "–",
                number(last.score) if last else "–",
                number(last.threshold) if last else "–",
                exact_p(last.p_value) if last else "–",
                clean(language.champion, 20) or "–",
                UPDATE_TEXT.get(updates[-1].status, updates[-1].status) if updates else "–",
            ]
        )
    return rows


def _windows(language: WatchedLanguage) -> list[str]:
    rows = list(reversed(in_order(language.windows)))
    if not rows:
        return ["No window yet.", ""]
    units = "Sessions" if language.unit == "session" else "Users"
    header = ["Window", "State", "Prompts", units, "Score", "Threshold", "p", "Level", "Novelty"]
    body = [
        [
            markdown_text(window_name(window), 40),
            "**drift**" if window.drift_detected else markdown_text(window_text(window), 40),
            number(window.n_prompts),
            number(window.n_units),
            number(window.score),
            number(window.threshold),
            exact_p(window.p_value),
            exact_p(window.level),
            percent(window.novel_current),
        ]
        for window in rows[:MAX_WINDOWS]
    ]
    lines = [*_table(header, body), ""]
    if len(rows) > MAX_WINDOWS:
        lines += [f"… and {len(rows) - MAX_WINDOWS} earlier windows in the report.", ""]
    return [*lines, markdown_text(method_text(language, rows[:MAX_WINDOWS]), 800), ""]


def _moved(window: WindowPoint) -> list[str]:
    body = [
        [markdown_text(row.label, 60), *move_text(row).split(" → ")]
        for row in window.moved[:MAX_MOVED]
    ]
    if not body:
        return []
    title = f"### What moved in {markdown_text(window_name(window), 40)}"
    return [title, "", *_table(["Cluster", "Reference", "Window"], body), ""]


def _updates(language: WatchedLanguage) -> list[str]:
    body = [
        [
            markdown_text(moment(row.time), 40),
            markdown_text(UPDATE_TEXT.get(row.status, row.status), 40),
            markdown_text(row.version, 20) or "–",
            percent(row.accuracy_before),
            percent(row.accuracy_after),
            points(row.forgetting),
            markdown_text(next(iter(row.reasons), ""), 160),
        ]
        for row in reversed(updates_in_order(language))
    ][:MAX_UPDATES]
    if not body:
        return []
    header = ["Time", "Verdict", "Version", "Before", "After", "Forgetting", "Why"]
    return ["### Updates", "", *_table(header, body, left=(0, 1, 6)), ""]


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0, 1)
) -> list[str]:
    """Return a Markdown table, numbers to the right."""
    ways = [":--" if column in left else "--:" for column in range(len(header))]
    return [
        f"| {' | '.join(header)} |",
        f"|{'|'.join(ways)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
