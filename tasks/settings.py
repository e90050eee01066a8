"""Where state lives, and the environment of Prefect and MLflow that follows from it.

`prepare_environment` has to run before Prefect is imported, because Prefect reads its settings on
import.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from compass_core.errors import StoreError
from compass_core.forgotten import Forgotten
from compass_core.object_store import is_url
from compass_core.storage import VERSION_FILE, ArtifactStore

if TYPE_CHECKING:
    from compass_core.manifests import Catalog

_PRIVATE = 0o700

_PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Asked once per run by ourselves; asked in every thread, a restart of the server fails a stage.
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
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
    return real_path(os.environ.get("COMPASS_HOME", ".compass"))


def real_path(named: str | Path) -> Path:
    """Return a path without links and ``~``.

    Every stage asks, so a process goes on using what an absolute path led to when it first asked.
    """
    path = Path(named)
    return _resolved(path) if path.is_absolute() else path.expanduser().resolve()


@functools.lru_cache(64)
def _resolved(path: Path) -> Path:
    return path.resolve()


def store_address() -> str:
    """Return where artefacts are kept (`COMPASS_STORE`, default ``<home>/store``)."""
    named = os.environ.get("COMPASS_STORE", "").strip()
    if is_url(named):
        return named
    return str(real_path(named.removeprefix("file://") or compass_home() / "store"))


def store_root() -> Path:
    """Return the folder of the artefact store, or of its mirror here."""
    address = store_address()
    return compass_home() / "store" if is_url(address) else Path(address)


def store_is_shared() -> bool:
    """Return whether other homes may use the same store, so that nobody here knows all its uses."""
    return store_address() != str(compass_home() / "store")


def open_store() -> ArtifactStore:
    """Open the artefact store: a folder, or a mirror of what an address of object storage has."""
    address = store_address()
    if not is_url(address):
        try:
            told = (Path(address) / VERSION_FILE).stat()
        except OSError:
            return ArtifactStore(Path(address))  # makes it, or says why it cannot
        return _opened(address, told.st_ino, told.st_mtime_ns)
    from compass_core.remote_store import RemoteStore

    return RemoteStore(store_root(), address)


@functools.lru_cache(8)
def _opened(address: str, _inode: int, _modified: int) -> ArtifactStore:
    """Return a folder's store; its version is read again when the file that names it is new."""
    return ArtifactStore(Path(address))


def known_store() -> ArtifactStore:
    """Open the artefact store where there is one.

    Raises:
        StoreError: nothing was ever kept.
    """
    if not is_url(store_address()) and not store_root().is_dir():
        raise StoreError(
            f"There is nothing under {store_root().parent} yet. Run `compass adapt` first, or "
            "point COMPASS_HOME to the folder of an earlier run."
        )
    return open_store()


def open_catalog() -> Catalog:
    """Return the catalogue of this home over its artefact store."""
    from compass_core.manifests import Catalog

    return Catalog(compass_home(), known_store)


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
    """Return MLflow's address (`MLFLOW_TRACKING_URI`, default a SQLite file under the home).

    ``postgresql://`` without a driver means the one that the extra `postgres` installs.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{compass_home() / 'mlflow.db'}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", named)


def has_credentials(address: str) -> bool:
    """Say whether an address has a user, a password or settings, which may be secrets."""
    parts = urlsplit(address)
    return "@" in parts.netloc or bool(parts.query)


def without_password(uri: str) -> str:
    """Return an address as it may be shown: with ``***`` for its password.

    Examples:
        >>> without_password("postgresql://mlflow:s3cret@db:5432/mlflow")
        'postgresql://mlflow:***@db:5432/mlflow'
        >>> without_password("postgresql://db/mlflow?user=mlflow&password=s3cret")
        'postgresql://db/mlflow?user=mlflow&password=***'
    """
    hidden = re.sub(r"(//[^:/?#]*):[^/?#]*@", r"\1:***@", uri)
    return re.sub(r"(?i)((?:password|passwd|secret|token)=)[^&]*", r"\1***", hidden)


def prepare_environment() -> None:
    """Set the defaults of Prefect and MLflow; whatever the user has set already wins."""
    home = compass_home()
    prefect_home = home / "prefect"
    prefect_home.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
    prefect_home.chmod(_PRIVATE)
    os.environ.setdefault("COMPASS_HOME", str(home))
    if os.environ.get("COMPASS_STORE"):
        os.environ["COMPASS_STORE"] = store_address()  # a process elsewhere must find the same
    os.environ.setdefault("PREFECT_HOME", str(prefect_home))
    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(prefect_home / "results"))
    for name, value in (_PREFECT_DEFAULTS | _OTHER_DEFAULTS).items():
        os.environ.setdefault(name, value)
