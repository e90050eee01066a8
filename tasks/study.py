"""From the cells of a study to its table and its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compass_core.config import Recipe, StudyConfig
from compass_core.evaluation.study import compare_arms
from compass_core.report.data import StudyCell, StudyReport
from tasks.language_report import ZERO_SHOT, scored_arms

Cells = Mapping[tuple[str, int], Mapping[str, Any]]


def study_recipe(config: StudyConfig, seed: int) -> Recipe:
    """Return the recipe of one seed: the main strategy and all others as baselines."""
    values = {name: getattr(config, name) for name in Recipe.model_fields}
    others = tuple(s for s in config.strategies if s != config.selection.strategy)
    return Recipe(**(values | {"seed": seed, "baselines": others}))


def main_outcomes(config: StudyConfig, cells: Cells) -> dict[str, dict[str, Any]]:
    """Return per language the outcome of the first seed, or the failure of any seed."""
    outcomes = {}
    for language in config.languages:
        of_language = [dict(cells[language, seed]) for seed in config.seeds]
        failed = [outcome for outcome in of_language if outcome["status"] == "failed"]
        outcomes[language] = (failed or of_language)[0] | {"language": language}
    return outcomes


def study_report(config: StudyConfig, cells: Cells) -> StudyReport:
    """Return every cell and the comparisons of the main strategy with all other arms."""
    found = [
        StudyCell(
            language=language,
            seed=seed,
            arm=arm.arm,
            accuracy=arm.accuracy,
            missing=arm.missing,
            covered=arm.covered,
        )
        for (language, seed), outcome in cells.items()
        if outcome["status"] != "failed"
        for arm in scored_arms(outcome, study_recipe(config, seed))
    ]
    main = config.selection.strategy
    others = [ZERO_SHOT, *(s for s in config.strategies if s != main)]
    return StudyReport(
        languages=list(config.languages),
        seeds=list(config.seeds),
        arms=[*others, main],
        cells=found,
        comparisons=compare_arms(found, main, others, level=config.evaluation.confidence),
    )
