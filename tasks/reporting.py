"""What people look at after and during a run: tables in Prefect, the report, the run's record."""

from __future__ import annotations

import logging
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from compass_core.config import Config, Recipe
from compass_core.config_files import dump_config
from compass_core.errors import CompassError, ResourceError
from compass_core.files import disk_error
from compass_core.languages import language_name
from compass_core.records import ArtifactRef
from compass_core.report import data as report_data
from compass_core.report.continual_data import ContinualReport
from compass_core.report.data import ArmResult, LanguageReport, RunReport, StudyReport
from compass_core.report.markup import percent
from compass_core.report.notes import DEMONSTRATION_NOTE, RECONSTRUCTION_NOTE
from compass_core.report.page import render_report
from compass_core.storage import read_json, read_table, write_json, write_text
from compass_core.version import __version__
from tasks.artifacts import publish_run
from tasks.dashboard import write_index
from tasks.events import server_address
from tasks.language_report import failed_report, language_report, read_history, scored_arms
from tasks.lineage import LINEAGE_TAG
from tasks.logs import note_run
from tasks.migrations import require_readable
from tasks.registry_reading import NOTE_TAG
from tasks.run_index import keep_line
from tasks.settings import (
    compass_home,
    open_catalog,
    open_store,
    runs_folder,
    tracking_uri,
    without_password,
)
from tasks.summary import summary_text

_LOG = logging.getLogger(__name__)
_VERSIONS = ("torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "prefect")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a flow over some languages.

    Attributes:
        run_id: Name of its folder; sorts by time.
        flow: Flow that runs.
        started: ISO 8601, UTC.
    """

    run_id: str
    flow: str
    started: str

    @property
    def folder(self) -> Path:
        """Where its record and report lie."""
        return runs_folder() / self.run_id


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def start_run(flow_name: str, config: Config) -> Run:
    """Open the run's folder and keep its configuration there."""
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    run = Run(run_id, flow_name, started.isoformat(timespec="seconds"))
    note_run(run_id)
    require_readable()
    store = open_store()
    store.check()
    store.sweep()
    write_text(run.folder / "config.yaml", dump_config(config))
    return run


def name_finished(error: BaseException, artifacts: Mapping[str, Any]) -> None:
    """Let the outcome of a failure name what was finished, so that `compass clean` keeps it."""
    error.__dict__["finished"] = dict(artifacts)


def failed_outcome(language: str, error: BaseException) -> dict[str, Any]:
    """Return the outcome of a language that raised."""
    if isinstance(error, OSError):
        error = disk_error(error, compass_home())
    known = isinstance(error, CompassError)
    return {
        "language": language,
        "status": "failed",
        "error": str(error) if known else f"{type(error).__name__}: {error}",
        "error_kind": type(error).__name__,
        "artifacts": {},
        "finished": getattr(error, "finished", {}),
        "arms": {},
        "timings": {},
    }


def attempt_record(
    language: str,
    recipe: Recipe,
    arm: str,
    artifacts: Mapping[str, ArtifactRef],
    arms: Mapping[str, Mapping[str, ArtifactRef]],
) -> dict[str, Any]:
    """Return what MLflow keeps of one attempt, as plain values."""
    store = open_store()
    outcome = {
        "language": language,
        "artifacts": {name: ref.to_dict() for name, ref in artifacts.items()},
        "arms": {n: {k: r.to_dict() for k, r in a.items()} for n, a in arms.items()},
    }
    scores = scored_arms(outcome, recipe)
    adapter = arms[arm]["adapter"]
    values = {score.arm: score for score in scores}
    metrics = {f"accuracy/{name}": score.accuracy for name, score in values.items()}
    main = values[arm]
    metrics |= {"accuracy": main.accuracy, "accuracy_low": main.low, "accuracy_high": main.high}
    metrics |= {"accuracy_missing": main.missing, "accuracy_covered": main.covered}
    roles = {"usage": "selection", "coverage": "training", "test": "evaluation", "pool": "pool"}
    datasets = [
        (role, artifacts[role].sha256[:36], f"store/{artifacts[role].path}", context, rows)
        for role, context in roles.items()
        if (rows := artifacts[role].rows)
    ]
    selected = arms[arm]["sample"]
    datasets.append(
        ("selection", selected.sha256[:36], f"store/{selected.path}", "training", selected.rows)
    )
    return {
        "experiment": recipe.project,
        "run_name": f"{language}-{arm}",
        "params": {
            "language": language,
            "strategy": arm,
            "seed": recipe.seed,
            "budget": recipe.selection.budget,
            "base": recipe.base.model,
            "encoder": recipe.embedding.encoder,
            "training": recipe.training.model_dump(mode="json"),
            "selection": recipe.selection.model_dump(mode="json"),
            "clustering": recipe.clustering.model_dump(mode="json"),
        },
        "tags": {
            "language": language,
            "strategy": arm,
            "budget": recipe.selection.budget,
            "base": recipe.base.model,
            "base_revision": recipe.base.revision,
            "selection_fingerprint": selected.fingerprint,
            "training_fingerprint": adapter.fingerprint,
            "evaluation_fingerprint": arms[arm]["evaluate"].fingerprint,
            "prefect_flow_run_id": str(flow_run.get_id() or ""),
            LINEAGE_TAG: artifacts["lineage"].fingerprint,
            "licences": licences_of(selected),
            "compass_version": __version__,
            NOTE_TAG: _note(language, arm, main),
        },
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "datasets": datasets,
        "history": read_history(adapter),
        "adapter": str(store.folder(adapter) / "adapter"),
    }


def _note(language: str, arm: str, score: ArmResult) -> str:
    """Return what MLflow shows as the description of an attempt."""
    words = (
        f"{language_name(language)} ({language}), strategy {arm}: accuracy "
        f"{percent(score.accuracy)} on {score.n_items} test items."
    )
    # The server of one command ends with it, and a link would lead nowhere.
    page = flow_run.get_flow_run_ui_url() if server_address() else None
    return f"{words}\n\n[The run in Prefect]({page})" if page else words


def licences_of(selected: ArtifactRef, file: str = "selected.parquet") -> str:
    """Return the licences of the rows in `file` with their counts, most frequent first."""
    rows = read_table(open_store().folder(selected) / file, ["licence"])
    counts = rows["licence"].value_counts().to_pylist()
    ordered = sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))
    return ", ".join(f"{e['values'] or 'unknown'} ({e['counts']})" for e in ordered[:10])


