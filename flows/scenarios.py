"""``compass scenarios``: do selection and drift check find what was planted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.inspecting import print_table
from flows.terminal import OUT


def run_cases(
    path: Path, data: str, *, seeds: int, output: Path | None, strategies: Sequence[str]
) -> None:
    """Run every case of a file and print what was found."""
    from tasks.scenarios import run_scenarios

    kinds = set()
    for told in run_scenarios(path, data, seeds=seeds, output=output, strategies=strategies):
        kinds.add("windows" in told)
        if "windows" in told:
            _print_drift_case(told)
        else:
            _print_selection_case(told, strategies)
    if False in kinds:
        _print(
            "Mean over topics of (share in the selection / share in the pool), mean over the "
            "seeds;\nlowest and highest of the planted topics over the seeds. A seed holds when "
            "the\nplanted topics are above 1 and above the others."
        )
    if output is not None:
        _print(f"Results: {output}")


def _print_selection_case(told: Mapping[str, Any], strategies: Sequence[str]) -> None:
    _print(
        f"{told['name']} ({told['kind']}): planted {', '.join(told['gap_topics'])}; "
        f"{told['n_pool']:,} pool rows; encoder fitted on {', '.join(told['encoder'])}"
    )
    print_table(
        ("strategy", "planted topics", "other topics", "lowest", "highest", "holds"),
        [_row(told, strategy) for strategy in strategies],
    )


def _print_drift_case(told: Mapping[str, Any]) -> None:
    settings = told["settings"]
    _print(
        f"{told['name']} ({told['kind']}): {settings['n_clusters']} clusters fitted on "
        f"{told['n_fitted']:,} rows of other languages, alpha {settings['alpha']:g}, "
        f"{settings['decision']}; encoder fitted on {', '.join(told['encoder'])}"
    )
    print_table(
        ("window", "prompts", "score", "threshold", "p", "novel", "alarm"),
        [_window(number, window) for number, window in enumerate(told["windows"])],
    )
    _print(f"As expected: {'yes' if told['holds'] else 'no'}.")


def _window(number: int, window: Mapping[str, Any]) -> tuple[Any, ...]:
    if window["status"] == "insufficient":
        return (number, window["n_current"], "", "", "", "", "insufficient")
    return (
        number,
        window["n_current"],
        f"{window['score']:.3f}",
        f"{window['threshold']:.3f}",
        f"{window['p_value']:.5f}",
        f"{window['novel_current']:.2f}",
        "alarm" if window["alarm"] else "",
    )


def _print(text: str) -> None:
    OUT.print(text, markup=False, soft_wrap=True)


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
