"""The study: strategies compared at equal budgets and optimiser steps, over languages and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from compass_core.config import StudyConfig
from flows.engines import check_engine, run_cells
from flows.language_dag import Shared, adapt, prepare_shared
from flows.outcomes import run_state
from tasks.reporting import finish_run, start_run
from tasks.study import main_outcomes, study_recipe, study_report
from tasks.workers import Site, at


@task(name="study-cell", task_run_name="study-{language}-{seed}", cache_policy=NO_CACHE)
def study_cell(
    language: str, seed: int, config: StudyConfig, shared: Shared, site: Site | None = None
) -> dict[str, Any]:
    """Run every arm for one language and seed; nothing is registered."""
    with at(site, language):
        return adapt(language, study_recipe(config, seed), shared, promote=False)


@flow(name="compare-strategies", flow_run_name="study-{config.project}")
def compare_strategies(config: StudyConfig) -> State[Any]:
    """Compare selection strategies; re-running continues where it stopped."""
    check_engine(config.execution)
    run = start_run("compare-strategies", config)
    grid = [(language, seed) for seed in config.seeds for language in config.languages]
    shared = prepare_shared(study_recipe(config, config.seeds[0]), str(Path.cwd()), grid)
    given = {
        (language, seed): {"language": language, "seed": seed, "config": config, "shared": shared}
        for language, seed in grid
    }
    cells = run_cells(study_cell, given, config.execution, run.folder, shared.refused)
    outcomes = main_outcomes(config, cells)
    return run_state(finish_run(run, config, outcomes, study_report(config, cells)))
