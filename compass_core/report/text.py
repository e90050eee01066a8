"""The same results as short text: Markdown tables for Prefect's artifacts, rows for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from compass_core.report.data import LanguageReport, RunReport
from compass_core.report.health_text import health_rows
from compass_core.report.markup import clean, interval, number, percent, points
from compass_core.report.parts import STATUS_TEXT, by_gap, readable_name, source_name
from compass_core.report.plots import arm_label, arm_order

MAX_ROWS = 15
"""Rows of one Markdown table; an artifact is for a glance, the page has the rest."""

_WORDS = ("Arm", "Cluster", "Figure", "From", "Meaning")
"""Columns of words; all others hold numbers."""

_ERROR_LIMIT = 1_000
"""Characters of an error; its advice stands at the end."""

_SPECIAL = "\\`*_{}[]<>#|~!&"


def markdown_text(text: str, limit: int = 100) -> str:
    r"""Return text from the data so that Markdown shows it and does not interpret it.

    Examples:
        >>> print(markdown_text("a|b <i>"))
        a\|b \<i\>
    """
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in clean(text, limit))


def gap_table_markdown(language: LanguageReport) -> str:
    """Return the clusters with the largest gaps: usage, coverage, gap, taken, available."""
    rows = [
        [
            markdown_text(f"{row.cluster} {row.label}"),
            percent(row.usage_share),
            percent(row.coverage_share),
            points(row.gap) if row.gap > 0 else "0",
            number(row.allocation),
            number(row.capacity),
        ]
        for row in by_gap(language.clusters)
    ]
    header = ["Cluster", "Usage", "Coverage", "Gap", "Taken", "Available"]
    return _titled(language, "what users ask and the coverage lacks", header, rows)


def health_table_markdown(language: LanguageReport) -> str:
    """Return the figures that say whether the clusters can be trusted, and what looked wrong."""
    rows = [
        [markdown_text(title), number(value), markdown_text(meaning, 300)]
        for title, value, meaning in health_rows(language.health)
    ]
    table = _titled(language, "can the clusters be trusted?", ["Figure", "Value", "Meaning"], rows)
    warnings = [f"- ⚠ {markdown_text(text, 400)}" for text in language.health_warnings]
    return "\n".join([table.rstrip(), "", *warnings]).rstrip() + "\n"


def source_table_markdown(language: LanguageReport) -> str:
    """Return how many examples were selected from each source language."""
    totals = {source: sum(row.values()) for source, row in language.source_counts.items()}
    whole = sum(totals.values())
    order = sorted((source for source in totals if totals[source]), key=lambda s: (-totals[s], s))
    rows = [
        [
            markdown_text(source_name(source)),
            number(totals[source]),
            percent(totals[source] / whole),
        ]
        for source in order
    ]
    title = f"{number(whole)} examples selected"
    return _titled(language, title, ["From", "Examples", "Share"], rows)


def evaluation_table_markdown(language: LanguageReport) -> str:
    """Return accuracy of every arm with its interval, and of the trivial baselines."""
    results = {arm.arm: arm for arm in language.arms}
    rows = [
        [
            markdown_text(arm_label(name)),
            percent(results[name].accuracy),
            interval(results[name].low, results[name].high),
            percent(results[name].missing),
            percent(results[name].covered),
        ]
        for name in arm_order(list(results))
    ]
    rows += [
        [markdown_text(f"({readable_name(name)})"), percent(value), "", "", ""]
        for name, value in language.trivial.items()
    ]
    header = ["Arm", "Accuracy", "Interval, %", "Missing topics", "Covered topics"]
    return _titled(language, "accuracy on what users ask", header, rows)


def verdict_markdown(language: LanguageReport) -> str:
    """Return the outcome and its reasons."""
    lines = [
        f"## {markdown_text(language.name)}: {STATUS_TEXT.get(language.status, language.status)}",
        "",
    ]
    if language.error:
        lines += [markdown_text(language.error, 1_000), ""]
    lines += [f"- {markdown_text(reason, 400)}" for reason in language.verdict_reasons]
    lines += [f"- ⚠ {markdown_text(warning, 400)}" for warning in language.health_warnings]
    return "\n".join(lines).rstrip() + "\n"


def gap_headline(language: LanguageReport) -> str:
    """Return in one line what a language lacks and what was selected for it."""
    wide = [row for row in language.clusters if row.gap > 0]
    selected = sum(sum(row.values()) for row in language.source_counts.values())
    return (
        f"{language.name}: {len(wide)} of {len(language.clusters)} clusters lack coverage "
        f"({percent(sum(row.gap for row in wide))} of usage), {number(selected)} examples selected"
    )


def verdict_headline(language: LanguageReport, main_arm: str) -> str:
    """Return in one line what became of a language."""
    words = f"{language.name}: {STATUS_TEXT.get(language.status, language.status)}"
    before, after = _before_and_after(language, main_arm)
    return f"{words}, {before} → {after}" if after != "–" else words


def outcomes_markdown(report: RunReport) -> str:
    """Return how every language of a run ended: what failed comes first, with its error."""
    failed = [language for language in report.languages if language.status == "failed"]
    n_languages = len(report.languages)
    title = f"{n_languages - len(failed)} of {n_languages} languages done"
    lines = [f"## {title}{f', {len(failed)} FAILED' if failed else ''}", ""]
    for language in failed:
        name = markdown_text(f"{language.name} ({language.language})")
        lines.append(f"- **{name}**: {markdown_text(language.error, _ERROR_LIMIT)}")
    header = ["Language", "Outcome", "Before", "After", "Warnings"]
    lines += ["", f"| {' | '.join(header)} |", "|:--|:--|--:|--:|--:|"]
    for language in sorted(report.languages, key=lambda found: found.status != "failed"):
        cells = [
            markdown_text(f"{language.name} ({language.language})"),
            STATUS_TEXT.get(language.status, language.status),
            *_before_and_after(language, report.main_arm),
            number(len(language.health_warnings)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", "Accuracy on the test items: the base model, the new adapter.", ""]
    )


def _before_and_after(language: LanguageReport, main_arm: str) -> tuple[str, str]:
    """Return the accuracy of the base and of the arm that is up for promotion."""
    base, main = language.arm("zero-shot"), language.arm(main_arm)
    return percent(base.accuracy if base else None), percent(main.accuracy if main else None)


def summary_rows(report: RunReport) -> list[list[str]]:
    """Return header and rows of the summary as plain text, for a terminal."""
    arms = arm_order([arm.arm for language in report.languages for arm in language.arms])
    rows = [["Language", *map(arm_label, arms), "Outcome", "Why"]]
    for language in report.languages:
        cells = []
        for name in arms:
            arm = language.arm(name)
            cells.append(_with_interval(arm.accuracy, arm.low, arm.high) if arm else "–")
        reason = language.error or next(iter(language.verdict_reasons), "")
        name = clean(language.name, 40)
        rows.append(
            [name, *cells, STATUS_TEXT.get(language.status, language.status), clean(reason, 160)]
        )
    return rows


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    ends = f"{percent(low, 0)[:-1]}–{percent(high, 0)[:-1]}"
    return f"{percent(value)} [{ends}]" if ends != "–" else percent(value)


def _titled(
    language: LanguageReport, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Return a heading and a bounded Markdown table, words to the left, numbers to the right."""
    lines = [f"## {markdown_text(language.name)}: {title}", ""]
    if not rows:
        return "\n".join([*lines, "Nothing to show.", ""])
    lines.append(f"| {' | '.join(header)} |")
    words = [name in _WORDS for name in header]
    lines.append(f"|{'|'.join(':--' if left else '--:' for left in words)}|")
    lines += [f"| {' | '.join(row)} |" for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        lines += ["", f"… and {len(rows) - MAX_ROWS} more in the report."]
    return "\n".join(lines) + "\n"
