"""The part of a report about a study: languages x arms, and paired differences between arms."""

from __future__ import annotations

import math
import re

from compass_core.report import plots
from compass_core.report.data import (
    Comparison,
    StudyReport,
    difference,
    mean,
)
from compass_core.report.markup import (
    Child,
    Html,
    join,
    number,
    p_value,
    percent,
    points,
    table,
    tag,
    user_text,
)
from compass_core.report.parts import scrolling, source_name

METRIC_TEXT = {
    "accuracy": "Accuracy on what users ask (usage-weighted; the headline)",
    "missing": "Accuracy on the missing topics",
    "covered": "Accuracy on the covered topics",
}


def render_study(study: StudyReport, main_arm: str) -> Html:
    """Return the section of a study."""
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) != 1 else ''}"
    parts: list[Child] = [
        tag("h2", "Study"),
        tag(
            "p",
            f"{len(study.languages)} languages × {seeds} × {len(study.arms)} arms. Arms that "
            "select have equal budgets, trained arms equal optimiser steps. Each number is a "
            "mean over seeds, ± its standard deviation.",
            class_="hint",
        ),
        _differences(study, main_arm),
    ]
    for metric, title in METRIC_TEXT.items():
        grid = _grid(study, metric, main_arm)
        if grid and metric == "accuracy":
            parts += [tag("h3", title), scrolling(grid, title)]
        elif grid:
            inside = scrolling(grid, title)
            parts.append(tag("details", tag("summary", title), inside, class_="more"))
    return tag("section", *parts, id="study", class_="card study")


def cell_values(study: StudyReport, language: str, arm: str, metric: str) -> list[float]:
    """Return the measured values of one language and arm, one per seed."""
    values = [
        getattr(cell, metric)
        for cell in study.cells
        if cell.language == language and cell.arm == arm
    ]
    return [value for value in values if value is not None and math.isfinite(value)]


def language_differences(study: StudyReport, comparison: Comparison) -> list[tuple[str, float]]:
    """Return per language the difference of the two arms that `comparison` names, over seeds."""
    arms = _compared_arms(comparison.comparison, study.arms)
    if arms is None or comparison.metric not in METRIC_TEXT:
        return []
    pairs = []
    for language in study.languages:
        first, second = (mean(cell_values(study, language, arm, comparison.metric)) for arm in arms)
        gain = difference(first, second)
        if gain is not None:
            pairs.append((language, gain))
    return pairs


def _compared_arms(text: str, arms: list[str]) -> tuple[str, str] | None:
    """Return the two arms a comparison names, in its order, ``None`` if they are not two."""
    sides = re.split(r"\s+(?:[-−–]|vs\.?|versus)\s+", text.strip())
    return (sides[0], sides[1]) if len(sides) == 2 and set(sides) <= set(arms) else None


def _differences(study: StudyReport, main_arm: str) -> Html:
    groups = [
        (title, [row for row in study.comparisons if row.metric == metric])
        for metric, title in METRIC_TEXT.items()
    ]
    known = set(METRIC_TEXT)
    groups.append(("Other measures", [row for row in study.comparisons if row.metric not in known]))
    if not any(rows for _, rows in groups):
        return Html("")
    dots = {
        row: [gain for _, gain in language_differences(study, row)] for row in study.comparisons
    }
    ends = [
        value for row in study.comparisons for value in (row.mean_difference, row.low, row.high)
    ]
    scale = plots.Scale.around(
        [*ends, *(gain for gains in dots.values() for gain in gains)], include=[0.0]
    )
    name = plots.arm_label(main_arm)
    parts: list[Child] = [
        tag("h3", "Paired differences, in percentage points"),
        tag(
            "p",
            f"Right of the line: {name} is better. Large dot and bar: mean over languages and its "
            "interval; small dots: single languages. p is corrected for all comparisons (Holm).",
            class_="hint",
        ),
    ]
    parts += [_difference_table(study, scale, title, rows, dots) for title, rows in groups if rows]
    return join(parts)


def _difference_table(
    study: StudyReport,
    scale: plots.Scale,
    title: str,
    rows: list[Comparison],
    dots: dict[Comparison, list[float]],
) -> Html:
    header: list[Child] = [
        "Comparison",
        join(["Difference", plots.axis(scale, signed=True)]),
        "Mean",
        "Interval",
        "p (Holm)",
        "Cohen's d",
        "Languages",
    ]
    body: list[list[Child]] = []
    for row in rows:
        interval = f"{points(row.low)} to {points(row.high)}"
        arms = _compared_arms(row.comparison, study.arms)
        name = " − ".join(map(plots.arm_label, arms)) if arms else row.comparison
        said = f"{name}: {points(row.mean_difference)} points, {interval}"
        estimate = (row.mean_difference, row.low, row.high)
        body.append(
            [
                user_text(name, 80),
                plots.difference_track(scale, estimate, dots[row], said),
                tag("b", points(row.mean_difference)),
                interval,
                p_value(row.p_holm),
                number(row.cohens_d, 2),
                number(row.n_languages),
            ]
        )
    return table(header, body, caption=title, class_="differences")


def _grid(study: StudyReport, metric: str, main_arm: str) -> Html:
    """Return the table languages x arms of one metric, best arm of a language in bold."""
    arms = plots.arm_order(study.arms)
    body: list[list[Child]] = []
    columns: dict[str, list[float | None]] = {arm: [] for arm in arms}
    for language in study.languages:
        values = {arm: cell_values(study, language, arm, metric) for arm in arms}
        means = {arm: mean(values[arm]) for arm in arms}
        best = max((value for value in means.values() if value is not None), default=None)
        cells = [_grid_cell(values[arm], best) for arm in arms]
        body.append([user_text(source_name(language), 60), *cells])
        for arm in arms:
            columns[arm].append(means[arm])
    if not any(value is not None for column in columns.values() for value in column):
        return Html("")
    overall = [tag("b", percent(mean(columns[arm]))) for arm in arms]
    body.append([tag("b", "Mean over languages"), *overall])
    heads = [
        join([tag("i", class_=f"mark f {plots.arm_class(arm)}"), " ", plots.arm_label(arm)])
        for arm in arms
    ]
    caption = f"Mean over {len(study.seeds)} seeds ± standard deviation; best arm in bold"
    return table(["Language", *heads], body, caption=caption, class_="grid")


def _grid_cell(values: list[float], best: float | None) -> Html:
    centre = mean(values)
    if centre is None:
        return Html("–")
    spread = ""
    if len(values) > 1:
        variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
        spread = f" ±{100 * math.sqrt(variance):.1f}"
    text = tag("b", percent(centre)) if best is not None and centre >= best else percent(centre)
    return join([text, tag("small", spread)])
