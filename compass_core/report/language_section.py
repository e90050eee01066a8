"""The part of a report about one language: what was missing, what was taken, what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compass_core.errors import CompassError
from compass_core.report import plots
from compass_core.report.data import ClusterRow, LanguageReport, Role, RunReport
from compass_core.report.markup import (
    Child,
    Html,
    duration,
    interval,
    join,
    link,
    number,
    percent,
    points,
    table,
    tag,
    user_text,
)

MAX_CLUSTERS_OPEN = 25
"""Clusters shown at once, those with the largest gap; the rest is folded away."""

MAX_CLUSTERS_FOLDED = 300
"""Clusters in the folded table; beyond it only their number is given."""

MAX_MARKED = 8
"""Clusters numbered on the map."""

MAX_POINTS_ON_PAGE = 9_600
"""Points of all maps together: with many languages each gets fewer."""

MAX_HEAT_ROWS, MAX_HEAT_COLUMNS = 15, 16
"""Source languages and clusters of the heat-map; smaller ones are added up."""

STATUS_TEXT = {
    "promoted": "✓ Promoted",
    "kept": "● Kept the champion",
    "failed": "✕ Failed",
    "selected": "○ Selection only",
}

TRIVIAL_TEXT = {
    "majority": "Always the most frequent answer",
    "string_overlap": "The answer that shares most characters with the question",
    "overlap": "The answer that shares most characters with the question",
    "chance": "Guessing",
}

HEALTH_TEXT: dict[str, tuple[str, str]] = {
    "n_clusters": ("Clusters", "How finely the semantic space is cut."),
    "silhouette": (
        "Silhouette",
        "How well clusters are separated, −1 to 1. Text rarely gets above .2.",
    ),
    "nmi_language": (
        "NMI with language",
        "0: clusters ignore the language, as they should. Above .3: they follow it, "
        "and a “semantic gap” would be a language gap.",
    ),
    "nmi_topic": (
        "NMI with topic",
        "1: clusters are the topics, 0: they have nothing to do with them.",
    ),
    "median_language_entropy": (
        "Language mix (median cluster)",
        "1: a cluster is as multilingual as the pool, 0: one language only. Below .5 be careful.",
    ),
    "language_entropy": (
        "Language mix (median cluster)",
        "1: a cluster is as multilingual as the pool, 0: one language only. Below .5 be careful.",
    ),
    "js_before": (
        "Distance usage–coverage before",
        "Jensen–Shannon divergence in bits, 0 (same topics) to 1 (no topic in common).",
    ),
    "js_after": (
        "Distance usage–coverage after",
        "The same with the selection added. It should be clearly smaller.",
    ),
    "js_random": ("The same with a random selection", "What the budget buys without looking."),
    "out_of_radius": (
        "Pool outside every cluster",
        "Share of the pool too far from what users ask or the coverage has; it is not eligible.",
    ),
    "noise_share": ("Noise", "Share of points that belonged to no cluster before assignment."),
    "effective_usage": ("Usage examples", "Fewer examples make noisier shares."),
    "n_usage": ("Usage examples", "Fewer examples make noisier shares."),
    "n_coverage": ("Coverage examples", "Training data the language already has."),
    "n_pool": ("Pool examples", "What could be selected."),
}

_PANELS: dict[Role, str] = {
    "usage": "What users ask",
    "coverage": "What the training data covers",
    "selected": "What was selected",
}


def anchor(language: str) -> str:
    """Return the anchor of a language's section."""
    return "language-" + "".join(char if char.isalnum() else "-" for char in language)


def badge(status: str) -> Html:
    """Return the outcome as a small label with a sign of its own, not only a colour."""
    return tag("span", STATUS_TEXT.get(status, status), class_=f"badge {status}")


def readable_name(key: str) -> str:
    """Return a technical name as words."""
    return key.replace("_", " ").replace("-", " ").strip().capitalize()


def source_name(code: str) -> str:
    """Return the name of a source language, its code where it is not one we know."""
    from compass_core.languages import language_name

    try:
        return language_name(code)
    except (CompassError, ValueError):
        return code


def bullet_list(items: Iterable[str], class_: str = "") -> Html:
    """Return sentences from the run as a list."""
    return tag("ul", *(tag("li", user_text(item)) for item in items), class_=class_ or None)


