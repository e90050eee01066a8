"""MLflow's tracking store: one run per language and attempt, addressed by id only.

MLflow's "active run" belongs to one thread and does not follow Prefect's, so every function here
takes a run id. The store is SQLite by default; its schema is created once under a lock, because
parallel first starts crash otherwise. mlflow itself is imported on first use: flows must start
quickly. Cost of the choice: nothing of MLflow's fluent interface (autologging, system metrics).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compass_core.errors import InputError, TransientError
from tasks.tracking_schema import initialise_store

EXPERIMENT_KIND = "custom_model_development"
"""Tag value that gives the MLflow interface its training layout."""

LANGUAGE_TAG = "language"
ATTEMPT_TAG = "compass.attempt"
MAX_PARAM_LENGTH = 1_000
MAX_TAG_LENGTH = 4_000
MAX_DIGEST_LENGTH = 36
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1_000
_RESERVED_COLUMNS = ("step", "seconds")
_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_UNSAFE_KEY = re.compile(r"[^0-9A-Za-z_\-. /]")
_RETRYABLE = frozenset(
    {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
)
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""What every process of ours wants of MLflow: no telemetry, no pickle, no chatter."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Half a minute per call, where MLflow waits for four; the task is tried again, too."""

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
DatasetRow = tuple[str, str, str, str, int]
"""(name, digest, source, context, rows) of one dataset input."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One tracked run, as `runs_of` returns it.

    Attributes:
        run_id: MLflow's id.
        name: Name shown in the interface.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: Start, in milliseconds since 1970 (UTC).
        tags: Tags without MLflow's own.
        params: Parameters.
        metrics: Last value of each metric.
    """

    run_id: str
    name: str
    status: str
    started: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Connection:
    tracking_uri: str
    artifact_root: Path


_mutex = threading.Lock()
_connections: list[_Connection] = []


