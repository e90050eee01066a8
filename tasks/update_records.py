"""What is kept of an update: in MLflow beside the adapter, and in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from compass_core.config import AdaptConfig, TrainingConfig
from compass_core.evaluation.retention import RETENTION
from compass_core.languages import language_name
from compass_core.records import ArtifactRef
from compass_core.storage import read_json, write_json, write_text
from compass_core.version import __version__
from tasks.language_report import read_history
from tasks.lineage import LINEAGE_TAG
from tasks.outage import tell_server
from tasks.reporting import Run, licences_of, now
from tasks.settings import open_catalog, open_store
from tasks.updating import update_training

EVENT_TAG = "drift_event"
TRAINED_BY = {"update": "update-train", "retrain": "adapter-train"}
"""Stage that trains each arm of an update."""


def update_attempt(
    config: AdaptConfig,
    artifacts: Mapping[str, ArtifactRef],
    event: str,
    arm: str,
    verdict: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what MLflow keeps of one update, as plain values.

    Args:
        config: Of the run.
        artifacts: Everything the update made.
        event: Drift event that it answers; empty by hand.
        arm: ``update`` or ``retrain``.
        verdict: Of the gate.
    """
    store = open_store()
    trained = artifacts[TRAINED_BY[arm]]
    selected = artifacts["sample"]
    datasets = [
        (name, ref.sha256[:36], f"store/{ref.path}", context, ref.rows)
        for name, context in (("update-data", "training"), ("exam", "evaluation"))
        if (ref := artifacts[name]).rows
    ]
    tags = {
        "language": verdict["language"],
        "strategy": arm,
        "budget": selected.rows,
        "base": config.base.model,
        "base_revision": config.base.revision,
        EVENT_TAG: event,
        "updated_from": verdict["champion"],
        "selection_fingerprint": selected.fingerprint,
        "training_fingerprint": trained.fingerprint,
        "evaluation_fingerprint": artifacts[f"evaluate {arm}"].fingerprint,
        LINEAGE_TAG: artifacts["lineage"].fingerprint,
        "prefect_flow_run_id": str(flow_run.get_id() or ""),
        "licences": licences_of(artifacts["history after"], "rows.parquet"),
        "compass_version": __version__,
    }
    for name, artefact in (("replay", "replay"), ("fisher", "fisher after")):
        if artefact in artifacts:
            tags[f"{name}_fingerprint"] = artifacts[artefact].fingerprint
    return {
        "experiment": config.project,
        "run_name": f"{verdict['language']}-{arm}",
        "params": {
            "language": verdict["language"],
            "strategy": arm,
            "seed": config.seed,
            "budget": selected.rows,
            "base": config.base.model,
            "encoder": config.embedding.encoder,
            "training": _training(config, arm).model_dump(mode="json"),
            "selection": config.selection.model_dump(mode="json"),
            "update": config.update.model_dump(mode="json"),
        },
        "tags": tags,
        "metrics": _metrics(verdict, config.evaluation.confidence) | _fisher_metrics(trained),
        "datasets": datasets,
        "history": read_history(trained),
        "adapter": str(store.folder(trained) / "adapter"),
        "files": _fisher_files(artifacts.get("fisher after")),
    }


def _training(config: AdaptConfig, arm: str) -> TrainingConfig:
    return update_training(config) if arm == "update" else config.training


def _fisher_files(fisher: ArtifactRef | None) -> list[str]:
    """Return the files that go to MLflow with the adapter: its own Fisher information."""
    if fisher is None:
        return []
    folder = open_store().folder(fisher)
    return [str(folder / name) for name in ("fisher.safetensors", "fisher.json")]


def _fisher_metrics(trained: ArtifactRef) -> dict[str, float]:
    """Return mean and max of the Fisher information that λ acted on."""
    facts = read_json(open_store().folder(trained) / "training.json").get("fisher") or {}
    return {f"fisher_{name}": float(facts[name]) for name in ("mean", "max") if name in facts}


def _metrics(verdict: Mapping[str, Any], confidence: float) -> dict[str, float]:
    from scipy import stats

    new = verdict["new"]
    n_items = int(new["n_items"])
    right = stats.binomtest(round(new["accuracy_after"] * n_items), n_items)
    ends = right.proportion_ci(confidence, method="wilson")
    found = {
        "accuracy": new["accuracy_after"],
        "accuracy_low": float(ends.low),
        "accuracy_high": float(ends.high),
        "accuracy_new/champion": new["accuracy_before"],
        "accuracy_new/challenger": new["accuracy_after"],
    }
    for kept in verdict["kept"]:
        place = "retention" if kept["name"] == RETENTION else f"slice-{kept['name']}"
        found[f"{place}/champion"] = kept["accuracy_before"]
        found[f"{place}/challenger"] = kept["accuracy_after"]
    if verdict["forgetting"] is not None:
        found["forgetting"] = verdict["forgetting"]
    return found


@task(name="report-update", task_run_name="report-update-{language}", cache_policy=NO_CACHE)
def finish_update(
    run: Run, language: str, config: AdaptConfig, outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the update's record and summary, index it, and show it in the interface."""
    record = {
        "run_id": run.run_id,
        "flow": run.flow,
        "project": config.project,
        "main_arm": outcome.get("arm", ""),
        "started": run.started,
        "finished": now(),
        "prefect_flow_run_id": str(flow_run.get_id() or ""),
        "languages": {language: dict(outcome)},
    }
    summary = update_summary(language, outcome)
    write_json(run.folder / "run.json", record)
    write_text(run.folder / "summary.txt", summary)
    open_catalog().extend(run.folder / "run.json")
    slug = language.lower().replace("_", "-")
    tell_server(
        create_markdown_artifact,
        update_markdown(language, outcome),
        key=f"update-{slug}",
        description=f"Update, {language_name(language)}",
    )
    return record


def update_summary(language: str, outcome: Mapping[str, Any]) -> str:
    """Return what the terminal shows of an update."""
    name = f"{language_name(language)} ({language})"
    lines = [f"{name}: {outcome['status']}", ""]
    lines += [f"  {name:<24}{text}" for name, text in _facts(outcome)]
    lines += ["", *(f"  {reason}" for reason in _reasons(outcome)), ""]
    return "\n".join(lines)


def update_markdown(language: str, outcome: Mapping[str, Any]) -> str:
    """Return the page of an update in the Prefect interface."""
    name = f"{language_name(language)} ({language})"
    rows = [f"| {name} | {text} |" for name, text in _facts(outcome)]
    table = ["| Test items | Champion to challenger |", "|---|---|", *rows] if rows else []
    reasons = [f"- {reason}" for reason in _reasons(outcome)]
    return "\n".join([f"# {name}: {outcome['status']}", "", *reasons, "", *table, ""])


def _reasons(outcome: Mapping[str, Any]) -> list[str]:
    return [str(reason) for reason in (outcome.get("verdict") or {}).get("reasons", [])]


def _facts(outcome: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what an update did, as a person reads them."""
    facts = [(str(name), str(text)) for name, text in (outcome.get("facts") or {}).items()]
    verdict = outcome.get("verdict") or {}
    slices = [verdict["new"], *verdict["kept"]] if "new" in verdict else []
    for number, result in enumerate(slices):
        called = "new usage" if number == 0 else _slice_name(result["name"])
        facts.append(
            (
                called,
                f"{result['accuracy_before']:.1%} to {result['accuracy_after']:.1%} "
                f"({result['n_items']} items)",
            )
        )
    return facts


def _slice_name(name: str) -> str:
    return "retention set" if name == RETENTION else f"slice {name}"
