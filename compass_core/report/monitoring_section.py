"""The part of the monitoring page about one language."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compass_core.report.markup import (
    Child,
    Html,
    clean,
    exact_p,
    join,
    moment,
    number,
    percent,
    points,
    table,
    tag,
    user_text,
)
from compass_core.report.monitoring_data import (
    MovedCluster,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)
from compass_core.report.monitoring_plots import (
    UPDATE_TEXT,
    timeline,
    window_state,
    window_text,
)
from compass_core.report.monitoring_state import (
    STATE_MEANING,
    STATE_TEXT,
    in_order,
    state_of,
    updates_in_order,
    window_name,
)
from compass_core.report.parts import anchor, bullet_list, scrolling

MAX_WINDOWS = 40
"""Rows of the table of windows; older ones are in the data."""

OPEN_WINDOWS = 8
"""Rows that are not folded away."""

MAX_MOVED = 4
"""Clusters named for one window."""

UNIT_TEXT = {"user": "users", "session": "sessions", "prompt": "prompts"}
_SIGN = {"promoted": "✓", "retrained": "✓", "refused": "●", "failed": "✕", "running": "↻"}


def state_badge(state: str) -> Html:
    """Return the state as a small label with a sign of its own, not only a colour."""
    return tag("span", STATE_TEXT[state], class_=f"badge w-{state}")


def render_watched(language: WatchedLanguage, *, is_open: bool) -> Html:
    """Return the section of one language."""
    state = state_of(language)
    heading = tag(
        "summary",
        tag("h2", user_text(language.name, 60), " ", tag("code", clean(language.language, 40))),
        state_badge(state),
        tag("span", STATE_MEANING[state], class_="hint"),
    )
    if language.error:
        body: list[Child] = [tag("p", user_text(language.error, 1_000), class_="note bad")]
    else:
        body = [
            _champion(language),
            bullet_list(language.notes) if language.notes else None,
            timeline(language),
            _windows(language),
            _updates(language),
        ]
    return tag(
        "details",
        heading,
        tag("div", *body, class_="body"),
        class_="language watched",
        id=anchor(language.language),
        open=is_open,
    )


def _champion(language: WatchedLanguage) -> Html:
    served = (
        f"Version {clean(language.champion, 40)} serves" if language.champion else "No champion"
    )
    base = f" on {clean(language.base, 80)}" if language.base else ""
    waiting = ""
    if language.event:
        doing = (
            "an update works on it" if language.event_state == "taken" else "waits for an update"
        )
        waiting = f" Drift event {clean(language.event, 12)} {doing}."
    lost = sum(language.n_quarantined.values())
    reasons = ", ".join(f"{clean(k, 40)} {n}" for k, n in sorted(language.n_quarantined.items()))
    quarantined = f" {number(lost)} records could not be used: {reasons}." if lost else ""
    looked = f" Last looked at {moment(language.checked)}." if language.checked else ""
    return tag("p", f"{served}{base}.{looked}{waiting}{quarantined}", class_="facts")


def _windows(language: WatchedLanguage) -> Html:
    rows = list(reversed(in_order(language.windows)))
    if not rows:
        return tag("p", "No window yet.", class_="hint")
    shown = rows[:MAX_WINDOWS]
    caption = method_text(language, shown)
    once = _notes_of_all(shown)
    parts = [
        tag("h3", "Windows"),
        bullet_list(once) if once else None,
        _window_table(language, shown[:OPEN_WINDOWS], caption, once),
    ]
    folded = shown[OPEN_WINDOWS:]
    if folded:
        title = f"{len(folded)} earlier windows"
        inside = _window_table(language, folded, title, once)
        parts.append(tag("details", tag("summary", title), inside, class_="more"))
    if len(rows) > len(shown):
        text = f"{len(rows) - len(shown)} older windows are in monitoring.json."
        parts.append(tag("p", text, class_="hint"))
    return join(parts)


def _notes_of_all(windows: Sequence[WindowPoint]) -> list[str]:
    """Return the notes that every tested window has: said once, not in every row."""
    tested = [window for window in windows if window.status in {"stable", "alarm"}]
    if len(tested) < 2:
        return []
    return [note for note in tested[0].notes if all(note in window.notes for window in tested)]


def method_text(language: WatchedLanguage, windows: Sequence[WindowPoint]) -> str:
    """Return how the p-values came about, as one caption."""
    units = {window.unit for window in windows if window.unit} or {language.unit}
    resampled = " or ".join(UNIT_TEXT.get(unit, unit) for unit in sorted(units))
    clusters = f" {language.n_clusters} clusters;" if language.n_clusters else ""
    few = f"fewer than {language.min_shown} {_counted_unit(language)}"
    return (
        f"Newest first.{clusters} p is of the drift score and of the largest change of one cluster "
        f"or of the novelty share together (min-p), by permuting {resampled}; an alarm is p at or "
        "below the level. "
        f"Clusters of {few} are never shown by themselves; few: a share that {few} make up."
    )


def _counted_unit(language: WatchedLanguage) -> str:
    known = any(window.n_units is not None for window in language.windows)
    return "users" if known else "prompts"


def _people(language: WatchedLanguage) -> str:
    """Return who asks, in words: sessions where they are watched, else users."""
    return "sessions" if language.unit == "session" else "users"


def _window_table(
    language: WatchedLanguage,
    rows: Sequence[WindowPoint],
    caption: str,
    said_once: Collection[str],
) -> Html:
    header = [
        "Window",
        "State",
        "Prompts",
        "Score (threshold)",
        "p (level)",
        "Novelty (reference)",
        "What moved",
    ]
    body = [_window_row(language, window, said_once) for window in rows]
    return scrolling(table(header, body, caption=caption, class_="windows cards"), "Windows")


def _window_row(
    language: WatchedLanguage, window: WindowPoint, said_once: Collection[str]
) -> list[Child]:
    state = window_state(window)
    champion = f"champion v{clean(window.champion, 20)}" if window.champion else ""
    return [
        join([user_text(window_name(window), 60), tag("br"), tag("small", champion)]),
        tag("span", _state_words(window), class_=f"state w-{state}"),
        _sizes(language, window),
        score_text(window),
        join([tag("b", exact_p(window.p_value)), _level(window), tag("br"), _tests(window)]),
        _novelty(window),
        _moved(window, said_once),
    ]


def _sizes(language: WatchedLanguage, window: WindowPoint) -> Html:
    """Return how many prompts and users the window has, how many came late, and the reference's."""
    people = _people(language)
    here, there = (
        number(prompts) + (f" by {number(count)} {people}" if count is not None else "")
        for prompts, count in (
            (window.n_prompts, window.n_units),
            (window.n_reference, window.units_reference if window.n_units is not None else None),
        )
    )
    late = f", {number(window.n_late)} late" if window.n_late else ""
    reference = tag("small", f"reference: {there}") if window.n_reference is not None else None
    return join([here, tag("small", late), tag("br"), reference])


