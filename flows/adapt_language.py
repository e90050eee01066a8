"""Adapt one language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from compass_core.config import AdaptLanguageConfig
from flows.language_dag import adapt, prepare_shared
from flows.outcomes import run_state
from tasks.artifacts import publish_language, run_slug
from tasks.exclusion import language_slot
from tasks.limits import check_training_limit
from tasks.live_progress import live_progress
from tasks.outcomes import is_part, keep_outcome
from tasks.progress import beat
from tasks.promotion import check_registry
from tasks.reporting import failed_outcome, finish_run, start_run


@flow(name="adapt-language", flow_run_name="adapt-{config.language}")
def adapt_language(config: AdaptLanguageConfig) -> State[Any]:
    """Select data, train an adapter and promote it if it is better, for one language."""
    if is_part():
        return _part(config)
    run = start_run("adapt-language", config)
    try:
        outcome = _adapt(config)
    except Exception as error:  # told like a language of many: with a record, a report and a remedy
        outcome = failed_outcome(config.language, error)
    return run_state(finish_run(run, config, {config.language: outcome}))


def _part(config: AdaptLanguageConfig) -> State[Any]:
    """Leave the outcome to the run of several languages that started this one and reports it."""
    try:
        outcome = _adapt(config)
    except Exception as error:
        keep_outcome(failed_outcome(config.language, error))
        raise
    keep_outcome(outcome)
    return Completed(message=outcome["status"])


def _adapt(config: AdaptLanguageConfig) -> dict[str, Any]:
    with live_progress(run_slug(config), [config.language]):
        try:
            return _outcome(config)
        except Exception as error:
            beat(config.language, "adapt", "failed", detail=str(error))
            raise


def _outcome(config: AdaptLanguageConfig) -> dict[str, Any]:
    check_training_limit(config.execution)
    if not config.execution.dry_run:
        check_registry()
    shared = prepare_shared(config, str(Path.cwd()), [(config.language, config.seed)])
    with language_slot(config.language):
        outcome = adapt(config.language, config, shared)
        publish_language(outcome, config)
    return outcome
