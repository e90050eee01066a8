"""Score an adapter or the bare base on test items, and place the items in the space."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.adaptation.jobs import evaluate_job
from compass_core.config import BaseConfig, EvaluationConfig, ExecutionConfig
from compass_core.evaluation.groups import covered_items
from compass_core.records import ArtifactRef
from compass_core.selection.space import locate as locate_in_space
from compass_core.storage import Draft, read_array, read_table, write_array, write_json
from tasks.caching import ModelRef, part, stage
from tasks.compute import run_job
from tasks.settings import open_store


@stage("evaluate", 1, libraries=("torch", "transformers", "peft"))
def evaluate(
    draft: Draft,
    language: str,
    test: ArtifactRef,
    base: ModelRef,
    base_config: BaseConfig,
    adapter: ModelRef | None,
    config: EvaluationConfig,
    execution: ExecutionConfig,
) -> None:
    """Score every test item: ``items.parquet``; no adapter means the base itself."""
    spec = {
        "rows": [str(open_store().folder(test) / "rows.parquet")],
        "base": base_config.model_dump(mode="json") | {"model": base.path},
        "evaluation": config.model_dump(mode="json"),
        "adapter_folder": adapter.path if adapter else None,
        "out_folder": str(draft.folder),
    }
    facts = run_job(evaluate_job, spec, execution, language=language, stage="evaluate")
    draft.rows = int(facts["n_items"])
    draft.provenance |= {
        "language": language,
        "adapter_sha256": adapter.sha256 if adapter else "",
        "base": base.sha256,
        "seconds": facts.pop("seconds"),  # equal scores give equal files
    }
    write_json(draft.folder / "metrics.json", facts)


@part("locate", 1)
def locate(
    draft: Draft,
    language: str,
    test: ArtifactRef,
    vectors: ArtifactRef,
    space: ArtifactRef,
) -> None:
    """Place the test items in the clusters, after scoring, for the report: ``cluster_ids.npy``."""
    store = open_store()
    folder = store.folder(space)
    mean_path = folder / "mean.npy"
    ids, _distances = locate_in_space(
        np.array(read_array(store.folder(vectors) / "vectors.npy")),
        read_array(folder / "centroids.npy"),
        read_array(mean_path) if mean_path.exists() else None,
    )
    draft.rows = len(ids)
    write_array(draft.folder / "cluster_ids.npy", ids)


def covered_mask(refs: dict[str, ArtifactRef]) -> NDArray[np.bool_]:
    """Return which test items ask about covered topics, or clusters where no topic is named.

    Args:
        refs: Artefacts ``test``, ``coverage``, ``space`` and ``locate`` of one language.
    """
    store = open_store()
    test = _topics(refs["test"])
    coverage = _topics(refs["coverage"])
    if all(test) and all(coverage):
        return covered_items(test, coverage)
    return covered_items(
        read_array(store.folder(refs["locate"]) / "cluster_ids.npy").tolist(),
        read_array(store.folder(refs["space"]) / "coverage_ids.npy").tolist(),
    )


def _topics(rows: ArtifactRef) -> list[Any]:
    table = read_table(open_store().folder(rows) / "rows.parquet", ["topic"])
    topics: list[Any] = table["topic"].to_pylist()
    return topics
