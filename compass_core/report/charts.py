"""Charts with two axes, as inline SVG: the map of the semantic space, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compass_core.report.data import MapPoint, Point, Role, is_number
from compass_core.report.markup import Html, compact, join, number, tag
from compass_core.report.plots import Scale, line

MAX_POINTS_PER_ROLE = 400
"""Points drawn per role: more hide each other and weigh the page down."""

MAX_CURVE_POINTS = 160
"""Points of one curve; longer ones are averaged in equal stretches."""

_PUSHES = 60
_MAP_WIDTH, _MAP_HEIGHT = 320, 260
_CHART_WIDTH, _CHART_HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 34


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
    across: Scale | None = None,
    up: Scale | None = None,
    whole: bool = False,
) -> Html | None:
    """Return curves over a numeric axis, ``None`` where there is nothing to draw.

    Args:
        curves: Name → points.
        title: The chart in words.
        x_label: What the horizontal axis counts.
        classes: Name → colour class.
        marked: A point to ring.
        dots: Draw the points too, not only the line.
        across: Horizontal axis, where several charts share one.
        up: Vertical axis, likewise.
        whole: The horizontal axis counts: no numbers between whole ones.
    """
    smooth = {name: smooth_curve(curve) for name, curve in curves.items()}
    everything = [point for curve in smooth.values() for point in curve]
    if not everything:
        return None
    across = across or Scale.around([x for x, _ in everything])
    up = up or Scale.around([y for _, y in everything])
    parts = [_frame(across, up, x_label, whole=whole)]
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """One named point of a chart with intervals both ways; a missing interval is ``None``."""

    name: str
    class_: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def scatter_chart(
    estimates: Sequence[Estimate], *, title: str, x_label: str, better: str
) -> Html | None:
    """Return named points with their intervals, ``None`` where there is none; both axes hold 0.

    Args:
        estimates: The points; their names are written beside them.
        title: The chart in words.
        x_label: What the horizontal axis shows.
        better: Which way is better, written into the plot.
    """
    if not estimates:
        return None
    across = Scale.around(
        [x for e in estimates for x in (e.x, *(e.x_interval or ()))], include=[0.0]
    )
    up = Scale.around([y for e in estimates for y in (e.y, *(e.y_interval or ()))], include=[0.0])
    parts = [_frame(across, up, x_label)]
    places = [_chart_place(e.x, e.y, across, up) for e in estimates]
    for estimate, (x, y) in zip(estimates, places, strict=True):
        ends = [_chart_place(end, estimate.y, across, up)[0] for end in estimate.x_interval or ()]
        tops = [_chart_place(estimate.x, end, across, up)[1] for end in estimate.y_interval or ()]
        colour = f"interval s {estimate.class_}"
        if len(ends) == 2:
            parts.append(line(compact(ends[0]), compact(y), compact(ends[1]), compact(y), colour))
        if len(tops) == 2:
            parts.append(line(compact(x), compact(tops[0]), compact(x), compact(tops[1]), colour))
    for estimate, (x, y) in zip(estimates, places, strict=True):
        parts.append(tag("circle", cx=x, cy=y, r=5, class_=f"dot f {estimate.class_}"))
    parts += _names(estimates, places)
    parts.append(tag("text", better, x=_LEFT + 5, y=_TOP + 10, class_="better"))
    return tag(
        "svg",
        tag("title", title),
        *parts,
        class_="chart",
        viewBox=f"0 0 {_CHART_WIDTH} {_CHART_HEIGHT}",
        role="img",
    )


def _names(estimates: Sequence[Estimate], places: Sequence[Point]) -> list[Html]:
    """Return names beside their points, each at the first side where it covers nothing."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    texts = []
    for estimate, (x, y) in zip(estimates, places, strict=True):
        width = 5.4 * len(estimate.name)
        spots = [
            (x + aside if aside > 0 else x + aside - width, y + 3.5 + lift)
            for lift in (0, -10, 10, -19, 19, -28, 28)
            for aside in (9, -9)
        ]
        left, base = next((spot for spot in spots if _is_free(spot, width, taken)), spots[0])
        taken.append((left, base - 9, left + width, base + 2))
        texts.append(tag("text", estimate.name, x=left, y=base, class_=f"name {estimate.class_}"))
    return texts


def _is_free(spot: Point, width: float, taken: Sequence[tuple[float, float, float, float]]) -> bool:
    """Say whether a text at `spot` stays inside the chart and off every box of `taken`."""
    left, base = spot
    right, top, bottom = left + width, base - 9, base + 2
    if left < _LEFT or right > _CHART_WIDTH or top < _TOP + 12:
        return False
    return not any(
        left < box[2] and box[0] < right and top < box[3] and box[1] < bottom for box in taken
    )


def _chart_place(x: float, y: float, across: Scale, up: Scale) -> tuple[float, float]:
    width, height = _CHART_WIDTH - _LEFT - _RIGHT, _CHART_HEIGHT - _TOP - _BOTTOM
    return _LEFT + across.at(x) * width / 100, _TOP + height - up.at(y) * height / 100


def _frame(across: Scale, up: Scale, x_label: str, *, whole: bool = False) -> Html:
    """Return grid lines, tick numbers and the name of the horizontal axis."""
    parts = []
    bottom = str(_CHART_HEIGHT - _BOTTOM)
    for value in up.ticks(4):
        y = _chart_place(across.low, value, across, up)[1]
        edge = compact(y)
        parts.append(line(str(_LEFT), edge, str(_CHART_WIDTH - _RIGHT), edge, "grid"))
        parts.append(tag("text", _tick(value), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for value in across.ticks(5):
        if whole and not float(round(value, 9)).is_integer():
            continue
        x = _chart_place(value, up.low, across, up)[0]
        parts.append(line(compact(x), bottom, compact(x), str(_TOP), "grid"))
        parts.append(
            tag("text", _tick(value), x=x, y=_CHART_HEIGHT - _BOTTOM + 15, text_anchor="middle")
        )
    parts.append(
        tag("text", x_label, x=_CHART_WIDTH - _RIGHT, y=_CHART_HEIGHT - 4, text_anchor="end")
    )
    return join(parts)


def _tick(value: float) -> str:
    known = round(value, 10)
    text = number(known) if float(known).is_integer() else f"{value:.3g}"
    return text.replace("-", "−")
