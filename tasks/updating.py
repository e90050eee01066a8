"""The update itself: what the champion's weights are worth, old examples, training on, deciding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compass_core.adaptation.replay import ReplayBuffer
from compass_core.adaptation.update_jobs import fisher_job, update_job
from compass_core.config import (
    BaseConfig,
    ExecutionConfig,
    PromotionConfig,
    Recipe,
    TrainingConfig,
    UpdateConfig,
)
from compass_core.errors import ConfigError
from compass_core.evaluation.retention import decide_update
from compass_core.records import ArtifactRef
from compass_core.seeding import derive_seed
from compass_core.storage import (
    Draft,
    fingerprint,
    read_array,
    read_table,
    write_json,
)
from tasks.caching import ModelRef, key_value, stage
from tasks.compute import run_job
from tasks.events import open_outbox
from tasks.limits import training_slot
from tasks.settings import compass_home, open_store
from tasks.update_data import IDS, ROWS, read_slices

_LIBRARIES = ("torch", "transformers", "peft")


_NEEDS_PROMPTS = ("dsir", "nearest")
"""Strategies that look at single usage prompts."""


def check_update(recipe: Recipe) -> None:
    """Refuse a selection that cannot aim at usage that is known by cluster alone.

    Raises:
        ConfigError: E42.
    """
    chosen = recipe.selection
    if chosen.strategy == "target-only":
        raise ConfigError(
            "selection.strategy=target-only selects nothing, so an update has nothing to train "
            "on. Use `compass`."
        )
    if chosen.strategy in _NEEDS_PROMPTS:
        asked = f"selection.strategy={chosen.strategy}"
    elif chosen.draw == "nearest":
        asked = "selection.draw=nearest"
    else:
        return
    raise ConfigError(
        f"{asked} compares with single prompts, but of production usage only clusters are kept. "
        "Use strategy `compass` with draw `uniform` or `diverse` for updates."
    )


def update_training(recipe: Recipe) -> TrainingConfig:
    """Return the training of an update: the recipe's, with the update's own steps and rate."""
    changes: dict[str, Any] = {}
    if recipe.update.steps:
        changes |= {"min_steps": recipe.update.steps, "max_steps": recipe.update.steps}
    if recipe.update.learning_rate:
        changes["learning_rate"] = recipe.update.learning_rate
    return recipe.training.model_copy(update=changes)


@stage("fisher", 1, libraries=_LIBRARIES)
def fisher(
    draft: Draft,
    language: str,
    rows: ArtifactRef,
    adapter: ModelRef,
    base: ModelRef,
    base_config: BaseConfig,
    settings: dict[str, Any],
    previous: ArtifactRef | None,
    execution: ExecutionConfig,
) -> None:
    """Measure the Fisher information of an adapter: ``fisher.safetensors`` and ``fisher.json``.

    `settings` are those of `fisher_settings`; `previous` is what earlier updates accumulated.
    """
    store = open_store()
    spec = settings | {
        "rows": [str(store.folder(rows) / ROWS)],
        "base": base_config.model_dump(mode="json") | {"model": base.path},
        "adapter_folder": adapter.path,
        "previous_path": str(store.folder(previous)) if previous is not None else None,
        "out_folder": str(draft.folder),
    }
    with training_slot(execution, language, "fisher"):
        facts = run_job(fisher_job, spec, execution, language=language, stage="fisher")
    draft.rows = int(facts["n_examples"])
    draft.provenance |= {"language": language, "seconds": facts.pop("seconds")} | facts


def fisher_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the Fisher information depends on besides rows and adapter, as plain values."""
    return {
        "training": recipe.training.model_dump(mode="json"),
        "max_examples": recipe.update.fisher_examples,
        "decay": recipe.update.fisher_decay,
        "seed": recipe.seed,
    }


