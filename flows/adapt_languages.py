"""Adapt several languages in parallel; a failed language never stops the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.task_runners import ThreadPoolTaskRunner

from compass_core.config import AdaptConfig
from flows.language_dag import Shared, adapt, prepare_shared
from flows.outcomes import collect, run_state
from tasks.reporting import finish_run, publish_language, start_run


@task(name="adapt", task_run_name="adapt-{language}", cache_policy=NO_CACHE)
def adapt_one(language: str, config: AdaptConfig, shared: Shared) -> dict[str, Any]:
    """Run the DAG of one language and show its tables in the interface."""
    outcome = adapt(language, config, shared)
    publish_language(outcome, config)
    return outcome


@flow(name="adapt-languages", flow_run_name="adapt-{config.project}")
def adapt_languages(config: AdaptConfig) -> State[Any]:
    """Select data, train an adapter and promote it if it is better, for every language.

    Ends as Completed, CompletedWithFailures (some languages failed) or Failed (all did).
    """
    run = start_run("adapt-languages", config)
    cells = [(language, config.seed) for language in config.languages]
    shared = prepare_shared(config, str(Path.cwd()), cells)
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(config.execution.max_parallel)
    with pool as runner:
        futures = {
            language: runner.submit(
                adapt_one, {"language": language, "config": config, "shared": shared}
            )
            for language in config.languages
        }
        outcomes = collect(futures, shared.refused)
    return run_state(finish_run(run, config, outcomes))
