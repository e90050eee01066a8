"""The plots of one watched language: score, novelty, accuracy and updates over the same time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from compass_core.report.data import is_number
from compass_core.report.markup import Html, clean, compact, exact_p, moment, number, percent, tag
from compass_core.report.monitoring_data import (
    AccuracyPoint,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)
from compass_core.report.monitoring_state import (
    closed_windows,
    seconds,
    updates_in_order,
    window_name,
)
from compass_core.report.plots import Scale
from compass_core.report.timeline import (
    TimeAxis,
    box,
    height_of,
    legend,
    mark,
    panel,
    segment,
    time_row,
)

MAX_WINDOWS = 120
"""Windows drawn for one language; more are thinner than the marks on them."""

STRIP_WINDOWS = 24
"""Windows in a row of the overview."""

UPDATE_TEXT = {
    "promoted": "promoted",
    "retrained": "promoted after full retraining",
    "refused": "refused",
    "superseded": "not needed any more",
    "failed": "failed",
    "running": "running",
}
WINDOW_TEXT = {
    "open": "not closed yet",
    "empty": "empty",
    "insufficient": "insufficient",
    "stable": "stable",
    "alarm": "alarm",
}
_SCORE, _SHARE, _LANE, _STRIP = 120, 84, 34, 26
_STRIP_TOP = 2.5
_LEAST_NOVELTY = 0.05
"""Top of the novelty axis at least, so that nothing looks like much."""


def window_state(window: WindowPoint) -> str:
    """Return the kind of mark of a window: its status, or ``drift``."""
    return "drift" if window.drift_detected else window.status


def window_text(window: WindowPoint) -> str:
    """Return the state of a window in words."""
    if window.drift_detected:
        return "drift"
    text = WINDOW_TEXT.get(window.status, window.status)
    cooling = window.in_cooldown and window.status == "alarm"
    return f"{text}, in cool-down" if cooling else text


def timeline(language: WatchedLanguage) -> Html | None:
    """Return all panels of one language, ``None`` where nothing has a time."""
    windows = [window for window in closed_windows(language) if seconds(window.end) is not None]
    windows = windows[-MAX_WINDOWS:]
    updates = [row for row in updates_in_order(language) if seconds(row.time) is not None]
    champions = _champions(language)
    axis = _axis(windows, updates, champions)
    if axis is None:
        return None
    updates = [row for row in updates if (seconds(row.time) or 0.0) >= axis.low]
    kinds = ("stable", "alarm", "drift", "insufficient", "empty")
    key = [("band", "up to the threshold: what no change gives in a window of this size")]
    key += [(kind, kind) for kind in kinds if any(window_state(w) == kind for w in windows)]
    parts = [
        tag("h3", "Drift score, bits"),
        legend(*key),
        _score_panel(axis, windows, updates),
        tag("h3", "Novelty: share of prompts outside every cluster"),
        legend(("novel", "window"), ("t-reference", "reference")),
        _novelty_panel(axis, windows, updates),
        tag("h3", "Accuracy of the champion"),
        legend(("champion", "version, on the test items of its promotion, with interval")),
        _accuracy_panel(axis, champions, updates),
        tag("h3", "Updates"),
        _update_key(updates),
        _update_lane(axis, updates),
        time_row(axis),
    ]
    return tag("div", *parts, class_="timeline")


def _axis(
    windows: Sequence[WindowPoint],
    updates: Sequence[UpdatePoint],
    champions: Sequence[tuple[float, AccuracyPoint]],
) -> TimeAxis | None:
    """Return an axis over the windows and what came after the first of them."""
    ends = [when for w in windows for text in (w.start, w.end) if (when := seconds(text))]
    later = [when for row in updates if (when := seconds(row.time))]
    later += [when for when, _ in champions]
    if ends:
        later = [when for when in later if when >= min(ends)]
    return TimeAxis.around([*ends, *later])


def _span(axis: TimeAxis, window: WindowPoint) -> tuple[float, float]:
    """Return where a window begins and ends, in percent."""
    end = seconds(window.end) or axis.high
    start = seconds(window.start)
    return axis.at(end if start is None or start > end else start), axis.at(end)


def _score_panel(
    axis: TimeAxis, windows: Sequence[WindowPoint], updates: Sequence[UpdatePoint]
) -> Html:
    values = [value for w in windows for value in (w.score, w.threshold)]
    scale = Scale.around(values, include=[0.0])
    floor = height_of(0.0, scale, _SCORE)
    bands, marks, places = [], [], []
    for window in windows:
        start, end = _span(axis, window)
        if window.threshold is not None and is_number(window.threshold):
            top = height_of(window.threshold, scale, _SCORE)
            bands.append(box(start, end, top, floor, "band"))
            bands.append(segment((start, top), (end, top), "threshold"))
        scored = window.score is not None and is_number(window.score)
        y = height_of(window.score or 0.0, scale, _SCORE) if scored else floor
        middle = (start + end) / 2
        if scored:
            places.append((middle, y))
        if window.status in {"insufficient", "empty"}:
            bands.append(box(start, end, 0, _SCORE, "thin"))
        marks.append(mark(window_state(window), middle, y, _said(window)))
    lines = [segment(a, b, "score-line") for a, b in pairwise(places)]
    states = [window_text(window) for window in windows]
    title = f"Drift score of {len(windows)} windows: " + _counted(states)
    return panel(
        [*bands, *_update_lines(axis, updates, _SCORE), *lines, *marks],
        axis=axis,
        scale=scale,
        height=_SCORE,
        title=title,
        tick=_bits,
    )


def _said(window: WindowPoint) -> str:
    """Return one window in words, for who points at its mark."""
    text = f"{clean(window_name(window), 40)}: {window_text(window)}"
    if window.score is None or not is_number(window.score):
        return text
    return (
        f"{text}, score {number(window.score)}, threshold {number(window.threshold)}, "
        f"p {exact_p(window.p_value)}"
    )


def _novelty_panel(
    axis: TimeAxis, windows: Sequence[WindowPoint], updates: Sequence[UpdatePoint]
) -> Html:
    values = [value for w in windows for value in (w.novel_current, w.novel_reference)]
    scale = Scale.around(values, include=[0.0, _LEAST_NOVELTY])
    marks, places = [], []
    for window in windows:
        start, end = _span(axis, window)
        if window.novel_reference is not None and is_number(window.novel_reference):
            y = height_of(window.novel_reference, scale, _SHARE)
            marks.append(segment((start, y), (end, y), "t-reference"))
        if window.novel_current is not None and is_number(window.novel_current):
            y = height_of(window.novel_current, scale, _SHARE)
            places.append(((start + end) / 2, y))
            said = f"{clean(window_name(window), 40)}: {percent(window.novel_current)}"
            marks.append(mark("novel", (start + end) / 2, y, said))
    lines = [segment(a, b, "novel-line") for a, b in pairwise(places)]
    last = next((w.novel_current for w in reversed(windows) if is_number(w.novel_current)), None)
    return panel(
        [*_update_lines(axis, updates, _SHARE), *lines, *marks],
        axis=axis,
        scale=scale,
        height=_SHARE,
        title=f"Novelty share by window; the last one {percent(last)}",
        tick=_percent,
    )


def _champions(language: WatchedLanguage) -> list[tuple[float, AccuracyPoint]]:
    """Return the champions whose time and accuracy are known, oldest first."""
    found = [
        (when, point)
        for point in language.accuracy
        if (when := seconds(point.time)) is not None and is_number(point.accuracy)
    ]
    return sorted(found, key=lambda pair: (pair[0], pair[1].version))


def _accuracy_panel(
    axis: TimeAxis,
    champions: Sequence[tuple[float, AccuracyPoint]],
    updates: Sequence[UpdatePoint],
) -> Html:
    # Of the champions before the first window only the last one served in it.
    before = [pair for pair in champions if pair[0] <= axis.low][-1:]
    shown = [*before, *(pair for pair in champions if pair[0] > axis.low)]
    scale = Scale.around([value for _, p in shown for value in (p.accuracy, p.low, p.high)])
    marks: list[Html] = []
    ends = [axis.at(when) for when, _ in shown[1:]] + [100.0]
    heights = [height_of(point.accuracy or 0.0, scale, _SHARE) for _, point in shown]
    for place, (when, point) in enumerate(shown):
        x, y = axis.at(when), heights[place]
        marks.append(segment((x, y), (ends[place], y), "champion-line"))
        if place + 1 < len(shown):
            marks.append(segment((ends[place], y), (ends[place], heights[place + 1]), "step-line"))
        if point.low is not None and point.high is not None and is_number(point.high - point.low):
            low, high = (height_of(end, scale, _SHARE) for end in (point.low, point.high))
            marks.append(segment((x, low), (x, high), "champion-interval"))
        said = f"version {clean(point.version, 20)}: {percent(point.accuracy)}"
        marks.append(mark("champion", x, y, said))
        marks.append(_label(f"v{clean(point.version, 8)}", x, y - 7))
    said = ", ".join(f"version {clean(p.version, 20)} {percent(p.accuracy)}" for _, p in shown)
    return panel(
        [*_update_lines(axis, updates, _SHARE), *marks],
        axis=axis,
        scale=scale if shown else None,
        height=_SHARE,
        title=f"Accuracy of the champion: {said or 'not measured'}",
        tick=_percent,
    )


def _update_lane(axis: TimeAxis, updates: Sequence[UpdatePoint]) -> Html:
    marks = _update_lines(axis, updates, _LANE)
    for row in updates:
        x = axis.at(seconds(row.time) or 0.0)
        text = UPDATE_TEXT.get(row.status, row.status)
        version = f" (version {clean(row.version, 20)})" if row.version else ""
        said = f"{moment(row.time)}: {text}{version}"
        marks.append(mark(_kind(row), x, _LANE / 2, said))
    counts = _counted([UPDATE_TEXT.get(row.status, row.status) for row in updates])
    return panel(
        marks,
        axis=axis,
        scale=None,
        height=_LANE,
        title=f"Updates: {counts or 'none'}",
    )


def _update_key(updates: Sequence[UpdatePoint]) -> Html:
    kinds = [_kind(row) for row in updates]
    return legend(*((kind, kind) for kind in UPDATE_TEXT if kind in kinds))


def _kind(row: UpdatePoint) -> str:
    """Return the kind of mark of an update."""
    return "promoted" if row.status == "retrained" else row.status


def _update_lines(axis: TimeAxis, updates: Sequence[UpdatePoint], height: int) -> list[Html]:
    lines = []
    for row in updates:
        x = axis.at(seconds(row.time) or 0.0)
        lines.append(segment((x, 0), (x, height), f"update-line u-{_kind(row)}"))
    return lines


def _label(text: str, x: float, y: float) -> Html:
    anchor, aside = ("end", -7) if x > 94 else ("start", 7)
    place = f"{compact(x)}%"
    return tag("text", text, x=place, dx=aside, y=compact(max(9.0, y)), text_anchor=anchor)


def strip(language: WatchedLanguage) -> Html:
    """Return the last windows as bars of score over threshold, one line at 1, newest right."""
    windows = closed_windows(language)[-STRIP_WINDOWS:]
    width = 100.0 / STRIP_WINDOWS
    floor = _STRIP - 2.0
    marks = [segment((0, _level(1.0)), (100, _level(1.0)), "threshold")] if windows else []
    for place, window in enumerate(windows):
        left = 100.0 - width * (len(windows) - place)
        ratio = _ratio(window)
        kind = window_state(window)
        if ratio is None or kind in {"insufficient", "empty"}:
            marks.append(box(left + 0.15 * width, left + 0.85 * width, floor - 2, floor, "b-none"))
            continue
        top = _level(min(ratio, _STRIP_TOP))
        marks.append(box(left + 0.15 * width, left + 0.85 * width, top, floor, f"b-{kind}"))
        if kind == "drift":
            marks.append(mark("drift", left + width / 2, 3.0))
    counts = _counted([window_text(window) for window in windows])
    title = f"Last {len(windows)} windows: {counts}" if windows else "No window yet"
    return tag("svg", tag("title", title), *marks, width="100%", height=_STRIP, role="img")


def _level(ratio: float) -> float:
    return _STRIP - 2.0 - (_STRIP - 8.0) * ratio / _STRIP_TOP


def _ratio(window: WindowPoint) -> float | None:
    """Return score over threshold, where both were measured."""
    score, threshold = window.score, window.threshold
    if score is None or threshold is None or not is_number(score) or not is_number(threshold):
        return None
    return score / threshold if threshold > 0 else _STRIP_TOP if score > 0 else 0.0


def _counted(texts: Sequence[str]) -> str:
    """Return words with how often they occur, most frequent first."""
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    order = sorted(counts, key=lambda text: -counts[text])
    return ", ".join(f"{counts[text]} {text}" for text in order)


def _bits(value: float) -> str:
    return f"{value:.3g}" if value else "0"


def _percent(value: float) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)
