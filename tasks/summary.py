"""The end of a run in plain text: what every language got, and where to look next."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from compass_core.languages import language_name
from compass_core.report.continual_data import ContinualReport
from compass_core.report.continual_section import HOLDS
from compass_core.report.continual_text import continual_rows
from compass_core.report.data import (
    LanguageReport,
    RunReport,
    StudyCell,
    StudyReport,
    is_number,
    mean,
)
from compass_core.report.markup import duration

_WIDTH, _WIDE = 104, 124
_NOTE_WIDTH = 88
_ARM_TITLES = {"compass": "COMPASS"}
_GROUPS = {"  missing topics": "missing", "  covered topics": "covered"}
_OUTCOMES = {
    "promoted": "promoted",
    "kept": "champion kept",
    "failed": "FAILED",
    "selected": "selected only",
    "scored": "compared",
}


Estimates = Mapping[str, Mapping[str, Any]]


def summary_text(report: RunReport, folder: Path, estimates: Estimates | None = None) -> str:
    """Return the summary of a run.

    Args:
        report: The run's report.
        folder: Where its report lies.
        estimates: Of a dry run, by language: ``steps``, ``seconds`` and ``bytes`` of a training.
    """
    blocks = [_headline(report)]
    if report.continual is not None:
        blocks += continual_blocks(report.continual)
    elif report.study is not None:
        blocks += [_cells_table(report.study), _study_table(report.study), _trivial_line(report)]
    elif any(language.arms for language in report.languages):
        blocks.append(_accuracy_table(report))
        blocks.append(
            "Accuracy in % on the test items, which follow the usage, with\n"
            f"{report.confidence:.0%} bootstrap intervals over items."
        )
        blocks.append(_trivial_line(report))
    else:
        blocks.append(_selection_table(report, estimates or {}))
        if estimates:
            blocks.append(
                "Nothing was trained. Time is for one adapter on this machine's processor at its\n"
                "matrix-product speed (a GPU is faster, a tiny model slower); disk includes\n"
                "checkpoints. Run without --dry-run to train."
            )
    notes = [fill(note, _NOTE_WIDTH) for note in report.notes]
    blocks += [_problems(report), *notes, _next_steps(report, folder)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _headline(report: RunReport) -> str:
    if report.continual is not None:
        names = ", ".join(map(language_name, report.continual.languages))
        return f"COMPASS · {report.project} · run {report.run_id}: continual study of {names}"
    counts = {name: 0 for name in _OUTCOMES}
    for language in report.languages:
        counts[language.status] += 1
    parts = [f"{count} {_OUTCOMES[name]}" for name, count in counts.items() if count]
    return f"COMPASS · {report.project} · run {report.run_id}: {', '.join(parts)}"


def arm_names(languages: Sequence[LanguageReport]) -> list[str]:
    """Return the arms that were scored, zero-shot first and COMPASS last."""
    names = list(dict.fromkeys(arm.arm for language in languages for arm in language.arms))
    order = {"zero-shot": 0, "target-only": 1, "random": 2, "compass": 99}
    return sorted(names, key=lambda name: (order.get(name, 50), name))


def _accuracy_table(report: RunReport) -> str:
    arms = arm_names(report.languages)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("language")
    for name in arms:
        table.add_column(_ARM_TITLES.get(name, name), justify="right")
    table.add_column("outcome")
    for language in report.languages:
        found = {arm.arm: arm for arm in language.arms}
        cells = [
            _percent(found[a].accuracy, found[a].low, found[a].high) if a in found else "–"
            for a in arms
        ]
        table.add_row(language.name, *cells, _OUTCOMES[language.status])
    if len(report.languages) > 1:
        table.add_section()
        for title, value in (("mean", "accuracy"), *_GROUPS.items()):
            table.add_row(title, *(_percent(_mean_of(report, arm, value)) for arm in arms), "")
    return _rendered(table)


def _mean_of(report: RunReport, arm: str, value: str) -> float | None:
    scores = [language.arm(arm) for language in report.languages]
    return mean([getattr(score, value) for score in scores if score])


def _mean_trivial(report: RunReport, name: str) -> float | None:
    return mean([language.trivial.get(name) for language in report.languages])


def _trivial_line(report: RunReport) -> str:
    """Return what needs no model at all, as a mean over languages."""
    names = dict.fromkeys(name for language in report.languages for name in language.trivial)
    parts = [
        name.replace("_", " ")
        + " "
        + _percent(mean([x.trivial.get(name) for x in report.languages]))
        for name in names
    ]
    return f"Without any model, mean over languages: {', '.join(parts)}." if parts else ""


def _selection_table(report: RunReport, estimates: Estimates) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = ("language", "clusters", "with a gap", "selected", "sources", "outcome")
    for name in (*names, *(("steps", "time", "disk") if estimates else ())):
        table.add_column(name, justify="left" if name in ("language", "outcome") else "right")
    for language in report.languages:
        table.add_row(
            language.name,
            str(len(language.clusters)),
            str(sum(row.gap > 0 for row in language.clusters)),
            str(sum(sum(row.values()) for row in language.source_counts.values())),
            str(len(language.source_counts)),
            _OUTCOMES[language.status],
            *_estimate_cells(estimates.get(language.language)),
        )
    return _rendered(table)


def _estimate_cells(estimate: Mapping[str, Any] | None) -> list[str]:
    if estimate is None:
        return []
    seconds, size = estimate["seconds"], estimate["bytes"]
    return [
        str(estimate["steps"]),
        "unknown" if seconds is None else duration(max(seconds, 1.0)),
        "unknown" if size is None else f"{size / 2**20:.1f} MiB",
    ]


def _cells_table(study: StudyReport) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = f"Accuracy in %, mean over {len(study.seeds)} seeds"
    table.add_column("language")
    for arm in study.arms:
        table.add_column(_ARM_TITLES.get(arm, arm), justify="right")
    for language in study.languages:
        cells = [cell for cell in study.cells if cell.language == language]
        name = language_name(language) if cells else f"{language_name(language)} (failed)"
        table.add_row(name, *_cell_means(cells, study.arms, "accuracy"))
    table.add_section()
    for title, value in (("mean", "accuracy"), *_GROUPS.items()):
        table.add_row(title, *_cell_means(study.cells, study.arms, value))
    return _rendered(table)


def _cell_means(cells: Sequence[StudyCell], arms: Sequence[str], value: str) -> list[str]:
    return [_percent(mean([getattr(c, value) for c in cells if c.arm == arm])) for arm in arms]


def _study_table(study: StudyReport) -> str:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{len(study.languages)} languages × {len(study.seeds)} seeds",
        title_justify="left",
    )
    for name in ("comparison", "items", "difference", "interval", "p", "p (Holm)", "d", "n"):
        table.add_column(name, justify="left" if name in ("comparison", "items") else "right")
    for row in study.comparisons:
        table.add_row(
            row.comparison,
            "all" if row.metric == "accuracy" else f"{row.metric} topics",
            _points(row.mean_difference),
            f"[{_points(row.low)}, {_points(row.high)}]",
            _p_value(row.p),
            _p_value(row.p_holm),
            "–" if row.cohens_d is None else f"{row.cohens_d:.2f}",
            str(row.n_languages),
        )
    return _rendered(table)


def continual_blocks(report: ContinualReport) -> list[str]:
    """Return what became of a continual study: its arms, its claims, its differences."""
    header, *rows = continual_rows(report)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{len(report.languages)} languages × {len(report.seeds)} seeds, "
        f"{report.n_stages - 1} shifts",
        title_justify="left",
    )
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    claims = [
        fill(f"{HOLDS[claim.met]}: {claim.text}: {claim.found}.", _NOTE_WIDTH)
        for claim in report.claims
    ]
    notes = [fill(note, _NOTE_WIDTH) for note in report.notes]
    return [_rendered(table, _WIDE), "\n".join(claims), "\n".join(notes)]


def _problems(report: RunReport) -> str:
    lines = [f"{lang.name}: {lang.error}" for lang in report.languages if lang.status == "failed"]
    lines += [f"{lang.name}: {text}" for lang in report.languages for text in lang.health_warnings]
    return "\n".join(lines)


def _next_steps(report: RunReport, folder: Path) -> str:
    example = report.languages[0].language if report.languages else "swh_Latn"
    steps = {"report": (folder / "report.html").as_uri()}
    if report.continual is None:
        steps |= {
            "selection": f"compass manifest -l {example}",
            "answer": f'compass generate -l {example} "…"',
        }
    steps |= report.links
    width = max(len(name) for name in steps)
    return "Look next:\n" + "\n".join(f"  {n:<{width}}  {text}" for n, text in steps.items())


def _percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if not is_number(value) or value is None:
        return "–"
    ends = "" if low is None or high is None else f" [{100 * low:.0f}–{100 * high:.0f}]"
    return f"{100 * value:.1f}{ends}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _rendered(table: Table, width: int = _WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")
