"""Work with the base as jobs of a separate process: paths and plain JSON values in and out.

The process keeps the frozen base between jobs (`load_base`), so a trainer that takes one language
after the other loads it once.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from compass_core.config import BaseConfig, EvaluationConfig, TrainingConfig
from compass_core.records import Example, table_to_examples
from compass_core.storage import read_table, write_json, write_table, write_text

if TYPE_CHECKING:
    from compass_core.adaptation.bases import Base
    from compass_core.adaptation.training import TrainingResult

PROGRESS_SECONDS = 0.5
"""A progress file is rewritten at most this often."""

HISTORY_NAME = "history.jsonl"
ADAPTER_FOLDER = "adapter"
ITEMS_NAME = "items.parquet"


P = ParamSpec("P")
R = TypeVar("R")
_base_in_use = threading.RLock()


def exclusive(job: Callable[P, R]) -> Callable[P, R]:
    """Let one job of this process use the base at a time.

    An adapter is put into the one base the process holds, so two threads (jobs that run inside
    the flow's process) would see each other's.
    """

    @functools.wraps(job)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _base_in_use:
            return job(*args, **kwargs)

    return run


class ProgressFile:
    """A small JSON file a parent process can watch; also callable as a step hook."""

    def __init__(self, path: str | None) -> None:
        """Write to `path`, or nowhere."""
        self.path = Path(path) if path else None
        self._written = 0.0

    def write(self, done: int, total: int, **values: float) -> None:
        """Write the state, unless the last write is less than `PROGRESS_SECONDS` ago."""
        now = time.monotonic()
        if self.path is None or (done < total and now - self._written < PROGRESS_SECONDS):
            return
        self._written = now
        write_json(self.path, {"step": done, "total": total, **values})

    def on_step(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        """Write step, total and loss of a training step."""
        self.write(done, total, loss=float(record["loss"]))


def set_threads(n: int | None) -> None:
    """Use `n` CPU threads in this process; None or 0 leaves it as it is."""
    if n:
        import torch

        torch.set_num_threads(n)


def read_examples(paths: Sequence[str]) -> list[Example]:
    """Return the examples of several Parquet files of ``EXAMPLE_SCHEMA``, in order."""
    return [row for path in paths for row in table_to_examples(read_table(Path(path)))]


@exclusive
def train_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train one adapter and write it with its history.

    Files under ``out_folder``: ``adapter/`` (a peft folder) and ``history.jsonl`` (one step per
    line, without times: equal trainings give equal files).

    Args:
        spec: rows (Parquet paths, in order), base (`BaseConfig` with a resolved path), training
            (`TrainingConfig`), seed, out_folder, checkpoint_folder (or null), card (JSON values),
            progress_path (or null), threads (optional).

    Returns:
        steps, tokens, seconds, final_loss, adapter_sha256, padding_efficiency, n_examples,
        n_truncated, n_dropped.
    """
    from compass_core.adaptation.bases import load_base
    from compass_core.adaptation.training import train_adapter

    set_threads(spec.get("threads"))
    started = time.perf_counter()
    examples = read_examples(spec["rows"])
    base = load_base(BaseConfig.model_validate(spec["base"]))
    checkpoints = spec.get("checkpoint_folder")
    result = train_adapter(
        base,
        examples,
        TrainingConfig.model_validate(spec["training"]),
        seed=int(spec["seed"]),
        checkpoint_folder=Path(checkpoints) if checkpoints else None,
        on_step=ProgressFile(spec.get("progress_path")).on_step,
    )
    facts = write_training(result, Path(spec["out_folder"]), spec.get("card", {}), base)
    return facts | {"n_examples": len(examples), "seconds": time.perf_counter() - started}


def write_training(
    result: TrainingResult, out: Path, card: Mapping[str, Any], base: Base
) -> dict[str, Any]:
    """Write a trained adapter with its history under `out`, detach it, and return its facts.

    Returns:
        steps, tokens, final_loss, adapter_sha256, padding_efficiency, n_truncated, n_dropped.
    """
    from compass_core.adaptation.adapters import detach_adapter, save_adapter

    try:
        sha256 = save_adapter(result.model, out / ADAPTER_FOLDER, card, base=base)
    finally:
        detach_adapter(result.model)
    lines = [
        json.dumps({key: value for key, value in record.items() if key != "seconds"})
        for record in result.history
    ]
    write_text(out / HISTORY_NAME, "\n".join(lines) + "\n")
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "final_loss": final_loss(result.history),
        "adapter_sha256": sha256,
        "padding_efficiency": result.padding_efficiency,
        "n_truncated": result.n_truncated,
        "n_dropped": result.n_dropped,
    }


def final_loss(history: Sequence[Mapping[str, Any]], name: str = "loss") -> float:
    """Return the mean `name` of the last tenth of the steps: one step alone is noise."""
    last = history[-max(1, len(history) // 10) :]
    return sum(float(record[name]) for record in last) / len(last)


@exclusive
def evaluate_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Score a test set with the base or one adapter and write one row per item.

    Files under ``out_folder``: ``items.parquet`` of ``ITEM_SCHEMA``.

    Args:
        spec: rows (Parquet paths, in order), base (`BaseConfig` with a resolved path), evaluation
            (`EvaluationConfig`), adapter_folder (or null), out_folder, progress_path (or null),
            threads (optional).

    Returns:
        n_items, n_correct, accuracy, seconds.
    """
    from compass_core.adaptation.bases import load_base
    from compass_core.evaluation.scoring import evaluate_items

    set_threads(spec.get("threads"))
    started = time.perf_counter()
    items = read_examples(spec["rows"])
    base = load_base(BaseConfig.model_validate(spec["base"]))
    folder = spec.get("adapter_folder")
    table = evaluate_items(
        base,
        items,
        EvaluationConfig.model_validate(spec["evaluation"]),
        Path(folder) if folder else None,
        on_progress=ProgressFile(spec.get("progress_path")).write,
    )
    write_table(Path(spec["out_folder"]) / ITEMS_NAME, table)
    n_correct = sum(table.column("correct").to_pylist())
    return {
        "n_items": table.num_rows,
        "n_correct": n_correct,
        "accuracy": n_correct / table.num_rows,
        "seconds": time.perf_counter() - started,
    }


@exclusive
def generate_job(spec: Mapping[str, Any]) -> str:
    """Answer one prompt with the base or one adapter.

    Args:
        spec: base, adapter_folder (or null), prompt (text or messages), max_new_tokens
            (optional), temperature (optional), seed (optional), threads (optional).
    """
    from compass_core.adaptation.adapters import adapted
    from compass_core.adaptation.bases import load_base
    from compass_core.adaptation.generation import generate_text

    set_threads(spec.get("threads"))
    base = load_base(BaseConfig.model_validate(spec["base"]))
    folder = spec.get("adapter_folder")
    with adapted(base, Path(folder) if folder else None) as model:
        return generate_text(
            model,
            base.tokenizer,
            spec["prompt"],
            max_new_tokens=int(spec.get("max_new_tokens", 128)),
            temperature=float(spec.get("temperature", 0.0)),
            seed=int(spec.get("seed", 0)),
        )
