"""What training the selected data will take, for a dry run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from compass_core.adaptation.base_files import tensor_shapes, weight_files
from compass_core.adaptation.bases import is_local
from compass_core.config import TrainingConfig
from compass_core.estimates import estimate_training, processor_speed
from compass_core.records import ArtifactRef
from compass_core.storage import read_table
from tasks.caching import ModelRef
from tasks.settings import open_store


def estimate_language(
    coverage: ArtifactRef, selection: ArtifactRef, base: ModelRef, config: TrainingConfig
) -> dict[str, Any]:
    """Return ``steps``, and where the base's weights are at hand ``seconds`` and ``bytes``."""
    store = open_store()
    lengths = []
    for ref in (coverage, selection):
        rows = read_table(store.folder(ref) / "rows.parquet", ["prompt", "response"])
        for name in rows.column_names:
            lengths.append(pc.sum(pc.binary_length(rows[name])).as_py() or 0)
    n_examples = coverage.rows + selection.rows
    shapes = _shapes(base.path) if is_local(base.path) else {}
    found = estimate_training(
        n_examples, sum(lengths) / max(n_examples, 1), shapes, config, _speed()
    )
    if not shapes:
        return {"steps": found.steps, "seconds": None, "bytes": None}
    return {"steps": found.steps, "seconds": found.seconds, "bytes": found.bytes}


@lru_cache(maxsize=4)
def _shapes(folder: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(Path(folder)):
        shapes.update(tensor_shapes(path))
    return shapes


@lru_cache(maxsize=1)
def _speed() -> float:
    return processor_speed()
