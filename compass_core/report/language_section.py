"""The part of a report about one language: what was missing, what was taken, what it did."""

from __future__ import annotations

from compass_core.report import charts, plots
from compass_core.report.cluster_section import render_clusters, render_map, render_sources
from compass_core.report.data import LanguageReport, RunReport
from compass_core.report.health_text import health_rows
from compass_core.report.markup import (
    Child,
    Html,
    duration,
    interval,
    join,
    link,
    number,
    percent,
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


def render_language(report: RunReport, language: LanguageReport, *, is_open: bool) -> Html:
    """Return the collapsible section of one language."""
    main, base = language.arm(report.main_arm), language.arm("zero-shot")
    change = (
        f"zero-shot {percent(base.accuracy)} → "
        f"{plots.arm_label(report.main_arm)} {percent(main.accuracy)}"
        if main and base
        else ""
    )
    heading = tag(
        "summary",
        tag("h2", user_text(language.name, 80), " ", tag("code", language.language)),
        tag("span", change, class_="change-text"),
        badge(language.status),
    )
    parts = [
        _verdict(language),
        _arms(report, language),
        render_clusters(language),
        render_map(language, len(report.languages)),
        render_sources(language),
        _curves(language),
        _health(language),
        _details(language),
    ]
    body = tag("div", *parts, id=anchor(language.language), class_="body")
    return tag("details", heading, body, open=is_open, class_="language")


def _verdict(language: LanguageReport) -> Html:
    parts: list[Child] = []
    if language.error:
        parts.append(tag("p", tag("strong", "What went wrong: "), user_text(language.error, 2_000)))
    if language.verdict_reasons:
        parts += [tag("h3", "Verdict"), bullet_list(language.verdict_reasons)]
    if language.status == "failed" and not language.arms:
        parts.append(tag("p", "Other languages of the run are not affected.", class_="hint"))
    class_ = "note bad" if language.status == "failed" else "verdict"
    return tag("div", *parts, class_=class_) if parts else Html("")


def _arms(report: RunReport, language: LanguageReport) -> Html:
    if not language.arms:
        return Html("")
    order = plots.arm_order([arm.arm for arm in language.arms])
    arms = [arm for name in order for arm in language.arms if arm.arm == name]
    ends = [value for arm in arms for value in (arm.accuracy, arm.low, arm.high)]
    scale = plots.Scale.around([*ends, *language.trivial.values()])
    header = ["Arm", join(["Accuracy on what users ask", plots.axis(scale)])]
    header += ["Accuracy", "Interval, %", "Missing topics", "Covered topics", "Selected", "Steps"]
    rows: list[list[Child]] = [
        [
            join([tag("i", class_=f"mark f {plots.arm_class(arm.arm)}"), " ", _arm_name(arm.arm)]),
            plots.track(
                scale,
                plots.interval_marks(scale, arm, 12, strong=arm.arm == report.main_arm),
                height=24,
                title=f"{plots.arm_label(arm.arm)}: {percent(arm.accuracy)}",
            ),
            tag("b", percent(arm.accuracy)),
            interval(arm.low, arm.high),
            percent(arm.missing),
            percent(arm.covered),
            number(arm.n_selected),
            number(arm.steps),
        ]
        for arm in arms
    ]
    rows += [
        [
            TRIVIAL_TEXT.get(name, readable_name(name)),
            plots.track(scale, _trivial_mark(scale, value), height=24, title=percent(value)),
            percent(value),
            *[""] * 5,
        ]
        for name, value in language.trivial.items()
    ]
    caption = (
        f"Every arm, {percent(report.confidence, 0)} intervals over "
        f"{number(max(arm.n_items for arm in arms))} test items."
    )
    if language.trivial:
        caption += " Dashed: trivial baselines, which understand nothing."
    return tag(
        "section", tag("h3", "Accuracy"), table(header, rows, caption=caption, class_="arms")
    )


def _arm_name(arm: str) -> Html:
    return user_text(plots.arm_label(arm), 60)


def _trivial_mark(scale: plots.Scale, value: float | None) -> list[Html]:
    if value is None:
        return []
    place = f"{scale.at(value):.2f}%"
    return [tag("line", x1=place, y1="2", x2=place, y2="22", class_="trivial")]


def _curves(language: LanguageReport) -> Html:
    figures = []
    order = plots.arm_order(list(language.history))
    classes = {arm: plots.arm_class(arm) for arm in order}
    loss = charts.line_chart(
        {arm: language.history[arm] for arm in order},
        title="Training loss by optimiser step: " + ", ".join(map(plots.arm_label, order)),
        x_label="optimiser steps",
        classes=classes,
    )
    if loss:
        legend = key(*((f"f {classes[arm]}", plots.arm_label(arm)) for arm in order))
        figures.append(tag("figure", tag("figcaption", "Training loss"), loss, legend))
    figures.append(_selection_curve(language))
    return tag("section", tag("div", *figures, class_="charts")) if any(figures) else Html("")


def _selection_curve(language: LanguageReport) -> Html:
    """Return the score of every number of clusters that was tried."""
    if len(language.selection_curve) < 2:
        return Html("")
    names = [name for row in language.selection_curve for name in row if name != "k"]
    name = language.chosen_by if language.chosen_by in names else next(iter(names), "")
    curve = [(row.get("k"), row.get(name)) for row in language.selection_curve]
    known = [(k, score) for k, score in curve if k is not None and score is not None]
    chosen = next((point for point in known if point[0] == language.chosen_k), None)
    chart = charts.line_chart(
        {name: known},
        title=f"{readable_name(name)} by number of clusters, {language.chosen_k} chosen",
        x_label="clusters",
        classes={name: "a-all-data"},
        marked=chosen,
        dots=True,
    )
    if chart is None:
        return Html("")
    text = f"{readable_name(name)} by number of clusters; ringed: the choice ({language.chosen_k})"
    return tag("figure", tag("figcaption", text), chart)


def _health(language: LanguageReport) -> Html:
    if not language.health and not language.health_warnings:
        return Html("")
    rows: list[list[Child]] = []
    for title, value, meaning in health_rows(language.health):
        rows.append([user_text(title), tag("b", number(value)), meaning])
    parts: list[Child] = [tag("h3", "Are the clusters fit for it?")]
    if language.health_warnings:
        parts.append(tag("div", bullet_list(language.health_warnings), class_="note warn"))
    if rows:
        caption = "Figures about the clusters"
        parts.append(
            table(["Figure", "Value", "What it means"], rows, caption=caption, class_="health")
        )
    return tag("section", *parts)


def _details(language: LanguageReport) -> Html:
    parts: list[Child] = []
    if language.timings:
        spent = [f"{readable_name(stage)} {duration(t)}" for stage, t in language.timings.items()]
        parts.append(tag("p", tag("b", "Time: "), user_text(" · ".join(spent), 1_000)))
    if language.links:
        links = join((link(text, url) for text, url in language.links.items()), " · ")
        parts.append(tag("p", tag("b", "Look further: "), links))
    if language.fingerprints:
        rows = [[user_text(k), tag("code", v)] for k, v in language.fingerprints.items()]
        inside = table(["Stage", "Fingerprint"], rows, caption="Identity of each stage's output")
        parts.append(tag("details", tag("summary", "Fingerprints"), inside, class_="more"))
    return tag("section", *parts, class_="small") if parts else Html("")