def _novelty(window: WindowPoint) -> str:
    known = window.novel_reference is not None
    return percent(window.novel_current) + (f" ({percent(window.novel_reference)})" * known)


def score_text(window: WindowPoint) -> Html:
    """Return score and threshold, one dash where there is neither."""
    known = f" ({number(window.threshold)})" if window.threshold is not None else ""
    return join([tag("b", number(window.score)), known])


def _state_words(window: WindowPoint) -> str:
    sign = STATE_TEXT.get(window_state(window), " ")[0]
    return f"{sign} {window_text(window)}".strip()


def _level(window: WindowPoint) -> str:
    return f" ({exact_p(window.level)})" if window.level is not None else ""


def _tests(window: WindowPoint) -> Html:
    """Return the p-values behind the combined one, and how they were drawn."""
    if window.p_value is None:
        return Html("")
    named = (("score", window.p_score), ("cluster", window.p_cluster), ("novelty", window.p_novel))
    said = ", ".join(f"{name} {exact_p(value)}" for name, value in named if value is not None)
    drawn = f"{number(window.n_permutations)} permutations" if window.n_permutations else ""
    seed = f", seed {window.seed}" if window.seed is not None else ""
    return join([tag("small", said), tag("br"), tag("small", f"{drawn}{seed}".strip(", "))])


def move_text(row: MovedCluster) -> str:
    """Return the change of one cluster's share."""
    before, after = (
        "few" if share is None else percent(share)
        for share in (row.reference_share, row.current_share)
    )
    return f"{before} → {after}"


def _moved(window: WindowPoint, said_once: Collection[str]) -> Html:
    rows = window.moved
    parts: list[Child] = [
        tag("li", tag("b", move_text(row)), " ", user_text(row.label, 60))
        for row in rows[:MAX_MOVED]
    ]
    if len(rows) > MAX_MOVED:
        parts.append(tag("li", f"and {len(rows) - MAX_MOVED} more"))
    notes = [
        tag("li", tag("small", user_text(note, 200)))
        for note in window.notes
        if note not in said_once
    ]
    return tag("ul", *parts, *notes, class_="moved") if parts or notes else Html("")


def _updates(language: WatchedLanguage) -> Html:
    rows = [_update_row(row) for row in reversed(updates_in_order(language))]
    if not rows:
        return tag("p", "No update yet.", class_="hint")
    header = [
        "Update",
        "Verdict",
        "Version",
        "Accuracy on the new usage",
        "Forgetting, points",
        "Why",
    ]
    caption = (
        "Newest first. Forgetting: champion minus updated adapter, mean over older slices; below "
        "zero is a gain"
    )
    return join(
        [tag("h3", "Updates"), table(header, rows, caption=caption, class_="updates cards")]
    )


def _update_row(row: UpdatePoint) -> list[Child]:
    cause = f"drift event {clean(row.event, 12)}" if row.event else "by hand"
    verdict = f"{_SIGN.get(row.status, '')} {UPDATE_TEXT.get(row.status, row.status)}".strip()
    reasons = [tag("li", user_text(reason, 300)) for reason in row.reasons]
    return [
        join([moment(row.time), tag("br"), tag("small", cause)]),
        tag("span", verdict, class_=f"state u-{row.status}"),
        clean(row.version, 20) or "–",
        f"{percent(row.accuracy_before)} → {percent(row.accuracy_after)}",
        points(row.forgetting),
        tag("ul", *reasons, class_="moved") if reasons else Html(""),
    ]
