"""One self-contained HTML page per run, and an index of runs.

The page needs nothing but itself (`document`), and `markup` escapes whatever comes from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compass_core import storage
from compass_core.report import plots
from compass_core.report.continual_section import render_continual
from compass_core.report.data import (
    LanguageReport,
    RunReport,
    RunSummary,
    arm_gains,
    mean,
    to_json,
)
from compass_core.report.document import document
from compass_core.report.language_section import render_language
from compass_core.report.markup import (
    Child,
    Html,
    clean,
    duration,
    elapsed,
    join,
    link,
    moment,
    percent,
    points,
    table,
    tag,
    user_text,
)
from compass_core.report.parts import (
    TRIVIAL_TEXT,
    anchor,
    badge,
    bullet_list,
    key,
    readable_name,
)
from compass_core.report.spaces_section import render_spaces
from compass_core.report.status_data import StatusReport
from compass_core.report.status_section import render_status
from compass_core.report.study_section import render_study

PAGE_NAME = "report.html"
DATA_NAME = "report.json"

_HEADLINE_ARMS = ("zero-shot", "target-only", "random")


def write_report(report: RunReport, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into `folder`; return the page."""
    storage.write_text(folder / DATA_NAME, to_json(report))
    storage.write_text(folder / PAGE_NAME, render_report(report))
    return folder / PAGE_NAME


def render_report(report: RunReport) -> str:
    """Return the page of one run; equal reports give equal pages."""
    body = [_head(report)]
    if report.languages:
        body += [_headline(report), render_spaces(report), _languages(report)]
    if report.study is not None:
        body.append(render_study(report.study, report.main_arm))
    if report.continual is not None:
        body.append(render_continual(report.continual))
    if not report.languages and report.study is None and report.continual is None:
        body.append(tag("p", "This run has no languages yet.", class_="note"))
    body.append(_footer(report))
    return document(f"{report.title} · {report.run_id}", body)


def render_index(
    runs: Sequence[RunSummary], *, monitoring: str = "", status: StatusReport | None = None
) -> str:
    """Return what serves where, and the index of runs; ``href`` of each leads to its page.

    Args:
        runs: One line each, in any order; shown newest first.
        monitoring: Address of the page about usage over time, empty where there is none.
        status: What serves each language and what needs somebody.
    """
    rows: list[list[Child]] = []
    for run in sorted(runs, key=lambda run: (run.started, run.run_id), reverse=True):
        names = ", ".join(run.languages[:8]) + (" …" if len(run.languages) > 8 else "")
        outcome = f"{run.promoted} promoted, {run.kept} kept, {run.failed} failed"
        rows.append(
            [
                join([link(run.title, run.href), tag("br"), tag("small", run.run_id)]),
                user_text(run.project, 60),
                moment(run.started),
                duration(elapsed(run.started, run.finished)),
                user_text(names),
                outcome,
                points(run.mean_gain),
            ]
        )
    header = ["Run", "Project", "Started", "Took", "Languages", "Outcome", "Mean gain, points"]
    usage = tag("p", link("Usage over time", monitoring)) if monitoring else None
    head = tag("header", tag("h1", "COMPASS"), usage)
    caption = "Gain: accuracy minus zero-shot, mean over the languages of the run"
    content = (
        table(header, rows, caption=caption, class_="runs")
        if rows
        else tag("p", "No run yet. Start one with: ", tag("code", "compass adapt"), class_="note")
    )
    serving = render_status(status, monitoring) if status is not None else None
    title = tag("h2", "Runs") if serving is not None else None
    return document("COMPASS", [head, serving, tag("section", title, content, class_="card")])


def _head(report: RunReport) -> Html:
    facts = [
        user_text(report.project, 60),
        tag("code", clean(report.run_id, 80)),
        moment(report.started),
        duration(elapsed(report.started, report.finished)) if report.finished else "running",
    ]
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
        tag("p", join(facts, " · "), class_="facts"),
        notes,
    )


def _headline(report: RunReport) -> Html:
    scored = [language for language in report.languages if language.arms]
    parts: list[Child] = [_tiles(report)]
    if scored:
        parts.append(tag("p", tag("b", "Read this first: "), _reading_advice(report)))
        parts.append(_legend(report))
    parts.append(_summary_table(report))
    return tag("section", tag("h2", "Summary"), *parts, class_="card", id="summary")


