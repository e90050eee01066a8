"""Updates of an adapter as jobs of a separate process, in the manner of `jobs`.

`fisher_job` measures what the champion's weights mean for what it has learned; `update_job` trains
on from them, held by that measure and by replayed examples (docs/updating.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compass_core.adaptation.jobs import (
    ProgressFile,
    exclusive,
    final_loss,
    read_examples,
    set_threads,
    write_training,
)
from compass_core.config import BaseConfig, TrainingConfig

if TYPE_CHECKING:
    from compass_core.adaptation.update_terms import UpdateTerms

LOSSES = ("loss_task", "loss_ewc", "loss_replay")


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
        base_fingerprint, adapter_sha256, n_examples, tokens, n_stages, decay, mean, max, policy,
        sha256 (of the values), seconds.
    """
    from compass_core.adaptation.bases import load_base
    from compass_core.adaptation.fisher import measure_fisher
    from compass_core.adaptation.fisher_files import add_fisher, read_fisher, write_fisher

    set_threads(spec.get("threads"))
    started = time.perf_counter()
    base = load_base(BaseConfig.model_validate(spec["base"]))
    fisher = measure_fisher(
        base,
        Path(spec["adapter_folder"]),
        read_examples(spec["rows"]),
        TrainingConfig.model_validate(spec["training"]),
        max_examples=int(spec["max_examples"]),
        seed=int(spec["seed"]),
        on_progress=ProgressFile(spec.get("progress_path")).write,
    )
    if spec.get("previous_path"):
        earlier = read_fisher(Path(spec["previous_path"]))
        fisher = add_fisher(fisher, earlier, float(spec["decay"]))
    facts = write_fisher(Path(spec["out_folder"]), fisher)
    return facts | {"seconds": time.perf_counter() - started}


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
        What `train_job` returns, and tokens_replay, loss_task, loss_ewc and loss_replay (means of
        the last tenth of the steps, without λ and β), and fisher (mean, max, scale; null when
        EWC is off).
    """
    from compass_core.adaptation.bases import load_base
    from compass_core.adaptation.training import train_adapter

    set_threads(spec.get("threads"))
    started = time.perf_counter()
    examples = read_examples(spec["rows"])
    base = load_base(BaseConfig.model_validate(spec["base"]))
    terms = read_terms(spec)
    checkpoints = spec.get("checkpoint_folder")
    result = train_adapter(
        base,
        examples,
        TrainingConfig.model_validate(spec["training"]),
        seed=int(spec["seed"]),
        checkpoint_folder=Path(checkpoints) if checkpoints else None,
        on_step=ProgressFile(spec.get("progress_path")).on_step,
        start=Path(spec["start_folder"]),
        update=terms,
    )
    facts = write_training(result, Path(spec["out_folder"]), spec.get("card", {}), base)
    facts |= {"n_examples": len(examples), "tokens_replay": result.tokens_replay}
    facts |= {name: final_loss(result.history, name) for name in LOSSES}
    used = terms.fisher if terms.uses_ewc else None
    scale = {"scale": terms.fisher_scale}
    facts["fisher"] = {"mean": used.mean, "max": used.max, **scale} if used else None
    return facts | {"seconds": time.perf_counter() - started}


def read_terms(spec: Mapping[str, Any]) -> UpdateTerms:
    """Return the terms an update's `spec` names, with what they need read and verified."""
    from compass_core.adaptation.fisher_files import read_fisher
    from compass_core.adaptation.update_terms import UpdateTerms

    path = spec.get("fisher_path")
    return UpdateTerms(
        fisher=read_fisher(Path(path)) if path else None,
        replay=read_examples(spec["replay_rows"]),
        **spec["update"],
    )
