"""Measuring gains between languages: what LangRank learns from.

For every source one adapter is trained on its rows alone; its gain for a target is the accuracy on
the target's test items with that adapter minus the accuracy without any. So S sources and T targets
cost S trainings and T · (S + 1) scorings.
"""

from __future__ import annotations

import csv
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from compass_core.adaptation.bases import base_fingerprint
from compass_core.adaptation.jobs import ADAPTER_FOLDER, evaluate_job, train_job
from compass_core.config import BaseConfig, EvaluationConfig, TrainingConfig
from compass_core.errors import DataError
from compass_core.storage import fingerprint, read_json, write_json, write_table, write_text

logger = logging.getLogger(__name__)

Pair = tuple[str, str]


@dataclass(frozen=True)
class GainSettings:
    """How adapters are trained and scored.

    Attributes:
        base: The frozen model, with a resolved path.
        training: One adapter's training.
        evaluation: The scoring.
        seed: Of the training.
    """

    base: BaseConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    seed: int = 0


def measure_gains(
    path: Path,
    sources: Mapping[str, pa.Table],
    targets: Mapping[str, pa.Table],
    settings: GainSettings,
) -> int:
    """Train on every source, score every target, and write ``target,source,gain`` to `path`.

    The file is complete for the sources measured so far after each of them; calling again goes on
    where it stopped. ``<path>.json`` says what it was measured with.

    Args:
        path: CSV file to write.
        sources: Training rows by language (``EXAMPLE_SCHEMA``), free of test items.
        targets: Test items by language. A target is no source of its own.
        settings: how to train and score.

    Returns:
        The number of gains in the file.

    Raises:
        DataError: `path` holds gains of other data or settings (E44).
    """
    gains = _resume(path, _identity(sources, targets, settings))
    with tempfile.TemporaryDirectory() as name:
        bench = _Bench(Path(name), settings)
        items = {target: bench.write(f"test-{target}", rows) for target, rows in targets.items()}
        before: dict[str, float] = {}
        for source, rows in sources.items():
            missing = [t for t in targets if t != source and (t, source) not in gains]
            if not missing:
                continue
            adapter = bench.train(bench.write("rows", rows))
            for target in missing:
                if target not in before:
                    before[target] = bench.accuracy(items[target], None)
                after = bench.accuracy(items[target], adapter)
                gains[target, source] = after - before[target]
            _write(path, gains)
            logger.info("%s measured: %d gains", source, len(gains))
    return len(gains)


class _Bench:
    """One folder in which one adapter after the other is trained and scored."""

    def __init__(self, folder: Path, settings: GainSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.base = settings.base.model_dump(mode="json")

    def write(self, name: str, rows: pa.Table) -> str:
        path = self.folder / f"{name}.parquet"
        write_table(path, rows)
        return str(path)

    def train(self, rows: str) -> str:
        out = self.folder / "trained"
        train_job(
            {
                "rows": [rows],
                "base": self.base,
                "training": self.settings.training.model_dump(mode="json"),
                "seed": self.settings.seed,
                "out_folder": str(out),
                "checkpoint_folder": None,
            }
        )
        return str(out / ADAPTER_FOLDER)

    def accuracy(self, items: str, adapter: str | None) -> float:
        found = evaluate_job(
            {
                "rows": [items],
                "base": self.base,
                "evaluation": self.settings.evaluation.model_dump(mode="json"),
                "adapter_folder": adapter,
                "out_folder": str(self.folder / "scored"),
            }
        )
        return float(found["accuracy"])


def _identity(
    sources: Mapping[str, pa.Table], targets: Mapping[str, pa.Table], settings: GainSettings
) -> dict[str, Any]:
    return {
        "base": base_fingerprint(settings.base.model, settings.base.revision),
        "training": settings.training.key_values(),
        "evaluation": settings.evaluation.key_values(),
        "seed": settings.seed,
        "sources": {name: _content(rows) for name, rows in sources.items()},
        "targets": {name: _content(rows) for name, rows in targets.items()},
    }


def _content(rows: pa.Table) -> str:
    return fingerprint(rows.select(["id", "prompt", "response"]).to_pylist())


def _resume(path: Path, identity: Mapping[str, Any]) -> dict[Pair, float]:
    facts = path.with_name(f"{path.name}.json")
    if not path.exists():
        write_json(facts, identity)
        return {}
    try:
        same = read_json(facts) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        raise DataError(
            f"{path} exists and was measured with other data or settings. "
            "Give another name, or remove it.",
            code="E44",
        )
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(row["target"], row["source"]): float(row["gain"]) for row in rows}


def _write(path: Path, gains: Mapping[Pair, float]) -> None:
    lines = [f"{target},{source},{gain:.6f}" for (target, source), gain in sorted(gains.items())]
    write_text(path, "\n".join(["target,source,gain", *lines]) + "\n")