@stage("replay", 2)
def replay(
    draft: Draft,
    language: str,
    history: ArtifactRef,
    space: ArtifactRef,
    share: float,
    most: int,
    seed: int,
) -> None:
    """Draw the replay buffer from everything trained so far, in its mix of clusters."""
    store = open_store()
    folder = store.folder(history)
    buffer = ReplayBuffer.draw(
        read_table(folder / ROWS),
        read_array(folder / IDS),
        len(read_array(store.folder(space) / "radii.npy")),
        share=share,
        max_examples=most,
        seed=derive_seed(seed, "replay", language),
        space=space.sha256,
        sources=[history.sha256],
    )
    draft.rows = len(buffer)
    draft.provenance |= {"language": language, "n_history": history.rows}
    buffer.save(draft.folder)


@stage("update-train", 1, libraries=_LIBRARIES)
def update_train(
    draft: Draft,
    language: str,
    data: ArtifactRef,
    models: dict[str, ModelRef],
    terms: dict[str, ArtifactRef | None],
    base_config: BaseConfig,
    training: TrainingConfig,
    settings: dict[str, Any],
    execution: ExecutionConfig,
) -> None:
    """Train on from the champion by equation (6): ``adapter/``, ``history.jsonl`` and facts.

    `models` are ``champion`` and ``base``; `terms` are ``fisher`` and ``replay``; `settings` those
    of `update_settings`.
    """
    store = open_store()
    champion, base = models["champion"], models["base"]
    strengths = {name: settings[name] for name in settings if name != "seed"}
    made_of = (data, models, terms, base_config, training, settings)
    checkpoints = compass_home() / "store" / "checkpoints" / fingerprint(key_value(made_of))
    known = {name: ref for name, ref in terms.items() if ref is not None}
    spec = {
        "rows": [str(store.folder(data) / ROWS)],
        "start_folder": champion.path,
        "fisher_path": str(store.folder(known["fisher"])) if "fisher" in known else None,
        "replay_rows": [str(store.folder(known["replay"]) / ROWS)] if "replay" in known else [],
        "update": strengths,
        "base": base_config.model_dump(mode="json") | {"model": base.path},
        "training": training.model_dump(mode="json"),
        "seed": settings["seed"],
        "out_folder": str(draft.folder),
        "checkpoint_folder": str(checkpoints),
        "card": {
            "language": language,
            "updated_from": champion.sha256,
            "data_sha256": data.sha256,
            "base_fingerprint": base.sha256,
            **{f"{name}_sha256": ref.sha256 for name, ref in sorted(known.items())},
            **strengths,
        },
    }
    with training_slot(execution, language, "update-train"):
        facts = run_job(update_job, spec, execution, language=language, stage="update-train")
    draft.rows = int(facts["steps"])
    draft.provenance |= {"language": language, "seconds": facts.pop("seconds")}
    write_json(draft.folder / "training.json", facts)
    shutil.rmtree(Path(checkpoints), ignore_errors=True)


def update_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what equation (6) is weighed with, and the seed, as plain values."""
    names = ("ewc_strength", "replay_strength", "fisher_scale", "replay_batch_size")
    return {name: getattr(recipe.update, name) for name in names} | {"seed": recipe.seed}


@stage("decision", 2)
def decide_on_update(
    draft: Draft,
    language: str,
    before: ArtifactRef,
    after: ArtifactRef,
    exam: ArtifactRef,
    new: str,
    promotion: PromotionConfig,
    update: UpdateConfig,
) -> None:
    """Compare the challenger with the champion on every slice: ``decision.json``."""
    store = open_store()
    verdict = decide_update(
        read_table(store.folder(before) / "items.parquet"),
        read_table(store.folder(after) / "items.parquet"),
        read_slices(exam),
        new,
        promotion,
        update,
    )
    draft.rows = verdict.new.n_items
    draft.provenance |= {"language": language}
    write_json(draft.folder / "decision.json", verdict.to_dict() | {"language": language})


def refused_in_a_row(language: str) -> int:
    """Return how many updates of a language were refused since the last one that was not."""
    count = 0
    for event in reversed(open_outbox(language).all()):
        status = event.outcome.get("status")
        if status == "refused":
            count += 1
        elif status is not None:
            break
    return count
