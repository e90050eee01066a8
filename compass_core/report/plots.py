"""Plots as inline SVG, drawn by hand.

Text of the data stays in HTML, where the browser picks fonts and writing direction; an SVG holds
marks, and at most numbers. Tracks (one row of a table each) use percentages as coordinates, so that
circles stay round at any width; charts with axes use a small view box that scales. Colours are CSS
classes of ``assets/report.css``: one for light, one for dark. Every plot has a title for readers
who cannot see it, and a table beside or behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compass_core.report.data import ArmResult, ClusterRow, MapPoint, Point, Role, is_number
from compass_core.report.markup import Html, compact, join, number, percent, tag

MAX_POINTS_PER_ROLE = 400
"""Points drawn per role: more hide each other and weigh the page down."""

MAX_CURVE_POINTS = 160
"""Points of one curve; longer ones are averaged in equal stretches."""

ARM_LABELS = {
    "zero-shot": "Zero-shot",
    "target-only": "Target-only",
    "random": "Random",
    "similar": "Similar languages",
    "all-data": "All data",
    "compass": "COMPASS",
}
"""Arms in the order in which they are shown, with the names people read."""

_LANE = 11
_PUSHES = 60
_MAP_WIDTH, _MAP_HEIGHT = 320, 260
_CHART_WIDTH, _CHART_HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 34


def arm_label(arm: str) -> str:
    """Return the name people read for `arm`."""
    return ARM_LABELS.get(arm, arm)


def arm_class(arm: str) -> str:
    """Return the colour class of `arm`."""
    return f"a-{arm}" if arm in ARM_LABELS else "a-other"


def arm_order(names: Sequence[str]) -> list[str]:
    """Return `names` without repeats, known arms first in their fixed order."""
    unique = list(dict.fromkeys(names))
    known = [arm for arm in ARM_LABELS if arm in unique]
    return known + [arm for arm in unique if arm not in ARM_LABELS]


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis from `low` to `high`."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return where `value` lies, in percent of the axis, kept inside it."""
        return min(100.0, max(0.0, 100.0 * (value - self.low) / (self.high - self.low)))

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return about `wanted` round values inside the axis."""
        step = _round_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    @classmethod
    def around(cls, values: Sequence[float | None], *, include: Sequence[float] = ()) -> Scale:
        """Return an axis with round ends that holds all measured `values` and `include`."""
        known = [value for value in values if value is not None and is_number(value)]
        known += list(include)
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if high <= low:
            low, high = low - 0.05, high + 0.05
        step = _round_step((high - low) / 5)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _round_step(raw: float) -> float:
    """Return the nearest 1, 2 or 5 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _pct(value: float) -> str:
    return f"{compact(value)}%"


