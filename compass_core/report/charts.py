"""Charts with two axes, as inline SVG: the map of the semantic space, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        parts.append(line(str(_LEFT), edge, str(_CHART_WIDTH - _RIGHT), edge, "grid"))
        parts.append(tag("text", _tick(value), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for value in across.ticks(5):
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
    return number(round(value, 10)) if float(round(value, 10)).is_integer() else f"{value:.3g}"
