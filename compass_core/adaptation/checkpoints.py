"""Training checkpoints that are either complete or invisible.

    <folder>/step-000200/  state.safetensors  history.json  COMPLETE.json   (written last)

``COMPLETE.json`` carries the SHA-256 of the others and the recipe they belong to. A folder without
it, or whose files do not match it, is what a killed process left behind: it is removed and the one
before is used. Only safetensors and JSON are read back, never a pickle.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from compass_core.storage import read_json, sha256_file, write_bytes, write_json, write_text

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept: the newest, and one in case the newest turns out damaged."""
_STATE, _HISTORY, _COMPLETE = "state.safetensors", "history.json", "COMPLETE.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        step: Optimiser steps done.
        history: One record per step.
    """

    step: int
    history: list[dict[str, Any]]


def write_checkpoint(
    folder: Path,
    progress: Progress,
    recipe: Mapping[str, Any],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write one checkpoint under `folder` and remove all but the newest `KEEP`."""
    target = folder / f"step-{progress.step:06d}"
    shutil.rmtree(target, ignore_errors=True)
    for old in _checkpoints(folder)[: -(KEEP - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    tensors = {f"weight/{name}": p.detach().cpu().contiguous() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for moment in _MOMENTS:
            value = optimiser.state[parameter][moment]
            tensors[f"{moment}/{name}"] = value.detach().cpu().contiguous()
    write_bytes(target / _STATE, save(tensors))
    write_text(target / _HISTORY, json.dumps(progress.history))
    files = {name: sha256_file(target / name) for name in (_STATE, _HISTORY)}
    write_json(target / _COMPLETE, {"step": progress.step, "files": files, "recipe": dict(recipe)})


def resume_checkpoint(
    folder: Path,
    recipe: Mapping[str, Any],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> Progress:
    """Load the newest complete checkpoint of `recipe` into `parameters` and `optimiser`.

    Incomplete checkpoints are removed. Those of another recipe (other data, configuration or
    library version) are removed with a note: continuing them would give a result no recipe names.
    """
    for path in reversed(_checkpoints(folder)):
        complete = _read_complete(path)
        if complete is None:
            logger.warning("Checkpoint %s is incomplete or damaged; using the one before", path)
        elif complete["recipe"] != dict(recipe):
            logger.warning("Training starts from step 0: %s", _difference(complete, recipe, path))
        else:
            _load_state(path, parameters, optimiser)
            history = read_json(path / _HISTORY)
            logger.info("Training continues from step %d", complete["step"])
            return Progress(int(complete["step"]), list(history))
        shutil.rmtree(path, ignore_errors=True)
    return Progress(0, [])


def clear_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a training that is finished and published."""
    shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _read_complete(path: Path) -> dict[str, Any] | None:
    try:
        complete = read_json(path / _COMPLETE)
        whole = all(
            sha256_file(path / name) == complete["files"][name] for name in (_STATE, _HISTORY)
        )
        return dict(complete) if whole and {"step", "recipe"} <= set(complete) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(complete: Mapping[str, Any], recipe: Mapping[str, Any], path: Path) -> str:
    before = complete["recipe"]
    keys = sorted(key for key in {*before, *recipe} if before.get(key) != recipe.get(key))
    changes = [f"{key} was {before.get(key)!r} and is {recipe.get(key)!r}" for key in keys]
    return f"checkpoint {path.name} was written by another recipe ({'; '.join(changes)[:400]})"


def _load_state(
    path: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    tensors = load((path / _STATE).read_bytes())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            # Adam's step counters stay where a new optimiser would put them: with the parameters
            # when fused, which is the only way it is built here.
            optimiser.state[parameter] = {
                moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in _MOMENTS
            }
