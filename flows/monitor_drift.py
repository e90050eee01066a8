"""Watch what users ask, language by language; where it drifted, an event starts the update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from compass_core.config import AdaptConfig
from flows.outcomes import collect, run_state
from tasks.monitoring import monitor_language
from tasks.monitoring_report import finish_monitoring
from tasks.monitoring_text import nothing_watched, summary_line

NO_CHAMPION = "NoChampion"
_NOTHING_WATCHED = (
    "Nothing is watched. Run `compass adapt` first; if an adapter is in service, this run looks at "
    "another COMPASS_HOME, MLFLOW_TRACKING_URI or `base.model` than the run that promoted it."
)


@task(name="monitor", task_run_name="monitor-{language}", cache_policy=NO_CACHE)
def monitor_one(language: str, config: AdaptConfig, base_folder: str) -> dict[str, Any]:
    """Read the log of one language, decide on its windows, send what has to be sent."""
    return monitor_language(language, config, base_folder)


@flow(name="monitor-drift", flow_run_name="monitor-{config.project}")
def monitor_drift(config: AdaptConfig) -> State[Any]:
    """Read the usage log, decide on every window that has closed, and announce drifts.

    Ends as Completed, CompletedWithFailures (some languages failed), NoChampion (no language has
    one, so nothing is watched) or Failed (all did). A language without a champion beside others, or
    that another monitor is at work on, is told and is no failure.
    """
    base_folder = str(Path.cwd())
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(config.execution.max_parallel)
    with pool as runner:
        futures = {
            language: runner.submit(
                monitor_one, {"language": language, "config": config, "base_folder": base_folder}
            )
            for language in config.languages
        }
        outcomes = collect(futures)
    record = finish_monitoring(outcomes)
    if nothing_watched(outcomes):
        message = f"{summary_line(outcomes)}. {_NOTHING_WATCHED}"
        return Completed(name=NO_CHAMPION, message=message, data=record["run_id"])
    state = run_state(record)
    if state.name == "Completed":
        return Completed(message=summary_line(outcomes), data=record["run_id"])
    return state