def default_tracking_uri(home: Path) -> str:
    """Return the SQLite address of the tracking store under `home`."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


def configure(tracking_uri: str, artifact_root: Path) -> None:
    """Point this process at a tracking store; call it before anything else here.

    Also sets the environment, so that child processes inherit it. Calling it again with the same
    values does nothing; with other values it switches over (runs in flight keep their ids).

    Args:
        tracking_uri: ``sqlite:///…``, another SQLAlchemy address, or ``http(s)://…``.
        artifact_root: Folder of artefacts and of the registry's locks. A tracking server keeps its
            own artefacts; then the folder holds the locks alone.
    """
    wanted = _Connection(tracking_uri, artifact_root.resolve())
    with _mutex:
        if _connections != [wanted]:
            _switch_to(wanted)
    # Outside the mutex but for every caller: a second thread must wait for the schema, too.
    initialise_store(tracking_uri, wanted.artifact_root)


def _switch_to(wanted: _Connection) -> None:
    wanted.artifact_root.mkdir(parents=True, exist_ok=True)
    os.environ.update(_ENVIRONMENT)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_TRACKING_URI"] = wanted.tracking_uri
    os.environ["MLFLOW_REGISTRY_URI"] = wanted.tracking_uri
    for noisy in ("mlflow", "alembic", "alembic.runtime.migration"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It prints a traceback of a locked database, whose error is raised and told by us.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    import mlflow

    mlflow.set_tracking_uri(wanted.tracking_uri)
    mlflow.set_registry_uri(wanted.tracking_uri)
    _connections[:] = [wanted]


def connection() -> _Connection:
    """Return where this process is pointed at.

    Raises:
        InputError: `configure` was not called in this process.
    """
    if not _connections:
        raise InputError("MLflow is not configured in this process: call tracking.configure first.")
    return _connections[-1]


def client() -> Any:
    """Return an `MlflowClient` of the configured store (cheap; engines are shared)."""
    uri = connection().tracking_uri
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Turn MLflow's exceptions into ours: what passes may be retried, the rest may not.

    Raises:
        TransientError: the store was busy or unreachable.
        InputError: MLflow refused the call for good.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = str(error).split("\n", maxsplit=1)[0][:300]
        if error.error_code in _RETRYABLE:
            raise TransientError(f"MLflow could not {action}: {text}") from error
        raise InputError(f"MLflow refused to {action}: {text}", code="E91") from error


def experiment_id(experiment: str) -> str:
    """Return the id of `experiment`, creating it where it does not exist yet."""
    from mlflow.exceptions import MlflowException

    tracker = client()
    with mlflow_errors(f"open the experiment {experiment!r}"):
        found = tracker.get_experiment_by_name(experiment)
        if found is None:
            try:
                return str(
                    tracker.create_experiment(
                        experiment,
                        artifact_location=_artifact_location(experiment),
                        tags={"mlflow.experimentKind": EXPERIMENT_KIND},
                    )
                )
            except MlflowException as error:
                # Another process created it between the two calls.
                found = tracker.get_experiment_by_name(experiment)
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if found.lifecycle_stage == "deleted":
            tracker.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def _artifact_location(experiment: str) -> str | None:
    here = connection()
    if here.tracking_uri.startswith(("http://", "https://")):
        return None
    folder = re.sub(r"[^0-9A-Za-z_-]+", "-", experiment).strip("-") or "experiment"
    return (here.artifact_root / folder).as_uri()


def start_run(
    experiment: str,
    run_name: str,
    *,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    attempt: str = "",
) -> str:
    """Open a run and return its id.

    Args:
        experiment: Name of the experiment; created where it does not exist.
        run_name: Name shown in the interface.
        tags: Give ``language`` here, so that `runs_of` finds the run.
        params: Nested mappings become dotted names; values are cut at `MAX_PARAM_LENGTH`.
        attempt: Identity of this attempt (for example run id and language). A run that already
            carries it is returned instead of a second one, so a retried task opens no twin; one
            that is finished stays as it is.
    """
    tracker = client()
    experiment_number = experiment_id(experiment)
    with mlflow_errors(f"start the run {run_name!r}"):
        found = _runs_of_attempt(tracker, experiment_number, attempt)
        if not found:
            all_tags = {**_text_values(tags), "mlflow.source.name": "compass"}
            if attempt:
                all_tags[ATTEMPT_TAG] = attempt
            created = tracker.create_run(experiment_number, tags=all_tags, run_name=run_name)
            made = _runs_of_attempt(tracker, experiment_number, attempt)
            found = made or [str(created.info.run_id)]
        # An answer that is lost makes the client, and then the task, ask again: each opens one.
        run_id, *twins = found
        for twin in twins:
            tracker.delete_run(twin)
    if not is_finished(run_id):
        log_params(run_id, params)
    return run_id


def is_finished(run_id: str) -> bool:
    """Return whether a run ended well: all that there is to log about it is logged."""
    with mlflow_errors("read the run"):
        return bool(client().get_run(run_id).info.status == "FINISHED")


def _runs_of_attempt(tracker: Any, experiment_number: str, attempt: str) -> list[str]:
    if not attempt:
        return []
    if "'" in attempt or '"' in attempt:
        raise InputError(f"An attempt's name must not contain quotes (got {attempt[:80]!r}).")
    found = tracker.search_runs(
        [experiment_number],
        f"tags.`{ATTEMPT_TAG}` = '{attempt}'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
    )
    return [str(run.info.run_id) for run in found]


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Log `params` in batches; nested mappings become dotted names, long values are cut."""
    from mlflow.entities import Param

    flat = [Param(_key(name), as_text(value)) for name, value in sorted(_flatten(params).items())]
    with mlflow_errors("log parameters"):
        for first in range(0, len(flat), _PARAMS_PER_BATCH):
            batch = flat[first : first + _PARAMS_PER_BATCH]
            client().log_batch(run_id, params=batch, synchronous=True)


def set_tags(run_id: str, tags: Mapping[str, Any]) -> None:
    """Set `tags` on a run."""
    from mlflow.entities import RunTag

    entries = [RunTag(_key(name), value) for name, value in _text_values(tags).items()]
    with mlflow_errors("set tags"):
        for first in range(0, len(entries), _PARAMS_PER_BATCH):
            batch = entries[first : first + _PARAMS_PER_BATCH]
            client().log_batch(run_id, tags=batch, synchronous=True)


