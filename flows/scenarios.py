"""``compass scenarios``: does the selection find what was planted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.inspecting import print_table
from flows.terminal import OUT


def run_cases(
    path: Path, data: str, *, seeds: int, output: Path | None, strategies: Sequence[str]
) -> None:
    """Run every case of a file and print what each strategy over-represents."""
    from tasks.scenarios import run_scenarios

    for told in run_scenarios(path, data, seeds=seeds, output=output, strategies=strategies):
        name = f"{told['name']} ({told['kind']})"
        if "skipped" in told:
            OUT.print(f"{name}: skipped, {told['skipped']}", markup=False, soft_wrap=True)
            continue
        OUT.print(
            f"{name}: planted {', '.join(told['gap_topics'])}; {told['n_pool']:,} pool rows; "
            f"encoder fitted on {', '.join(told['encoder'])}",
            markup=False,
            soft_wrap=True,
        )
        print_table(
            ("strategy", "planted topics", "other topics", "lowest", "highest", "holds"),
            [_row(told, strategy) for strategy in strategies],
        )
    OUT.print(
        "Mean over topics of (share in the selection / share in the pool), mean over the seeds;\n"
        "lowest and highest of the planted topics over the seeds. A seed holds when the planted\n"
        "topics are above 1 and above the others.",
        markup=False,
        soft_wrap=True,
    )
    if output is not None:
        OUT.print(f"Selected ids: {output}", markup=False, soft_wrap=True)


def _row(told: Mapping[str, Any], strategy: str) -> tuple[Any, ...]:
    own = [outcome for outcome in told["outcomes"] if outcome["strategy"] == strategy]
    planted = [outcome["lift_gap"] for outcome in own]
    others = [outcome["lift_other"] for outcome in own]
    return (
        strategy,
        f"{sum(planted) / len(planted):.2f}",
        f"{sum(others) / len(others):.2f}",
        f"{min(planted):.2f}",
        f"{max(planted):.2f}",
        f"{sum(outcome['holds'] for outcome in own)} of {len(own)}",
    )
