"""From the cells of a continual study to its scores, costs, claims and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from prefect.artifacts import create_markdown_artifact

from compass_core.config import ContinualStudyConfig
from compass_core.evaluation.continual import Grid, describe_differences, judge, summarise
from compass_core.languages import language_name
from compass_core.records import ArtifactRef
from compass_core.report.continual_data import ContinualCell, ContinualCost, ContinualReport
from compass_core.report.continual_text import continual_markdown
from compass_core.storage import read_array, read_json, read_table
from tasks.caching import as_ref
from tasks.continual import FROZEN, SLICES
from tasks.outage import tell_server
from tasks.settings import open_store

Cells = Mapping[tuple[str, int], Mapping[str, Any]]


def continual_report(config: ContinualStudyConfig, cells: Cells) -> ContinualReport:
    """Return every score and cost, and what they say; a failed cell has none."""
    scores: list[ContinualCell] = []
    costs: list[ContinualCost] = []
    for (language, seed), outcome in cells.items():
        if outcome["status"] == "failed":
            continue
        for arm, stages in outcome["arms"].items():
            for stage, made in enumerate(stages.values()):
                refs = {name: as_ref(ref) for name, ref in made.items()}
                costs.append(_cost(language, seed, arm, stage, refs))
                accuracies = slice_accuracies(
                    refs["evaluate"], as_ref(outcome["artifacts"]["test"])
                )
                scores += [
                    ContinualCell(language, seed, arm, stage, number, accuracy)
                    for number, accuracy in enumerate(accuracies)
                ]
    grid = Grid(scores, costs, config.arms, config.seeds, config.n_shifts + 1)
    level = config.evaluation.confidence
    return ContinualReport(
        languages=grid.languages,
        seeds=list(config.seeds),
        arms=list(config.arms),
        n_stages=config.n_shifts + 1,
        cells=[cell for cell in scores if cell.language in grid.languages],
        costs=[cost for cost in costs if cost.language in grid.languages],
        summary=summarise(grid, level),
        claims=judge(grid, level),
        confidence=level,
        notes=_notes(config, grid, cells, level),
    )


def slice_accuracies(evaluation: ArtifactRef, test: ArtifactRef) -> list[float]:
    """Return the share of right answers on each slice, in order."""
    store = open_store()
    numbers = read_array(store.folder(test) / SLICES)
    items = read_table(store.folder(evaluation) / "items.parquet", ["correct"])
    correct = np.asarray(items["correct"].to_pylist(), dtype=np.float64)
    means = np.bincount(numbers, correct) / np.bincount(numbers)
    return [float(mean) for mean in means]


def _cost(
    language: str, seed: int, arm: str, stage: int, refs: Mapping[str, ArtifactRef]
) -> ContinualCost:
    """Return what one stage of an arm took; the frozen arm takes nothing after stage 0."""
    if arm == FROZEN and stage:
        return ContinualCost(language, seed, arm, stage, 0, seconds=0.0)
    store = open_store()
    facts = read_json(store.folder(refs["adapter"]) / "training.json")
    seconds = float(store.manifest(refs["adapter"])["provenance"]["seconds"])
    tokens_fisher = 0
    if "fisher" in refs:
        measured = store.manifest(refs["fisher"])["provenance"]
        tokens_fisher = int(measured["tokens"])
        seconds += float(measured["seconds"])
    return ContinualCost(
        language,
        seed,
        arm,
        stage,
        tokens_task=int(facts["tokens"]),
        tokens_replay=int(facts.get("tokens_replay", 0)),
        tokens_fisher=tokens_fisher,
        seconds=seconds,
    )


def _notes(config: ContinualStudyConfig, grid: Grid, cells: Cells, level: float) -> list[str]:
    update = config.update
    notes = [
        f"Equation (6) with λ = {update.ewc_strength:g}, β = {update.replay_strength:g}, Fisher "
        f"information divided by its {update.fisher_scale}"
        + (" (raw)" if update.fisher_scale == "raw" else "")
        + f"; {update.replay_share:.0%} of the old examples are replayed or rehearsed.",
        "Full retraining starts anew from everything so far with the epochs of the first training, "
        "not its steps. Cost leaves out the first training, which all arms share.",
    ]
    notes += describe_differences(grid, level)
    failed = sorted({code for (code, _), outcome in cells.items() if outcome["status"] == "failed"})
    if failed:
        names = ", ".join(map(language_name, failed))
        notes.append(f"Left out, because a sequence of theirs failed: {names}.")
    return notes


def continual_outcomes(config: ContinualStudyConfig, cells: Cells) -> dict[str, dict[str, Any]]:
    """Return per language its sequences by seed, or the first failure."""
    outcomes: dict[str, dict[str, Any]] = {}
    for language in config.languages:
        by_seed = {str(seed): dict(cells[language, seed]) for seed in config.seeds}
        failed = [outcome for outcome in by_seed.values() if outcome["status"] == "failed"]
        outcomes[language] = (
            failed[0] | {"language": language}
            if failed
            else {"language": language, "status": "scored", "seeds": by_seed}
        )
    return outcomes


def publish_continual(report: ContinualReport) -> None:
    """Show the table of arms in the Prefect interface."""
    tell_server(
        create_markdown_artifact,
        continual_markdown(report),
        key="continual-study",
        description="Continual study",
    )
