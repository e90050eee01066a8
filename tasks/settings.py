"""Where state lives, and the environment of Prefect and MLflow that follows from it.

`prepare_environment` has to run before Prefect is imported, because Prefect reads its settings on
import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from compass_core.forgotten import Forgotten
from compass_core.storage import ArtifactStore

_PRIVATE = 0o700

_PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "200",
}
"""Quiet, private, and batched: one row per commit makes a local server the bottleneck."""

_OTHER_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # A trainer that is stopped in the middle cannot tidy up; its semaphores are freed all the same.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}


def compass_home() -> Path:
    """Return the folder of all state (`COMPASS_HOME`, default ``./.compass``)."""
    return Path(os.environ.get("COMPASS_HOME", ".compass")).expanduser().resolve()


def open_store() -> ArtifactStore:
    """Open the artefact store under `compass_home`."""
    return ArtifactStore(compass_home() / "store")


def runs_folder() -> Path:
    """Return the folder that holds one folder per run."""
    return compass_home() / "runs"


def usage_folder(language: str) -> Path:
    """Return the folder of what was observed of a language (canonical code)."""
    return compass_home() / "usage" / language


def is_forgotten() -> Callable[[str], bool] | None:
    """Return what tells of an id whether its rows must not be used; None where there is none."""
    return Forgotten(compass_home()).test()


def tracking_uri() -> str:
    """Return MLflow's address (`MLFLOW_TRACKING_URI`, default a SQLite file under the home)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{compass_home() / 'mlflow.db'}"


def prepare_environment() -> None:
    """Set the defaults of Prefect and MLflow; whatever the user has set already wins."""
    home = compass_home()
    prefect_home = home / "prefect"
    prefect_home.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
    prefect_home.chmod(_PRIVATE)
    os.environ.setdefault("COMPASS_HOME", str(home))
    os.environ.setdefault("PREFECT_HOME", str(prefect_home))
    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(prefect_home / "results"))
    for name, value in (_PREFECT_DEFAULTS | _OTHER_DEFAULTS).items():
        os.environ.setdefault(name, value)
