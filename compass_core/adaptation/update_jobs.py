"""Updates of an adapter as jobs of a separate process, in the manner of `jobs`.

`fisher_job` measures what the champion's weights mean for what it has learned; `update_job` trains
on from them, held by that measure and by replayed examples (docs/updating.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compass_core.adaptation.jobs import (
    ProgressFile,
    exclusive,
    read_examples,
    set_threads,
    write_training,
)
from compass_core.config import BaseConfig, TrainingConfig


@exclusive
def fisher_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the Fisher information of one adapter and write it.

    Files under ``out_folder``: ``fisher.safetensors`` and ``fisher.json``.

    Args:
        spec: rows (Parquet paths of the examples the adapter was trained on), base (`BaseConfig`
            with a resolved path), adapter_folder, training (`TrainingConfig`: its `max_length`),
            max_examples (0: all), seed (of the choice of `max_examples`), previous_path (folder of
            an earlier Fisher information to add, or null), decay (its weight), out_folder,
            progress_path (or null), threads (optional).

    Returns:
        base_fingerprint, adapter_sha256, n_examples, tokens, mean, max, sha256, policy, seconds.
    """
    raise NotImplementedError


@exclusive
def update_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train one adapter on from the weights of another and write it with its history.

    Files under ``out_folder``: as `train_job` writes them; with an active term the history has
    the columns loss_task, loss_ewc, loss_replay and tokens_replay too.

    Args:
        spec: What `train_job` takes, and start_folder (the adapter to go on from), fisher_path
            (folder written by `fisher_job`, or null), replay_rows (Parquet paths, may be empty),
            update (ewc_strength, replay_strength, fisher_scale). A strength of 0 or nothing to
            apply it to switches a term off; with both off this is naive fine-tuning.

    Returns:
        What `train_job` returns, and tokens_replay, start_sha256.
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
        start=Path(spec["start_folder"]),
    )
    facts = write_training(result, Path(spec["out_folder"]), spec.get("card", {}), base)
    facts |= {"n_examples": len(examples), "seconds": time.perf_counter() - started}
    return facts | {"tokens_replay": 0}