def key(*entries: tuple[str, str]) -> Html:
    """Return a legend: (class of the mark, its meaning)."""
    return tag(
        "p",
        *(
            tag("span", tag("i", class_=f"mark {mark}", aria_hidden="true"), " ", text)
            for mark, text in entries
        ),
        class_="key",
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
        _clusters(language),
        _map(language, len(report.languages)),
        _sources(language),
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


def by_gap(clusters: Iterable[ClusterRow]) -> list[ClusterRow]:
    """Return clusters by falling gap, then by what was taken, then by number."""
    return sorted(clusters, key=lambda row: (-row.gap, -row.allocation, row.cluster))


def _clusters(language: LanguageReport) -> Html:
    rows = by_gap(language.clusters)
    if not rows:
        return Html("")
    taken = sum(row.allocation for row in rows)
    shares = [
        value
        for row in rows
        for value in (row.usage_share, row.coverage_share, row.allocation / max(1, taken))
    ]
    scale = plots.Scale.around(shares, include=[0.0])
    shown, folded = rows[:MAX_CLUSTERS_OPEN], rows[MAX_CLUSTERS_OPEN:]
    parts: list[Child] = [
        tag("h3", "What users ask, what was covered, what was taken"),
        tag(
            "p",
            "Each row is a cluster of meaning, named by its characteristic terms. Where the blue "
            "bar ends short of the orange mark, users ask more than the training data covers; the "
            "green bar shows how much of the selection went there.",
            class_="hint",
        ),
        key(
            ("usage", "usage: share of what users ask"),
            ("coverage", "coverage: share of the existing training data"),
            ("selected", "share of the selection"),
            ("before", "accuracy before"),
            ("after up", "after, better"),
            ("after down", "after, worse"),
        ),
        _cluster_table(shown, scale, taken, f"The {len(shown)} clusters with the largest gap"),
    ]
    if folded:
        title = f"{len(folded)} more clusters, with smaller gaps"
        inside = _cluster_table(folded[:MAX_CLUSTERS_FOLDED], None, taken, title)
        parts.append(tag("details", tag("summary", title), inside, class_="more"))
    return tag("section", *parts)


def _cluster_table(
    rows: Sequence[ClusterRow], scale: plots.Scale | None, taken: int, caption: str
) -> Html:
    """Return clusters as a table; without a `scale` numbers alone, which weigh much less."""
    whole = plots.Scale(0.0, 1.0)
    scored = any(row.n_items for row in rows)
    drawn = join(["Share", plots.axis(scale, ticks=4)]) if scale else None
    header: list[Child] = ["Cluster", drawn, "Usage", "Coverage", "Gap", "Taken / available"]
    if scored:
        drawn = join(["Accuracy before and after", plots.axis(whole, ticks=4)]) if scale else None
        header += [drawn, "Before → after", "Items"]
    body: list[list[Child]] = []
    for row in rows:
        selected = row.allocation / max(1, taken)
        cells: list[Child] = [
            join([tag("span", str(row.cluster), class_="number"), " ", user_text(row.label, 120)]),
            plots.shares_track(scale, row, selected) if scale else None,
            percent(row.usage_share),
            percent(row.coverage_share),
            tag("b", points(row.gap)) if row.gap > 0 else "0",
            f"{number(row.allocation)} / {number(row.capacity)}",
        ]
        if scored:
            change = f"{percent(row.accuracy_before, 0)} → {percent(row.accuracy_after, 0)}"
            cells += [
                plots.change_track(whole, row) if scale else None,
                change if row.n_items else "",
                number(row.n_items),
            ]
        body.append([cell for cell, head in zip(cells, header, strict=True) if head is not None])
    shown = [head for head in header if head is not None]
    return table(shown, body, caption=caption, class_="clusters" if scale else "numbers-only")


def _map(language: LanguageReport, n_languages: int) -> Html:
    rows = by_gap(row for row in language.clusters if row.gap > 0)[:MAX_MARKED]
    marked = {row.cluster: index + 1 for index, row in enumerate(rows)}
    panels = plots.map_panels(
        language.points,
        _PANELS,
        marked,
        identity=f"points-{anchor(language.language)}",
        limit=min(plots.MAX_POINTS_PER_ROLE, max(80, MAX_POINTS_ON_PAGE // (4 * n_languages))),
    )
    if not panels:
        return Html("")
    figures = [
        tag("figure", panel, tag("figcaption", tag("i", class_=f"mark {role}"), " ", title))
        for panel, (role, title) in zip(panels, _PANELS.items(), strict=True)
    ]
    names = [tag("li", user_text(row.label, 80)) for row in rows]
    return tag(
        "section",
        tag("h3", "Map of the semantic space"),
        tag(
            "p",
            "Texts of similar meaning lie near each other, whatever their language; the axes have "
            "no unit. Grey: all other points. Numbers mark the clusters with the largest gap.",
            class_="hint",
        ),
        tag("div", *figures, class_="maps"),
        tag("ol", *names, class_="marked") if names else None,
    )


def _sources(language: LanguageReport) -> Html:
    counts = {
        source: {cluster: count for cluster, count in row.items() if count > 0}
        for source, row in language.source_counts.items()
    }
    totals = {source: sum(row.values()) for source, row in counts.items() if row}
    if not totals:
        return Html("")
    sources = sorted(totals, key=lambda source: (-totals[source], source))
    by_cluster: dict[int, int] = {}
    for row in counts.values():
        for cluster, count in row.items():
            by_cluster[cluster] = by_cluster.get(cluster, 0) + count
    clusters = sorted(by_cluster, key=lambda cluster: (-by_cluster[cluster], cluster))
    labels = {row.cluster: row.label for row in language.clusters}
    shown = clusters[:MAX_HEAT_COLUMNS]
    heads: list[Child] = [
        tag("span", user_text(f"{cluster} {labels.get(cluster, '')}", 28), class_="tall")
        for cluster in shown
    ]
    rest = len(clusters) - len(shown)
    heads += [tag("span", f"{rest} others", class_="tall")] if rest else []
    grid = _heat_rows(counts, sources, clusters)
    top = max(max(row[: len(shown)], default=0) for _, row, _ in grid[:MAX_HEAT_ROWS])
    body = [
        [user_text(name, 60), *(_heat_cell(count, top) for count in row), tag("b", number(total))]
        for name, row, total in grid
    ]
    caption = "Selected examples by source language (rows) and cluster (columns)"
    heat = table(["From", *heads, "All"], body, caption=caption, class_="heat")
    return tag(
        "section",
        tag("h3", "Which languages the selection comes from"),
        tag("div", heat, class_="scroll", tabindex="0", role="region", aria_label=caption),
    )


def _heat_rows(
    counts: Mapping[str, Mapping[int, int]], sources: Sequence[str], clusters: Sequence[int]
) -> list[tuple[str, list[int], int]]:
    """Return (name, counts per shown cluster and the rest, total) for each row of the heat-map."""
    head, tail = clusters[:MAX_HEAT_COLUMNS], clusters[MAX_HEAT_COLUMNS:]

    def row(group: Sequence[str]) -> list[int]:
        cells = [sum(counts[source].get(cluster, 0) for source in group) for cluster in head]
        if tail:
            cells.append(
                sum(counts[source].get(cluster, 0) for source in group for cluster in tail)
            )
        return cells

    shown, others = sources[:MAX_HEAT_ROWS], sources[MAX_HEAT_ROWS:]
    rows = [(source_name(source), row([source])) for source in shown]
    if others:
        rows.append((f"{len(others)} other languages", row(others)))
    return [(name, cells, sum(cells)) for name, cells in rows]


def _heat_cell(count: int, top: int) -> Html:
    level = min(9, -(-9 * count // max(1, top)))
    return tag("span", number(count) if count else "", class_=f"heat-cell h{level}")


def _curves(language: LanguageReport) -> Html:
    figures = []
    order = plots.arm_order(list(language.history))
    classes = {arm: plots.arm_class(arm) for arm in order}
    loss = plots.line_chart(
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
    names = [name for row in language.selection_curve for name in row if name != "k"]
    name = "silhouette" if "silhouette" in names else next(iter(names), "")
    curve = [(row.get("k"), row.get(name)) for row in language.selection_curve]
    known = [(k, score) for k, score in curve if k is not None and score is not None]
    chosen = next((point for point in known if point[0] == language.chosen_k), None)
    chart = plots.line_chart(
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
    for name, value in language.health.items():
        title, meaning = HEALTH_TEXT.get(name, (readable_name(name), ""))
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
