"""The clusters of every language beside each other: how many, chosen by what, fit for what."""

from __future__ import annotations

from compass_core.report.data import LanguageReport, RunReport
from compass_core.report.markup import (
    Child,
    Html,
    join,
    number,
    percent,
    table,
    tag,
    user_text,
)
from compass_core.report.parts import anchor, readable_name

_MIN_LANGUAGES = 2


def render_spaces(report: RunReport) -> Html:
    """Return one row per language with clusters; nothing where a single language says it all."""
    shown = [language for language in report.languages if language.chosen_k]
    if len(shown) < _MIN_LANGUAGES:
        return Html("")
    header = [
        "Language",
        "Clusters",
        "Chosen by",
        "Distance to usage before → after (random)",
        "Translations found",
        "Usage out of reach",
        "NMI with topic",
        "NMI with language",
    ]
    counts = sorted(language.chosen_k or 0 for language in shown)
    many = f"{counts[0]} to {counts[-1]} clusters, median {counts[len(counts) // 2]}"
    caption = (
        f"{many if counts[0] < counts[-1] else f'{counts[0]} clusters each'}. Distance: "
        "Jensen–Shannon divergence in bits, 0 to 1, on these clusters."
    )
    rows = [_row(language) for language in shown]
    return tag(
        "section",
        tag("h2", "Clusters, language by language"),
        table(header, rows, caption=caption, class_="spaces"),
        class_="card",
    )


def _row(language: LanguageReport) -> list[Child]:
    health = language.health
    before, after, chance = (health.get(f"js_{name}") for name in ("before", "after", "random"))
    return [
        tag("a", user_text(language.name, 60), href=f"#{anchor(language.language)}"),
        number(language.chosen_k),
        _choice(language),
        join([number(before), " → ", tag("b", number(after)), f" ({number(chance)})"]),
        percent(health.get("retrieval_at_1"), 0),
        percent(health.get("usage_outside"), 0),
        number(health.get("nmi_topic"), 2),
        number(health.get("nmi_language"), 2),
    ]


def _choice(language: LanguageReport) -> str:
    tried = len(language.selection_curve)
    if tried < 2:
        return "set"
    return f"{readable_name(language.chosen_by)}, {tried} tried"