def log_inputs(run_id: str, datasets: Sequence[DatasetRow]) -> None:
    """Record which datasets a run used, by name and hash; no row of data is copied.

    Args:
        run_id: The run.
        datasets: (name, digest, source, context, rows); context is for example ``training``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            dataset=Dataset(
                name=name,
                digest=digest[:MAX_DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": source}),
                profile=json.dumps({"num_rows": rows}),
            ),
            tags=[InputTag(key="mlflow.data.context", value=context)],
        )
        for name, digest, source, context, rows in datasets
    ]
    if inputs:
        with mlflow_errors("log dataset inputs"):
            client().log_inputs(run_id, datasets=inputs)


def log_metrics(run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
    """Log one value of each metric at `step`."""
    log_history(run_id, [{**metrics, "step": step}])


def log_history(run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log metrics over steps in few calls.

    Timestamps are derived from the run's start and the row, never from the clock, so logging the
    same history twice stores it once.

    Args:
        run_id: The run.
        rows: Each has ``step``, optionally ``seconds`` since the start, and numbers by name. Other
            values are left out; what is not finite is stored as NaN (MLflow turns infinity into
            1.8e308).
    """
    from mlflow.entities import Metric

    with mlflow_errors("read the run"):
        started = int(client().get_run(run_id).info.start_time)
    metrics = []
    for row in rows:
        step = int(row["step"])
        timestamp = started + round(1000 * float(row.get("seconds", step / 1000)))
        for name, value in row.items():
            if name in _RESERVED_COLUMNS or isinstance(value, bool) or not _is_number(value):
                continue
            finite = float(value) if math.isfinite(value) else math.nan
            metrics.append(Metric(_key(name), finite, timestamp, step))
    with mlflow_errors("log metrics"):
        for first in range(0, len(metrics), _METRICS_PER_BATCH):
            batch = metrics[first : first + _METRICS_PER_BATCH]
            client().log_batch(run_id, metrics=batch, synchronous=True)


def log_text(run_id: str, text: str, file_name: str) -> None:
    """Store `text` as the run's artefact `file_name`."""
    with mlflow_errors(f"store {file_name}"):
        client().log_text(run_id, text, file_name)


def log_file(run_id: str, path: Path, folder: str = "") -> None:
    """Store one file as an artefact of the run (the HTML report opens in the interface)."""
    with mlflow_errors(f"store {path.name}"):
        client().log_artifact(run_id, str(path), folder or None)


def finish_run(run_id: str, status: RunStatus = "FINISHED") -> None:
    """End a run; a run that already ended with this status keeps its end time."""
    with mlflow_errors("finish the run"):
        if client().get_run(run_id).info.status != status:
            client().set_terminated(run_id, status, end_time=int(time.time() * 1000))


def runs_of(experiment: str, language: str, *, limit: int = 100) -> list[RunSummary]:
    """Return the runs of one language, newest first; none where the experiment does not exist.

    Raises:
        InputError: `language` is not in canonical form.
    """
    if not _LANGUAGE.fullmatch(language):
        raise InputError(
            f"{language[:80]!r} is not a canonical language code. Give ISO 639-3 and script, "
            "for example swh_Latn.",
            code="E43",
        )
    tracker = client()
    with mlflow_errors("search runs"):
        found = tracker.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs = tracker.search_runs(
            [found.experiment_id],
            f"tags.{LANGUAGE_TAG} = '{language}'",
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
    return [_summary(run) for run in runs]


def _summary(run: Any) -> RunSummary:
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    return RunSummary(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=run.info.start_time,
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def as_text(value: Any, limit: int = MAX_PARAM_LENGTH) -> str:
    """Return `value` as text (JSON where it is not text already), cut at `limit` characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _text_values(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: as_text(value, MAX_TAG_LENGTH) for name, value in values.items()}


def _key(name: str) -> str:
    return _UNSAFE_KEY.sub("_", name)[:250]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or hasattr(value, "__float__")
