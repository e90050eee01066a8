"""The part of a report about a continual study: what each arm learns, forgets and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from compass_core.report import plots
from compass_core.report.charts import Estimate, line_chart, scatter_chart
from compass_core.report.continual_data import (
    ArmSummary,
    ContinualCell,
    ContinualCost,
    ContinualReport,
    Interval,
)
from compass_core.report.data import Point, is_number, mean
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
from compass_core.report.parts import bullet_list, key, scrolling, source_name

HOLDS = {True: "✓ holds", False: "✕ does not hold", None: "– cannot be said"}
_COSTS = (
    ("task", "new examples"),
    ("replay", "replayed examples"),
    ("fisher", "Fisher information"),
)


def render_continual(report: ContinualReport) -> Html:
    """Return the section of a continual study."""
    n_shifts = max(0, report.n_stages - 1)
    seeds = f"{len(report.seeds)} seed{'s' if len(report.seeds) != 1 else ''}"
    languages = f"{len(report.languages)} language{'s' if len(report.languages) != 1 else ''}"
    intro = (
        f"{languages} × {seeds} × {len(report.arms)} arms; a first training, then {n_shifts} "
        "shifts of usage. Learning: accuracy on the new slice after its stage minus before, mean "
        "over shifts. Forgetting: best past accuracy on an older slice minus the accuracy now, "
        "mean over older slices, then over shifts. Final accuracy: mean over all slices at the "
        f"end. Intervals: {percent(report.confidence, 0)}."
    )
    parts: list[Child] = [
        tag("h2", "Continual study"),
        tag("p", intro, class_="hint"),
        _claims(report),
        key(*((f"f {plots.arm_class(arm)}", plots.arm_label(arm)) for arm in _arms(report))),
        tag("div", *_main_charts(report), class_="charts"),
        _arm_table(report, "", "Arms"),
        bullet_list(report.notes) if report.notes else None,
        _slices(report),
        _languages(report),
    ]
    return tag("section", *parts, id="continual", class_="card continual")


def seen_so_far(report: ContinualReport, arm: str, language: str = "") -> list[Point]:
    """Return per stage the mean accuracy over the slices seen up to it, of one or all languages."""
    return _curve(report, arm, language, lambda cell: cell.slice <= cell.stage)


def slice_curve(report: ContinualReport, arm: str, slice_: int) -> list[Point]:
    """Return per stage the mean accuracy on one slice, from the stage before it on."""
    return _curve(report, arm, "", lambda cell: cell.slice == slice_ and cell.stage >= slice_ - 1)


def _curve(
    report: ContinualReport, arm: str, language: str, wanted: Callable[[ContinualCell], bool]
) -> list[Point]:
    by_stage: dict[int, list[float | None]] = {}
    for cell in report.cells:
        if cell.arm == arm and cell.language in {language or cell.language} and wanted(cell):
            by_stage.setdefault(cell.stage, []).append(cell.accuracy)
    means = ((stage, mean(values)) for stage, values in sorted(by_stage.items()))
    return [(float(stage), value) for stage, value in means if value is not None]


def _arms(report: ContinualReport) -> list[str]:
    return plots.arm_order(report.arms)


def _claims(report: ContinualReport) -> Html:
    if not report.claims:
        return Html("")
    rows = [
        [user_text(claim.text), user_text(claim.found), tag("b", HOLDS[claim.met])]
        for claim in report.claims
    ]
    header = ["What was to be shown", "What was measured", "Verdict"]
    return table(header, rows, caption="Claims", class_="claims cards")


def _main_charts(report: ContinualReport) -> list[Child]:
    figures: list[Child] = []
    plot = _learning_against_forgetting(report)
    if plot is not None:
        title = "Learning (up) against forgetting (across), points"
        figures.append(tag("figure", tag("figcaption", title), plot))
    over_time = _over_time(report, "")
    if over_time is not None:
        title = "Accuracy over time, %: mean over the slices seen so far"
        figures.append(tag("figure", tag("figcaption", title), over_time))
    return figures


def _learning_against_forgetting(report: ContinualReport) -> Html | None:
    estimates, said = [], []
    for arm in _arms(report):
        row = report.arm(arm)
        if row is None or row.learning is None or row.forgetting is None:
            continue
        if not is_number(row.learning) or not is_number(row.forgetting):
            continue
        estimates.append(
            Estimate(
                name=plots.arm_label(arm),
                class_=plots.arm_class(arm),
                x=100 * row.forgetting,
                y=100 * row.learning,
                x_interval=_percentages(row.intervals.get("forgetting")),
                y_interval=_percentages(row.intervals.get("learning")),
            )
        )
        said.append(
            f"{plots.arm_label(arm)} learns {points(row.learning)}, forgets "
            f"{points(row.forgetting)}"
        )
    return scatter_chart(
        estimates,
        title=f"Learning against forgetting in points: {'; '.join(said)}",
        x_label="forgetting, points",
        better="↖ better",
    )


def _percentages(interval: Interval | None) -> Interval | None:
    if interval is None or not all(is_number(end) for end in interval):
        return None
    return 100 * interval[0], 100 * interval[1]


def _over_time(
    report: ContinualReport, language: str, up: plots.Scale | None = None
) -> Html | None:
    arms = _arms(report)
    curves = {arm: _in_percent(seen_so_far(report, arm, language)) for arm in arms}
    ends = ", ".join(f"{plots.arm_label(a)} {c[-1][1]:.1f}%" for a, c in curves.items() if c)
    return line_chart(
        curves,
        title=f"Mean accuracy over the slices seen so far, by stage; after the last: {ends}",
        x_label="stage",
        classes={arm: plots.arm_class(arm) for arm in arms},
        dots=True,
        across=_stages(report),
        up=up,
        whole=True,
    )


def _stages(report: ContinualReport) -> plots.Scale:
    return plots.Scale(0.0, float(max(1, report.n_stages - 1)))


def _in_percent(curve: Sequence[Point]) -> list[Point]:
    return [(x, 100 * y) for x, y in curve]


def _arm_table(report: ContinualReport, language: str, caption: str) -> Html:
    rows = [(arm, report.arm(arm, language)) for arm in _arms(report)]
    known = [(arm, row) for arm, row in rows if row is not None]
    if not known:
        return Html("")
    totals = {arm: _tokens(report, arm, language) for arm, _ in known}
    scale = plots.Scale(0.0, max([*(sum(total) for total in totals.values()), 1.0]))
    header: list[Child] = ["Arm", "Learning", "Forgetting", "Final accuracy", "Cost of full"]
    with_bars = any(map(sum, totals.values()))
    if with_bars:
        header.append("Tokens, forward and backward, over all shifts")
    body = [_arm_row(arm, row, totals[arm], scale, with_bars) for arm, row in known]
    content = table(header, body, caption=caption, class_="continual-arms cards")
    parts = [scrolling(content, caption)]
    if with_bars:
        parts.append(key(*((f"cost-{kind}", text) for kind, text in _COSTS)))
    return join(parts)


def _arm_row(
    arm: str,
    row: ArmSummary,
    tokens: tuple[float, float, float],
    scale: plots.Scale,
    with_bars: bool,
) -> list[Child]:
    name = join([tag("i", class_=f"mark f {plots.arm_class(arm)}"), " ", plots.arm_label(arm)])
    cells: list[Child] = [
        name,
        _estimate(points(row.learning), row.intervals.get("learning"), points),
        _estimate(points(row.forgetting), row.intervals.get("forgetting"), points),
        _estimate(percent(row.final_accuracy), row.intervals.get("final_accuracy"), percent),
        percent(row.cost_share_of_full, 0),
    ]
    if with_bars:
        cells.append(_cost_track(scale, tokens))
    return cells


def _estimate(text: str, ends: Interval | None, write: Callable[[float], str]) -> Html:
    """Return an estimate with its interval in small print."""
    if ends is None or not all(is_number(end) for end in ends):
        return tag("b", text)
    return join([tag("b", text), " ", tag("small", f"{write(ends[0])} to {write(ends[1])}")])


def _tokens(report: ContinualReport, arm: str, language: str) -> tuple[float, float, float]:
    """Return mean tokens of all shifts of one sequence: task, replay, Fisher."""
    rows = [
        cost
        for cost in report.costs
        if cost.arm == arm and cost.stage > 0 and cost.language in {language or cost.language}
    ]
    sequences = len({(cost.language, cost.seed) for cost in rows}) or 1
    return (
        _total(rows, "tokens_task", sequences),
        _total(rows, "tokens_replay", sequences),
        _total(rows, "tokens_fisher", sequences),
    )


def _total(rows: Sequence[ContinualCost], name: str, sequences: int) -> float:
    return math.fsum(getattr(cost, name) for cost in rows) / sequences


def _cost_track(scale: plots.Scale, tokens: tuple[float, float, float]) -> Html:
    marks, start = [], 0.0
    for (kind, _), count in zip(_COSTS, tokens, strict=True):
        left, width = scale.at(start), scale.at(start + count) - scale.at(start)
        place = {"x": f"{left:.2f}%", "width": f"{width:.2f}%"}
        marks.append(tag("rect", **place, y=4, height=10, class_=f"cost-{kind}"))
        start += count
    said = ", ".join(
        f"{number(round(count))} {text}" for (_, text), count in zip(_COSTS, tokens, strict=True)
    )
    return plots.track(scale, marks, height=18, title=f"Tokens: {said}", ticks=4)


def _slices(report: ContinualReport) -> Html:
    """Return one small chart per slice on one vertical axis, folded away."""
    arms = _arms(report)
    values = [
        y
        for arm in arms
        for slice_ in range(report.n_stages)
        for _, y in _in_percent(slice_curve(report, arm, slice_))
    ]
    if not values:
        return Html("")
    up = plots.Scale.around(values)
    figures = [_slice_figure(report, slice_, up) for slice_ in range(report.n_stages)]
    hint = (
        "Each slice from the stage before it is learnt; the stage of the same number learns it. "
        "What falls afterwards is forgetting."
    )
    return tag(
        "details",
        tag("summary", "Slice by slice"),
        tag("p", hint, class_="hint"),
        tag("div", *figures, class_="charts"),
        class_="more",
    )


def _slice_figure(report: ContinualReport, slice_: int, up: plots.Scale) -> Html | None:
    arms = _arms(report)
    curves = {arm: _in_percent(slice_curve(report, arm, slice_)) for arm in arms}
    plot = line_chart(
        curves,
        title=f"Accuracy on slice {slice_} by stage",
        x_label="stage",
        classes={arm: plots.arm_class(arm) for arm in arms},
        dots=True,
        across=_stages(report),
        up=up,
        whole=True,
    )
    return tag("figure", tag("figcaption", f"Slice {slice_}, %"), plot) if plot else None


def _languages(report: ContinualReport) -> Html:
    """Return curve and table of each language, on one vertical axis, folded away."""
    if len(report.languages) < 2:
        return Html("")
    values = [
        y
        for language in report.languages
        for arm in report.arms
        for _, y in _in_percent(seen_so_far(report, arm, language))
    ]
    up = plots.Scale.around(values)
    figures, tables = [], []
    for language in report.languages:
        plot, name = _over_time(report, language, up), source_name(language)
        caption = tag("figcaption", user_text(name, 60), ", %")
        figures.append(tag("figure", caption, plot) if plot else None)
        tables.append(_arm_table(report, language, name))
    hint = "Mean over the slices seen so far, by stage; one axis for all languages."
    return tag(
        "details",
        tag("summary", "Language by language"),
        tag("p", hint, class_="hint"),
        tag("div", *figures, class_="charts"),
        *tables,
        class_="more",
    )
