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

from compass_core.report.data import ArmResult, ClusterRow, is_number
from compass_core.report.markup import Html, compact, percent, tag

ARM_LABELS = {
    "zero-shot": "Zero-shot",
    "target-only": "Target-only",
    "random": "Random",
    "similar": "Similar languages",
    "all-data": "All data",
    "compass": "COMPASS",
    "frozen": "Frozen",
    "naive": "Naive fine-tuning",
    "ewc-only": "EWC only",
    "replay-only": "Replay only",
    "rehearsal": "Random rehearsal",
    "ecda": "ECDA",
    "full": "Full retraining",
}
"""Arms in the order in which they are shown, with the names people read."""

_LANE = 11


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
        if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
            low, high = low - 0.05, high + 0.05
        step = _round_step((high - low) / 5)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _round_step(raw: float) -> float:
    """Return the nearest 1, 2 or 5 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _pct(value: float) -> str:
    return f"{compact(value)}%"


def line(x1: str, y1: str, x2: str, y2: str, class_: str) -> Html:
    """Return one straight line; coordinates are numbers or percentages."""
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
        marks.append(line(ends[0], height, ends[1], height, f"{weight} s {colour}"))
    radius = 5 if strong else 4
    place = _pct(scale.at(value.accuracy))
    marks.append(tag("circle", cx=place, cy=height, r=radius, class_=f"dot f {colour}"))
    return marks


def arms_track(
    scale: Scale, arms: Sequence[ArmResult], trivial: Mapping[str, float | None], main_arm: str
) -> Html:
    """Return all arms of one language on one track, one lane each, over the trivial baselines."""
    marks = [
        line(_pct(scale.at(value)), "0", _pct(scale.at(value)), "100%", "trivial")
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
        line(
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
            marks.append(line(ends[0], "12", ends[1], "12", f"change {way}"))
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
    marks = [line(_pct(scale.at(0.0)), "0", _pct(scale.at(0.0)), "100%", "zero")]
    marks += [tag("circle", cx=_pct(scale.at(x)), cy=21, r=2.5, class_="faint") for x in dots]
    if mean is not None and is_number(mean):
        if low is not None and high is not None and is_number(high - low):
            ends = _pct(scale.at(low)), _pct(scale.at(high))
            marks.append(line(ends[0], "10", ends[1], "10", "interval strong s a-compass"))
        marks.append(tag("circle", cx=_pct(scale.at(mean)), cy=10, r=5, class_="dot f a-compass"))
    return track(scale, marks, height=28, title=title)
