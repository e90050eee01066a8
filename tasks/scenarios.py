"""Cases with a planted answer, run through the product's selection and its drift check."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compass_core.errors import ConfigError, DataError
from compass_core.scenarios import (
    Case,
    DataFolder,
    check_drift_case,
    prepare_case,
    prepare_drift_case,
    read_cases,
    select_case,
)
from compass_core.selection.registry import strategy_names
from compass_core.storage import write_json

DEFAULT_DATA = "../shared/data"


def run_scenarios(
    path: Path, data: str, *, seeds: int, output: Path | None, strategies: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Run every case of a file; yield what is to be told of each as it is done.

    Args:
        path: File of cases.
        data: Folder of the data files; empty means ``COMPASS_TEST_DATA``, else ``../shared/data``.
        seeds: Seeds 0 to `seeds` − 1.
        output: Where the selected ids and the checks of windows are written; everything done so far
            is in it after each case.
        strategies: Strategies to run.

    Yields:
        Per case ``name``, ``kind``, ``encoder`` (what it was fitted on) and ``outcomes``, of a
        drift case ``windows`` and ``holds`` instead.

    Raises:
        InputError: file, folder, or rows cannot be used.
    """
    unknown = sorted(set(strategies) - set(strategy_names()))
    if unknown:
        known = ", ".join(strategy_names())
        raise ConfigError(f"Not a strategy: {', '.join(unknown)}. Choose of {known}.", code="E42")
    folder = DataFolder(data_folder(data))
    cases = read_cases(path)
    results: list[dict[str, Any]] = []
    for case in cases:
        if case.selects:
            told, found = _run_case(case, folder, seeds, strategies)
        else:
            told, found = _run_drift_case(case, folder)
        results += found
        if output is not None:
            write_json(output, results)
        yield told


def data_folder(data: str) -> Path:
    """Return the folder of the data files.

    Raises:
        DataError: it does not exist.
    """
    folder = Path(data or os.environ.get("COMPASS_TEST_DATA", DEFAULT_DATA)).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist. Name the folder of the data files with --data.", code="E01"
        )
    return folder


def _run_case(
    case: Case, folder: DataFolder, seeds: int, strategies: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="compass-scenario-") as work:
        prepared = prepare_case(case, folder, Path(work))
    outcomes = [
        select_case(prepared, strategy, seed) for strategy in strategies for seed in range(seeds)
    ]
    told = _told(
        case,
        encoder=prepared.encoder_rows,
        n_pool=len(prepared.pool),
        gap_topics=list(case.gap_topics),
        outcomes=[
            {
                "strategy": outcome.strategy,
                "seed": outcome.seed,
                "lift_gap": outcome.lift_gap,
                "lift_other": outcome.lift_other,
                "holds": outcome.holds,
            }
            for outcome in outcomes
        ],
    )
    return told, [outcome.to_dict() for outcome in outcomes]


def _run_drift_case(case: Case, folder: DataFolder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="compass-scenario-") as work:
        prepared = prepare_drift_case(case, folder, Path(work))
    outcome = check_drift_case(prepared)
    told = _told(
        case,
        encoder=prepared.encoder_rows,
        n_fitted=prepared.n_fitted,
        settings=case.drift.model_dump(),
        windows=[window.report.to_dict() | {"alarm": window.alarm} for window in outcome.windows],
        holds=outcome.holds,
    )
    return told, [outcome.to_dict()]


def _told(case: Case, **facts: Any) -> dict[str, Any]:
    return {"name": case.name, "kind": case.kind, **facts}