@task(name="report", cache_policy=NO_CACHE)
def finish_run(
    run: Run,
    recipe: Recipe,
    outcomes: Mapping[str, Mapping[str, Any]],
    study: StudyReport | None = None,
    continual: ContinualReport | None = None,
) -> dict[str, Any]:
    """Write the run's record, report and summary; index its selections in the catalogue."""
    # A continual study has no champion, so of its languages only the failed have a section.
    told = [o for o in outcomes.values() if continual is None or o["status"] == "failed"]
    reports = [_report_or_failure(outcome, recipe) for outcome in told]
    page = RunReport(
        run_id=run.run_id,
        project=recipe.project,
        title=f"COMPASS · {recipe.project}",
        started=run.started,
        finished=now(),
        config_summary=_config_summary(recipe),
        notes=_notes(recipe),
        languages=reports,
        study=study,
        continual=continual,
        versions=_versions(),
        links=_links(),
        confidence=recipe.evaluation.confidence,
        main_arm=recipe.selection.strategy,
    )
    estimates = {code: o["estimate"] for code, o in outcomes.items() if "estimate" in o}
    record = {
        "run_id": run.run_id,
        "flow": run.flow,
        "project": recipe.project,
        "main_arm": recipe.selection.strategy,
        "started": run.started,
        "finished": page.finished,
        "prefect_flow_run_id": str(flow_run.get_id() or ""),
        "languages": {language: dict(outcome) for language, outcome in outcomes.items()},
    }
    write_json(run.folder / "run.json", record)
    write_text(run.folder / "report.json", report_data.to_json(page))
    write_text(run.folder / "report.html", render_report(page))
    write_text(run.folder / "summary.txt", summary_text(page, run.folder, estimates))
    write_text(runs_folder() / "LAST", run.run_id + "\n")
    keep_line(run.folder, record, page)
    write_index()
    try:
        open_catalog().extend(run.folder / "run.json")
    except ResourceError as error:  # the next run, or `compass rebuild-index`, makes up for it
        _LOG.warning("The catalogue was not extended. %s", error)
    publish_run(page, recipe, run.flow, run.folder)
    return record


def _report_or_failure(outcome: Mapping[str, Any], recipe: Recipe) -> LanguageReport:
    """Return a language's report; a defect in one language's report never hides the others."""
    if outcome["status"] == "failed":
        return failed_report(outcome)
    try:
        return language_report(outcome, recipe)
    except Exception as error:
        _LOG.exception("The report of %s could not be built", outcome["language"])
        return failed_report({**outcome, "error": f"The report could not be built: {error}"})


def _config_summary(recipe: Recipe) -> dict[str, str]:
    return {
        "base model": recipe.base.model,
        "encoder": recipe.embedding.encoder,
        "adapter": f"{recipe.training.adapter}, rank {recipe.training.lora_rank}",
        "strategy": f"{recipe.selection.strategy} ({recipe.selection.rule})",
        "budget": f"{recipe.selection.budget} examples",
        "optimiser steps": f"{recipe.training.min_steps} to {recipe.training.max_steps or '∞'}",
        "learning rate": f"{recipe.training.learning_rate:g}",
        "seed": str(recipe.seed),
    }


def _notes(recipe: Recipe) -> list[str]:
    if recipe.data.kind == "starter":
        return [DEMONSTRATION_NOTE, RECONSTRUCTION_NOTE]
    return [RECONSTRUCTION_NOTE]


def _versions() -> dict[str, str]:
    found = {"compass": __version__, "python": platform.python_version()}
    return found | {name: version(name) for name in _VERSIONS}


def _links() -> dict[str, str]:
    return {
        "Prefect": f"PREFECT_HOME={compass_home() / 'prefect'} prefect server start",
        "MLflow": f"mlflow server --backend-store-uri {without_password(tracking_uri())}",
    }


def last_run_id() -> str | None:
    """Return the id of the newest finished run, or None."""
    try:
        return (runs_folder() / "LAST").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def last_run_of(flow_name: str, language: str) -> str | None:
    """Return the id of the newest finished run of a flow for a language, or None."""
    for path in sorted(runs_folder().glob("*/run.json"), reverse=True):
        record = read_json(path)
        if record["flow"] == flow_name and language in record["languages"]:
            return path.parent.name
    return None


def read_run(run_id: str) -> dict[str, Any]:
    """Return the record of one run."""
    record: dict[str, Any] = read_json(runs_folder() / run_id / "run.json")
    return record


def failed_languages(record: Mapping[str, Any]) -> dict[str, str]:
    """Return code → error of the languages that failed."""
    return {
        code: outcome["error"]
        for code, outcome in record["languages"].items()
        if outcome["status"] == "failed"
    }


def named(codes: list[str]) -> str:
    """Return languages as people write them."""
    return ", ".join(f"{language_name(code)} ({code})" for code in codes)