def _reading_advice(report: RunReport) -> str:
    caution = "Where intervals overlap widely, one run cannot tell two arms apart."
    name = plots.arm_label(report.main_arm)
    pairs = [(item.arm(report.main_arm), item.arm("random")) for item in report.languages]
    both = [(main, other) for main, other in pairs if main and other]
    if not both:
        return f"{name} is the arm up for promotion. {caution}"
    if any(
        (main.n_selected, main.steps) != (other.n_selected, other.steps) for main, other in both
    ):
        return (
            f"compare {name} with Random, but mind that they did not train on the same number of "
            f"examples for the same number of steps everywhere. {caution}"
        )
    return (
        f"compare {name} with Random. Both trained on the same number of examples for the same "
        f"number of steps; only the choice of examples differs. {caution}"
    )


def _tiles(report: RunReport) -> Html:
    """Return the few numbers that say how the run went."""
    count = len(report.languages)
    tiles: list[tuple[str, str]] = []
    for status, text in (
        ("promoted", "promoted"),
        ("kept", "kept the champion"),
        ("selected", "selection only"),
        ("scored", "compared"),
        ("failed", "failed"),
    ):
        n = sum(language.status == status for language in report.languages)
        if n:
            tiles.append((f"{n} of {count}", text))
    for baseline in _HEADLINE_ARMS:
        gains = arm_gains(report, baseline)
        if gains:
            better = sum(gain > 0 for gain in gains)
            label = plots.arm_label(baseline).lower()
            text = f"points over {label} on average; higher in {better} of {len(gains)}"
            tiles.append((points(mean(gains)), text))
    return tag(
        "div",
        *(tag("div", tag("b", value), tag("span", text), class_="tile") for value, text in tiles),
        class_="tiles",
    )


def _shown_arms(report: RunReport) -> list[str]:
    return plots.arm_order([arm.arm for language in report.languages for arm in language.arms])


def _legend(report: RunReport) -> Html:
    entries = [(f"f {plots.arm_class(arm)}", plots.arm_label(arm)) for arm in _shown_arms(report)]
    trivial = dict.fromkeys(name for language in report.languages for name in language.trivial)
    if trivial:
        names = "; ".join(TRIVIAL_TEXT.get(name, readable_name(name)).lower() for name in trivial)
        entries.append(("trivial", f"trivial baselines: {names}"))
    return key(*entries)


def _summary_table(report: RunReport) -> Html:
    arms = _shown_arms(report)
    ends = [
        value
        for language in report.languages
        for arm in language.arms
        for value in (arm.accuracy, arm.low, arm.high)
    ]
    ends += [value for language in report.languages for value in language.trivial.values()]
    scale = plots.Scale.around(ends)
    header: list[Child] = ["Language"]
    if arms:
        header += [join(["Accuracy on what users ask", plots.axis(scale)])]
        header += [
            join([tag("i", class_=f"mark f {plots.arm_class(arm)}"), " ", plots.arm_label(arm)])
            for arm in arms
        ]
    header.append("Outcome")
    rows = [_summary_row(report, language, arms, scale) for language in report.languages]
    caption = (
        f"Usage-weighted accuracy on test items with {percent(report.confidence, 0)} intervals"
        if arms
        else "Selection only: nothing was trained or scored"
    )
    return table(header, rows, caption=caption, class_="summary")


def _summary_row(
    report: RunReport, language: LanguageReport, arms: Sequence[str], scale: plots.Scale
) -> list[Child]:
    name = tag("a", user_text(language.name, 60), href=f"#{anchor(language.language)}")
    cells: list[Child] = [join([name, " ", tag("small", language.script)])]
    if arms:
        present = [result for arm in arms if (result := language.arm(arm)) is not None]
        cells.append(plots.arms_track(scale, present, language.trivial, report.main_arm))
        for arm in arms:
            result = language.arm(arm)
            text = percent(result.accuracy if result else None)
            cells.append(tag("b", text) if arm == report.main_arm else text)
    reason = language.error or next(iter(language.verdict_reasons), "")
    cells.append(join([badge(language.status), " ", user_text(reason, 160)]))
    return cells


def _languages(report: RunReport) -> Html:
    first = next((item for item in report.languages if item.status != "failed"), None)
    return join(
        render_language(report, language, is_open=language is first)
        for language in report.languages
    )


def _footer(report: RunReport) -> Html:
    parts: list[Child] = []
    if report.links:
        rows = [[user_text(name), link(url, url)] for name, url in report.links.items()]
        parts.append(table(["What", "Where"], rows, caption="Where to look further"))
    for title, values in (("Configuration", report.config_summary), ("Versions", report.versions)):
        if values:
            rows = [[user_text(name), tag("code", clean(text))] for name, text in values.items()]
            parts.append(table(["Name", "Value"], rows, caption=title))
    text = "Accuracy is usage-weighted. A dash means: not measured. The numbers are in report.json."
    return tag("footer", tag("div", *parts, class_="columns"), tag("p", text, class_="hint"))
