"""One adapter per language and arm, trained in a trainer process, resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

from compass_core.adaptation.jobs import train_job
from compass_core.config import BaseConfig, ExecutionConfig, TrainingConfig
from compass_core.records import ArtifactRef
from compass_core.storage import Draft, fingerprint, read_json, write_json
from tasks.caching import ModelRef, key_value, stage
from tasks.compute import run_job
from tasks.limits import training_slot
from tasks.settings import compass_home, open_store

_LIBRARIES = ("torch", "transformers", "peft")


@stage("adapter-train", 1, libraries=_LIBRARIES)
def train_adapter(
    draft: Draft,
    language: str,
    coverage: ArtifactRef,
    selection: ArtifactRef,
    base: ModelRef,
    base_config: BaseConfig,
    config: TrainingConfig,
    seed: int,
    execution: ExecutionConfig,
) -> None:
    """Train on coverage and selection: ``adapter/``, ``history.jsonl``, ``training.json``."""
    store = open_store()
    checkpoints = _checkpoint_folder(coverage, selection, base, base_config, config, seed)
    spec = {
        "rows": [
            str(store.folder(coverage) / "rows.parquet"),
            str(store.folder(selection) / "rows.parquet"),
        ],
        "base": base_config.model_dump(mode="json") | {"model": base.path},
        "training": config.model_dump(mode="json"),
        "seed": seed,
        "out_folder": str(draft.folder),
        "checkpoint_folder": str(checkpoints),
        "card": {
            "language": language,
            "selection_sha256": selection.sha256,
            "coverage_sha256": coverage.sha256,
            "base_fingerprint": base.sha256,
        },
    }
    strategy = store.manifest(selection)["provenance"].get("strategy", "")
    stage_name = f"adapter-train {strategy}".strip()
    with training_slot(execution, language, stage_name):
        facts = run_job(train_job, spec, execution, language=language, stage=stage_name)
    draft.rows = int(facts["steps"])
    draft.provenance["seconds"] = facts.pop("seconds")  # equal trainings give equal files
    write_json(draft.folder / "training.json", facts)
    shutil.rmtree(checkpoints, ignore_errors=True)


def adapter_ref(trained: ArtifactRef) -> ModelRef:
    """Return the adapter inside a training's artefact, by place and by content."""
    folder = open_store().folder(trained)
    return ModelRef(
        str(folder / "adapter"), str(read_json(folder / "training.json")["adapter_sha256"])
    )


def _checkpoint_folder(*parts: object) -> Path:
    """Return where this very training keeps its checkpoints, so that a retry finds them."""
    return compass_home() / "store" / "checkpoints" / fingerprint(key_value(parts))
