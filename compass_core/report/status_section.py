"""What serves each language, as the first part of the index page."""

from __future__ import annotations

from compass_core.report.markup import (
    Child,
    Html,
    exact_p,
    join,
    link,
    moment,
    table,
    tag,
    user_text,
)
from compass_core.report.monitoring_section import state_badge
from compass_core.report.parts import anchor
from compass_core.report.status_data import (
    ATTENTION,
    Attention,
    LanguageStatus,
    StatusReport,
    all_attention,
)
from compass_core.report.status_text import accuracy_text

_SIGN = {"act": "✕", "watch": "▲"}
_CLASS = {"act": "failed", "watch": "w-alarm"}


def render_status(report: StatusReport, monitoring: str = "") -> Html:
    """Return the section: how many serve, what needs somebody, and one row of each language.

    Args:
        report: What is known.
        monitoring: Address of the page about usage over time, empty where there is none.
    """
    parts: list[Child] = [tag("h2", "What serves"), _tiles(report), _attention(report)]
    if report.languages:
        header: list[Child] = [
            "Language", "Serves", "Since", "Accuracy, %", "Trained on", "Usage", "Last window",
            "Look",
        ]  # fmt: skip
        rows = [_row(item, monitoring) for item in report.languages]
        caption = f"What needs somebody comes first. As of {moment(report.created)}"
        parts.append(table(header, rows, caption=caption, class_="serving runs"))
    else:
        parts.append(
            tag(
                "p", "Nothing serves yet. Start with: ", tag("code", "compass adapt"), class_="note"
            )
        )
    return tag("section", *parts, class_="card", id="status")


def _tiles(report: StatusReport) -> Html:
    served = sum(bool(item.champion) for item in report.languages)
    acts = {item.language for item in report.languages if _worst(item) == "act"}
    drifting = sum(item.drift == "drift" for item in report.languages)
    values = [
        (f"{served} of {len(report.languages)}", "languages with a champion"),
        (str(len(acts) + len(report.attention)), "need somebody"),
        (str(drifting), "drift"),
        (str(sum(item.updating for item in report.languages)), "updates at work"),
    ]
    tiles = [
        tag("div", tag("b", value), tag("span", name), class_="tile") for value, name in values
    ]
    return tag("div", *tiles, class_="tiles")


def _worst(item: LanguageStatus) -> str:
    return item.attention[0].severity if item.attention else ""


def _attention(report: StatusReport) -> Html | None:
    found = all_attention(report)
    if not found:
        return None
    rows: list[list[Child]] = [
        [
            join([_badge(item), " ", tag("b", name or "all")]),
            user_text(item.text, 400),
            tag("code", user_text(item.command, 200)),
        ]
        for name, item in found
    ]
    return tag(
        "details",
        tag("summary", f"What needs attention ({len(found)})"),
        table(["What", "Found", "Next"], rows, caption="Most pressing first", class_="runs"),
        class_="more",
        open=len(found) <= 10,
    )


def _badge(item: Attention) -> Html:
    severity, _meaning = ATTENTION[item.code]
    return tag("span", f"{_SIGN[severity]} {item.code}", class_=f"badge {_CLASS[severity]}")


def _row(item: LanguageStatus, monitoring: str) -> list[Child]:
    where = f"{monitoring}#{anchor(item.language)}" if monitoring and item.window else ""
    name = link(item.name, where) if where else user_text(item.name)
    serves = join([f"version {item.champion} on ", user_text(item.base, 40)])
    return [
        join([name, tag("br"), tag("small", item.language)]),
        serves if item.champion else "the base alone",
        _since(item),
        accuracy_text(item),
        _data(item),
        state_badge(item.drift),
        join([user_text(item.window, 40), f", p {exact_p(item.p_value)}"]) if item.window else "–",
        join([_badge(found) for found in item.attention[:2]], " "),
    ]


def _since(item: LanguageStatus) -> Child:
    if not item.champion:
        return "–"
    run = tag("small", link(item.run_id, f"{item.run_id}/report.html")) if item.run_id else None
    return join([moment(item.since), tag("br"), run])


def _data(item: LanguageStatus) -> Child:
    named = {part.role: part for part in item.data}
    shown = [named[role] for role in ("coverage", "history", "sample") if role in named]
    counts = " + ".join(f"{part.rows:,} {part.role}" for part in shown)
    sources = ", ".join(dict.fromkeys(part.source for part in item.data if part.source))
    return join([counts or "–", tag("br"), tag("small", user_text(sources, 80))])
