"""A continual study as short text: a Markdown table for Prefect, rows for a terminal."""

from __future__ import annotations

from collections.abc import Callable

from compass_core.report.continual_data import ContinualReport, Interval
from compass_core.report.continual_section import HOLDS
from compass_core.report.data import is_number
from compass_core.report.markup import number, percent, points
from compass_core.report.plots import arm_label, arm_order
from compass_core.report.text import markdown_text


def continual_rows(report: ContinualReport, language: str = "") -> list[list[str]]:
    """Return header and one row per arm as plain text, over all languages or of one."""
    rows = [["Arm", "Learning", "Forgetting", "Final accuracy", "Tokens", "Cost of full"]]
    for arm in arm_order(report.arms):
        row = report.arm(arm, language)
        if row is None:
            continue
        ends = row.intervals
        rows.append(
            [
                arm_label(arm),
                _with_ends(points(row.learning), ends.get("learning"), points),
                _with_ends(points(row.forgetting), ends.get("forgetting"), points),
                _with_ends(percent(row.final_accuracy), ends.get("final_accuracy"), percent),
                number(None if row.cost_tokens is None else round(row.cost_tokens)),
                percent(row.cost_share_of_full, 0),
            ]
        )
    return rows


def continual_markdown(report: ContinualReport) -> str:
    """Return the table of arms and what became of the claims."""
    header, *rows = continual_rows(report)
    lines = [
        "## Continual study",
        "",
        f"{len(report.languages)} languages, {len(report.seeds)} seeds, "
        f"{max(0, report.n_stages - 1)} shifts. Learning and forgetting in points.",
        "",
        f"| {' | '.join(header)} |",
        f"|:--|{'--:|' * (len(header) - 1)}",
        *(f"| {' | '.join(markdown_text(cell) for cell in row)} |" for row in rows),
        "",
        *(
            f"- {markdown_text(claim.text)}: {markdown_text(claim.found)}: **{HOLDS[claim.met]}**"
            for claim in report.claims
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _with_ends(text: str, ends: Interval | None, write: Callable[[float], str]) -> str:
    if ends is None or not all(is_number(end) for end in ends):
        return text
    return f"{text} [{write(ends[0])}, {write(ends[1])}]"