def _line(x1: str, y1: str, x2: str, y2: str, class_: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def track(scale: Scale, marks: Sequence[Html], *, height: int, title: str, ticks: int = 5) -> Html:
    """Return one row's plot: grid lines of `scale` and `marks` over them, as wide as its cell."""
    places = [_pct(scale.at(value)) for value in scale.ticks(ticks)]
    grid = [tag("line", x1=x, x2=x, y2="100%", class_="grid") for x in places]
    return tag(
        "svg",
        tag("title", title),
        *grid,
        *marks,
        class_="track",
        width="100%",
        height=height,
        role="img",
    )


def axis(scale: Scale, *, signed: bool = False, ticks: int = 5) -> Html:
    """Return the axis under or over the tracks of `scale`, in percent or percentage points."""
    values = scale.ticks(ticks)
    digits = 0 if all(abs(100 * value - round(100 * value)) < 1e-6 for value in values) else 1
    labels = []
    for value in values:
        text = f"{100 * value:+.{digits}f}" if signed and value else f"{100 * value:.{digits}f}"
        text = text.replace("-", "−") + ("" if signed else "%")
        place = scale.at(value)
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        labels.append(tag("text", text, x=_pct(place), y="13", text_anchor=anchor))
    return tag("svg", *labels, class_="track axis", width="100%", height=18, aria_hidden="true")


def interval_marks(scale: Scale, value: ArmResult, y: float, *, strong: bool = False) -> list[Html]:
    """Return the line of an interval and the dot of its estimate at height `y`."""
    if value.accuracy is None or not is_number(value.accuracy):
        return []
    colour, height = arm_class(value.arm), compact(y)
    marks = []
    if value.low is not None and value.high is not None and is_number(value.high - value.low):
        ends = _pct(scale.at(value.low)), _pct(scale.at(value.high))
        weight = "interval strong" if strong else "interval"
        marks.append(_line(ends[0], height, ends[1], height, f"{weight} s {colour}"))
    radius = 5 if strong else 4
    place = _pct(scale.at(value.accuracy))
    marks.append(tag("circle", cx=place, cy=height, r=radius, class_=f"dot f {colour}"))
    return marks


def arms_track(
    scale: Scale, arms: Sequence[ArmResult], trivial: Mapping[str, float | None], main_arm: str
) -> Html:
    """Return all arms of one language on one track, one lane each, over the trivial baselines."""
    marks = [
        _line(_pct(scale.at(value)), "0", _pct(scale.at(value)), "100%", "trivial")
        for value in trivial.values()
        if value is not None and is_number(value)
    ]
    said = []
    for lane, result in enumerate(arms):
        marks += interval_marks(
            scale, result, _LANE * (lane + 0.5) + 2, strong=result.arm == main_arm
        )
        said.append(f"{arm_label(result.arm)} {percent(result.accuracy)}")
    title = "Accuracy: " + (", ".join(said) or "not measured")
    return track(scale, marks, height=_LANE * max(1, len(arms)) + 4, title=title)


def shares_track(scale: Scale, row: ClusterRow, selected_share: float) -> Html:
    """Return the bars of coverage and selection of one cluster, and the mark of its usage."""
    bars = [
        tag(
            "rect", x=0, y=3, width=_pct(scale.at(row.coverage_share)), height=8, class_="coverage"
        ),
        tag("rect", x=0, y=13, width=_pct(scale.at(selected_share)), height=8, class_="selected"),
        _line(
            _pct(scale.at(row.usage_share)),
            "0",
            _pct(scale.at(row.usage_share)),
            "24",
            "usage-mark",
        ),
    ]
    title = (
        f"users ask {percent(row.usage_share)}, training data covers "
        f"{percent(row.coverage_share)}, share of the selection {percent(selected_share)}"
    )
    return track(scale, bars, height=24, title=title, ticks=4)


def change_track(scale: Scale, row: ClusterRow) -> Html:
    """Return accuracy before (ring) and after (dot) of one cluster, joined by a line."""
    before, after = row.accuracy_before, row.accuracy_after
    marks: list[Html] = []
    if before is not None and is_number(before):
        if after is not None and is_number(after):
            way = "up" if after > before else "down" if after < before else "same"
            ends = _pct(scale.at(before)), _pct(scale.at(after))
            marks.append(_line(ends[0], "12", ends[1], "12", f"change {way}"))
        marks.append(tag("circle", cx=_pct(scale.at(before)), cy=12, r=4, class_="before"))
    if after is not None and is_number(after):
        way = "up" if not is_number(before) or after >= (before or 0.0) else "down"
        marks.append(tag("circle", cx=_pct(scale.at(after)), cy=12, r=4.5, class_=f"after {way}"))
    title = f"accuracy before {percent(before)}, after {percent(after)}, {row.n_items} items"
    return track(scale, marks, height=24, title=title, ticks=4)


def difference_track(
    scale: Scale,
    estimate: tuple[float | None, float | None, float | None],
    dots: Sequence[float],
    title: str,
) -> Html:
    """Return a mean difference with its interval, zero marked, single languages as faint dots.

    Args:
        scale: Axis in fractions.
        estimate: Mean, lower and upper end of its interval.
        dots: Difference of each language.
        title: The same in words.
    """
    mean, low, high = estimate
    marks = [_line(_pct(scale.at(0.0)), "0", _pct(scale.at(0.0)), "100%", "zero")]
    marks += [tag("circle", cx=_pct(scale.at(x)), cy=21, r=2.5, class_="faint") for x in dots]
    if mean is not None and is_number(mean):
        if low is not None and high is not None and is_number(high - low):
            ends = _pct(scale.at(low)), _pct(scale.at(high))
            marks.append(_line(ends[0], "10", ends[1], "10", "interval strong s a-compass"))
        marks.append(tag("circle", cx=_pct(scale.at(mean)), cy=10, r=5, class_="dot f a-compass"))
    return track(scale, marks, height=28, title=title)


def thin_out(points: Sequence[MapPoint], limit: int = MAX_POINTS_PER_ROLE) -> list[MapPoint]:
    """Return at most `limit` of `points`, evenly spread over their order, always the same ones."""
    known = [point for point in points if is_number(point.x) and is_number(point.y)]
    if len(known) <= limit:
        return known
    return [known[index * len(known) // limit] for index in range(limit)]


def map_panels(
    points: Sequence[MapPoint],
    panels: Mapping[Role, str],
    marked: Mapping[int, int],
    *,
    identity: str,
    limit: int = MAX_POINTS_PER_ROLE,
) -> list[Html]:
    """Return one map per role of `panels` (with its title), all other points faint behind it.

    Args:
        points: All points; each role is thinned out by itself.
        panels: Role → what its panel shows, in words.
        marked: Cluster → number written at the middle of the cluster.
        identity: Element id of the layer that the panels share, unique on the page.
        limit: Points per role at most.
    """
    roles: tuple[Role, ...] = ("pool", "coverage", "usage", "selected")
    by_role = {
        role: thin_out([point for point in points if point.role == role], limit) for role in roles
    }
    shown = [point for role in roles for point in by_role[role]]
    if not shown:
        return []
    across, down = _map_scales(shown)
    behind = tag("g", _dots(shown, across, down, "faint-dots"), id=identity)
    again = tag("use", href=f"#{identity}")
    numbers = _map_numbers(shown, marked, across, down)
    return [
        tag(
            "svg",
            tag("title", title),
            again if index else behind,
            _dots(by_role[role], across, down, f"dots {role}"),
            numbers,
            class_="map",
            viewBox=f"0 0 {_MAP_WIDTH} {_MAP_HEIGHT}",
            role="img",
        )
        for index, (role, title) in enumerate(panels.items())
    ]


def _map_scales(points: Sequence[MapPoint]) -> tuple[Scale, Scale]:
    """Return axes of equal unit, so that distances on the map mean the same both ways."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    unit = max((max(xs) - min(xs)) / _MAP_WIDTH, (max(ys) - min(ys)) / _MAP_HEIGHT) * 1.08 or 1.0
    middle_x, middle_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    half_x, half_y = unit * _MAP_WIDTH / 2, unit * _MAP_HEIGHT / 2
    return (
        Scale(middle_x - half_x, middle_x + half_x),
        Scale(middle_y - half_y, middle_y + half_y),
    )


def _place(x: float, y: float, across: Scale, down: Scale) -> tuple[float, float]:
    return across.at(x) * _MAP_WIDTH / 100, _MAP_HEIGHT - down.at(y) * _MAP_HEIGHT / 100


def _dots(points: Sequence[MapPoint], across: Scale, down: Scale, class_: str) -> Html:
    """Return points as one path of zero-length strokes with round caps: small and fast."""
    places = (_place(point.x, point.y, across, down) for point in points)
    return tag("path", d="".join(f"M{x:.1f} {y:.1f}h0" for x, y in places), class_=class_)


def _map_numbers(
    points: Sequence[MapPoint], marked: Mapping[int, int], across: Scale, down: Scale
) -> Html:
    """Return the numbers of marked clusters at their medians, pushed apart where they touch."""
    placed: list[tuple[float, float]] = []
    marks = []
    for cluster, label in marked.items():
        members = [point for point in points if point.cluster == cluster]
        focus = [point for point in members if point.role == "usage"] or members
        if not focus:
            continue
        xs, ys = sorted(point.x for point in focus), sorted(point.y for point in focus)
        x, y = _place(xs[len(xs) // 2], ys[len(ys) // 2], across, down)
        for _ in range(_PUSHES):
            if all(math.hypot(x - other[0], y - other[1]) >= 17 for other in placed):
                break
            y = y + 17 if y + 26 < _MAP_HEIGHT else 9.0
            x = x + 5 if x + 14 < _MAP_WIDTH else 9.0
        placed.append((x, y))
        marks.append(tag("circle", cx=x, cy=y, r=8.5))
        marks.append(tag("text", str(label), x=x, y=y + 3.8, text_anchor="middle"))
    return tag("g", *marks, class_="numbers", aria_hidden="true")


def smooth_curve(curve: Sequence[Point], limit: int = MAX_CURVE_POINTS) -> list[Point]:
    """Return `curve` averaged over equal stretches, so that at most `limit` points are left."""
    known = [(x, y) for x, y in curve if is_number(x) and is_number(y)]
    if len(known) <= limit:
        return known
    edges = [index * len(known) // limit for index in range(limit + 1)]
    means = []
    for first, last in pairwise(edges):
        part = known[first:last]
        means.append((part[-1][0], math.fsum(y for _, y in part) / len(part)))
    return means


def line_chart(
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    classes: Mapping[str, str],
    marked: Point | None = None,
    dots: bool = False,
) -> Html | None:
    """Return curves over a numeric axis, ``None`` where there is nothing to draw.

    Args:
        curves: Name → points.
        title: The chart in words.
        x_label: What the horizontal axis counts.
        classes: Name → colour class.
        marked: A point to ring.
        dots: Draw the points too, not only the line.
    """
    smooth = {name: smooth_curve(curve) for name, curve in curves.items()}
    everything = [point for curve in smooth.values() for point in curve]
    if not everything:
        return None
    across = Scale.around([x for x, _ in everything])
    up = Scale.around([y for _, y in everything])
    parts = [_frame(across, up, x_label)]
    for name, curve in smooth.items():
        places = [_chart_place(x, y, across, up) for x, y in curve]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""
        parts.append(tag("path", d=path, class_=f"curve s {classes[name]}"))
        if dots:
            colour = f"dot f {classes[name]}"
            parts += [tag("circle", cx=x, cy=y, r=3, class_=colour) for x, y in places]
    if marked is not None and is_number(marked[1]):
        x, y = _chart_place(*marked, across, up)
        parts.append(tag("circle", cx=x, cy=y, r=7, class_="ring"))
    return tag(
        "svg",
        tag("title", title),
        *parts,
        class_="chart",
        viewBox=f"0 0 {_CHART_WIDTH} {_CHART_HEIGHT}",
        role="img",
    )


def _chart_place(x: float, y: float, across: Scale, up: Scale) -> tuple[float, float]:
    width, height = _CHART_WIDTH - _LEFT - _RIGHT, _CHART_HEIGHT - _TOP - _BOTTOM
    return _LEFT + across.at(x) * width / 100, _TOP + height - up.at(y) * height / 100


def _frame(across: Scale, up: Scale, x_label: str) -> Html:
    """Return grid lines, tick numbers and the name of the horizontal axis."""
    parts = []
    bottom = str(_CHART_HEIGHT - _BOTTOM)
    for value in up.ticks(4):
        y = _chart_place(across.low, value, across, up)[1]
        edge = compact(y)
        parts.append(_line(str(_LEFT), edge, str(_CHART_WIDTH - _RIGHT), edge, "grid"))
        parts.append(tag("text", _tick(value), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for value in across.ticks(5):
        x = _chart_place(value, up.low, across, up)[0]
        parts.append(_line(compact(x), bottom, compact(x), str(_TOP), "grid"))
        parts.append(
            tag("text", _tick(value), x=x, y=_CHART_HEIGHT - _BOTTOM + 15, text_anchor="middle")
        )
    parts.append(
        tag("text", x_label, x=_CHART_WIDTH - _RIGHT, y=_CHART_HEIGHT - 4, text_anchor="end")
    )
    return join(parts)


def _tick(value: float) -> str:
    return number(round(value, 10)) if float(round(value, 10)).is_integer() else f"{value:.3g}"
