"""The clusters of one language: shares and results, the map, and where the selection comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compass_core.report import charts, plots
from compass_core.report.data import ClusterRow, LanguageReport, Role
from compass_core.report.markup import (
    Child,
    Html,
    join,
    number,
    percent,
    points,
    table,
    tag,
    user_text,
)
from compass_core.report.parts import anchor, by_gap, key, source_name

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

_PANELS: dict[Role, str] = {
    "usage": "What users ask",
    "coverage": "What the training data covers",
    "selected": "What was selected",
}


def render_clusters(language: LanguageReport) -> Html:
    """Return what users ask, what was covered, what was taken and what it did, by cluster."""
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


def render_map(language: LanguageReport, n_languages: int) -> Html:
    """Return the map of the semantic space; many languages on a page get fewer points each."""
    rows = by_gap(row for row in language.clusters if row.gap > 0)[:MAX_MARKED]
    marked = {row.cluster: index + 1 for index, row in enumerate(rows)}
    panels = charts.map_panels(
        language.points,
        _PANELS,
        marked,
        identity=f"points-{anchor(language.language)}",
        limit=min(charts.MAX_POINTS_PER_ROLE, max(80, MAX_POINTS_ON_PAGE // (4 * n_languages))),
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


def render_sources(language: LanguageReport) -> Html:
    """Return the heat-map of selected examples by source language and cluster."""
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
        tag("span", f"{cluster} ", user_text(labels.get(cluster, ""), 26), class_="tall")
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
