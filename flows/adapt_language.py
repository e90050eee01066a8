"""Adapt one language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from compass_core.config import AdaptLanguageConfig
from flows.language_dag import adapt, prepare_shared
from flows.outcomes import run_state
from tasks.reporting import finish_run, publish_language, start_run


@flow(name="adapt-language", flow_run_name="adapt-{config.language}")
def adapt_language(config: AdaptLanguageConfig) -> State[Any]:
    """Select data, train an adapter and promote it if it is better, for one language."""
    run = start_run("adapt-language", config)
    shared = prepare_shared(config, str(Path.cwd()), [(config.language, config.seed)])
    outcome = adapt(config.language, config, shared)
    publish_language(outcome, config)
    return run_state(finish_run(run, config, {config.language: outcome}))
