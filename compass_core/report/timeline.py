"""Panels over one time axis, as inline SVG: places across in percent, heights in pixels.

So text and marks keep their size on a phone and on a wide screen. A panel is a grid of two
columns: the numbers of its vertical axis, and its plot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from compass_core.report.markup import Html, compact, tag
from compass_core.report.plots import Scale

MARGIN = 8
"""Pixels kept free above and below the values of a panel."""

_DAY = 86_400.0
_STEPS = (1 / 24, 0.25, 0.5, 1, 2, 7, 14, 28, 91, 182, 364, 728, 1820, 3640)
_MAX_TICKS = 6
_SHAPES = {
    "stable": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "alarm": "M0-6L6 4.5H-6Z",
    "drift": "M0-7L6.5 0L0 7L-6.5 0Z",
    "insufficient": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "empty": "M-3-3L3 3M-3 3L3-3",
    "promoted": "M-5 0L-1.5 4L5.5-4",
    "refused": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
    "superseded": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "failed": "M-4.5-4.5L4.5 4.5M-4.5 4.5L4.5-4.5",
    "running": "M4.5-2A5 5 0 1 0 4.5 2",
    "champion": "M-4-4H4V4H-4Z",
    "novel": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
}


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """A time axis from `low` to `high`, in seconds since 1970."""

    low: float
    high: float

    @classmethod
    def around(cls, times: Sequence[float]) -> TimeAxis | None:
        """Return an axis that holds `times`, ``None`` where there are none."""
        if not times:
            return None
        low, high = min(times), max(times)
        if high - low < 60.0:
            low, high = low - _DAY / 2, high + _DAY / 2
        return cls(low, high)

    def at(self, when: float) -> float:
        """Return where `when` lies, in percent of the axis, kept inside it."""
        return min(100.0, max(0.0, 100.0 * (when - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Return at most six round times as (place in percent, text), in UTC."""
        days = (self.high - self.low) / _DAY
        step = next((step for step in _STEPS if days / step <= _MAX_TICKS), days / _MAX_TICKS)
        start = datetime.fromtimestamp(self.low, UTC).replace(minute=0, second=0, microsecond=0)
        when = start.replace(hour=0)
        found = []
        while when.timestamp() <= self.high:
            if when.timestamp() >= self.low:
                found.append((self.at(when.timestamp()), _time_text(when, step)))
            when += timedelta(days=step)
        return found or [(0.0, _time_text(start, 1 / 24))]


def _time_text(when: datetime, step: float) -> str:
    if step < 1 and when.hour:
        return f"{when:%H:%M}"
    if step >= 182:
        return f"{when:%b %Y}"
    return f"{when.day} {when:%b}"


def height_of(value: float, scale: Scale, height: int) -> float:
    """Return the place of `value` in pixels from the top of a panel."""
    return MARGIN + (height - 2 * MARGIN) * (1 - scale.at(value) / 100)


def mark(kind: str, x: float, y: float, said: str = "") -> Html:
    """Return one mark at `x` percent and `y` pixels, with its meaning for who points at it."""
    shape = tag("path", d=_SHAPES[kind], class_=f"t-{kind}")
    inside = [tag("title", said), shape] if said else [shape]
    return tag("svg", *inside, x=f"{compact(x)}%", y=compact(y), class_="at")


def segment(start: tuple[float, float], end: tuple[float, float], class_: str) -> Html:
    """Return a line between two places (percent, pixels)."""
    return tag(
        "line",
        x1=f"{compact(start[0])}%",
        y1=compact(start[1]),
        x2=f"{compact(end[0])}%",
        y2=compact(end[1]),
        class_=class_,
    )


def box(start: float, end: float, top: float, bottom: float, class_: str) -> Html:
    """Return a rectangle from `start` to `end` percent and `top` to `bottom` pixels."""
    return tag(
        "rect",
        x=f"{compact(start)}%",
        y=compact(top),
        width=f"{compact(max(0.0, end - start))}%",
        height=compact(max(0.0, bottom - top)),
        class_=class_,
    )


def panel(
    marks: Sequence[Html],
    *,
    axis: TimeAxis,
    scale: Scale | None,
    height: int,
    title: str,
    tick: Callable[[float], str] = compact,
) -> Html:
    """Return one panel: the numbers of `scale`, grid lines, `marks`.

    Args:
        marks: What is drawn, in drawing order.
        axis: Time axis, for the grid.
        scale: Vertical axis, ``None`` for a lane without one.
        height: Pixels.
        title: The plot in words.
        tick: Writes a number of the vertical axis.
    """
    grid = [segment((x, 0), (x, height), "grid") for x, _ in axis.ticks()]
    numbers = []
    for value in scale.ticks(3) if scale else []:
        y = height_of(value, scale, height) if scale else 0.0
        grid.append(segment((0, y), (100, y), "grid"))
        numbers.append(tag("text", tick(value), x="100%", y=y + 4, text_anchor="end"))
    return tag(
        "div",
        tag("svg", *numbers, width="100%", height=height, aria_hidden="true"),
        tag("svg", tag("title", title), *grid, *marks, width="100%", height=height, role="img"),
        class_="panel",
    )


def time_row(axis: TimeAxis) -> Html:
    """Return the times under the panels."""
    texts = [
        tag(
            "text",
            text,
            x=f"{compact(place)}%",
            y="13",
            text_anchor="start" if place < 5 else "end" if place > 95 else "middle",
        )
        for place, text in axis.ticks()
    ]
    return tag(
        "div",
        tag("span"),
        tag("svg", *texts, width="100%", height=18, aria_hidden="true"),
        class_="panel",
    )


def legend(*entries: tuple[str, str]) -> Html:
    """Return a legend: (kind of mark, or a class of a swatch, and its meaning)."""
    return tag("p", *(_entry(kind, text) for kind, text in entries), class_="key")


def _entry(kind: str, text: str) -> Html:
    if kind in _SHAPES:
        path = tag("path", d=_SHAPES[kind], class_=f"t-{kind}")
        sign = tag("svg", path, viewBox="-8 -8 16 16", width="14", height="14", aria_hidden="true")
    else:
        sign = tag("i", class_=f"mark {kind}", aria_hidden="true")
    return tag("span", sign, " ", text)
