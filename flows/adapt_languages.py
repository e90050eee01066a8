"""Adapt several languages in parallel; a failed language never stops the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from compass_core.config import AdaptConfig
from flows.engines import check_engine, run_cells
from flows.fanout import run_children
from flows.language_dag import Shared, adapt, prepare_shared
from flows.outcomes import run_state
from tasks.artifacts import pages_on_the_side, publish_language, run_slug
from tasks.exclusion import language_slot
from tasks.live_progress import live_progress
from tasks.promotion import check_registry
from tasks.reporting import finish_run, start_run
from tasks.workers import Site, at


@task(name="adapt", task_run_name="adapt-{language}", cache_policy=NO_CACHE)
def adapt_one(
    language: str, config: AdaptConfig, shared: Shared, site: Site | None = None
) -> dict[str, Any]:
    """Run the DAG of one language and show its tables in the interface."""
    with at(site, language), language_slot(language):
        outcome = adapt(language, config, shared)
        publish_language(outcome, config)
    return outcome


@flow(name="adapt-languages", flow_run_name="adapt-{config.project}")
def adapt_languages(config: AdaptConfig) -> State[Any]:
    """Select data, train an adapter and promote it if it is better, for every language.

    Ends as Completed, CompletedWithFailures (some languages failed) or Failed (all did).
    """
    check_engine(config.execution, deployments=True)
    with pages_on_the_side():
        return run_state(_adapt(config))


def _adapt(config: AdaptConfig) -> dict[str, Any]:
    run = start_run("adapt-languages", config)
    if not config.execution.dry_run:
        check_registry()
    cells = [(language, config.seed) for language in config.languages]
    with live_progress(run_slug(config), config.languages):
        shared = prepare_shared(config, str(Path.cwd()), cells)
        if config.execution.fan_out == "deployments":
            outcomes = run_children(config, shared.refused)
        else:
            given = {
                language: {"language": language, "config": config, "shared": shared}
                for language in config.languages
            }
            outcomes = run_cells(adapt_one, given, config.execution, run.folder, shared.refused)
        return finish_run(run, config, outcomes)
