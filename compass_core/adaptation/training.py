"""Adapter training: our own short loop, resumable bit for bit.

Every step is a function of (recipe, step number) and the weights before it: the examples come from
`StepOrder`, dropout from a seed of its own per step, the learning rate from the schedule. So a
checkpoint needs no random state, and a resumed run cannot differ from an uninterrupted one.

The loss is L_task of docs/method.md: the mean over all response tokens of the step, however the
step is cut into micro-batches. An update starts from a saved adapter and adds the two terms of
equation (6) that keep it from forgetting (`UpdateTerms`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft import PeftModel

from compass_core.adaptation.adapters import (
    attach_adapter,
    continue_adapter,
    detach_adapter,
    seeded,
)
from compass_core.adaptation.bases import Base
from compass_core.adaptation.batches import (
    MicroBatch,
    StepOrder,
    TrainingData,
    micro_batches,
    prepare_data,
)
from compass_core.adaptation.checkpoints import Progress, resume_checkpoint, write_checkpoint
from compass_core.adaptation.dropout import BitSource, use_step_dropout
from compass_core.adaptation.ewc import EwcPenalty
from compass_core.adaptation.fisher import adapter_parameters
from compass_core.adaptation.fisher_files import require_fit, scaled_fisher
from compass_core.adaptation.forward import logits_at
from compass_core.adaptation.rendering import Rendered
from compass_core.adaptation.update_terms import UpdateTerms
from compass_core.adapter_files import adapter_sha256
from compass_core.config import TrainingConfig
from compass_core.errors import ConfigError
from compass_core.records import Example
from compass_core.seeding import derive_seed

logger = logging.getLogger(__name__)

TRAINING_VERSION = 1
"""Raised whenever this package trains differently from the same recipe."""

OnStep = Callable[[int, int, dict[str, Any]], None]
"""(steps done, steps in total, this step's record of the history)."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained adapter, still attached to its base.

    Attributes:
        model: The base with the adapter; save it, then `detach_adapter`.
        steps: Optimiser steps.
        history: Per step: step, loss (nats per response token), learning_rate, grad_norm (before
            clipping), tokens, padded_tokens, seconds. With `UpdateTerms` the loss is the sum of
            equation (6), and loss_task, loss_ewc, loss_replay (without λ and β) and tokens_replay
            are added.
        tokens: Real tokens of `examples` seen, repetitions counted.
        padding_efficiency: Real over padded tokens.
        n_truncated: Examples cut at the token limit.
        n_dropped: Examples left out since no response token remained.
        tokens_replay: Real tokens of replayed examples seen, repetitions counted.
    """

    model: PeftModel
    steps: int
    history: list[dict[str, Any]]
    tokens: int
    padding_efficiency: float
    n_truncated: int = 0
    n_dropped: int = 0
    tokens_replay: int = 0


# --------------------------------------------------------------------------- plans
def count_steps(n_examples: int, config: TrainingConfig) -> int:
    """Return the optimiser steps of `n_examples` under `config`.

    ⌈epochs · n / batch⌉, at least `min_steps` (and 1), at most `max_steps` where that is not 0.

    Examples:
        >>> count_steps(100, TrainingConfig(epochs=3, batch_size=32))
        10
        >>> count_steps(100, TrainingConfig(epochs=3, batch_size=32, min_steps=50))
        50
    """
    steps = max(math.ceil(config.epochs * n_examples / config.batch_size), config.min_steps, 1)
    return min(steps, config.max_steps) if config.max_steps else steps


def learning_rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of 0-based `step`: linear warm-up, then the schedule down to 0."""
    n_warmup = math.ceil(config.warmup_ratio * steps)
    if step < n_warmup:
        return config.learning_rate * (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, steps - n_warmup)
    shape = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "linear": 1.0 - done,
        "constant": 1.0,
    }
    return config.learning_rate * shape[config.schedule]


def recipe_of(
    base: Base, data: Sequence[Rendered], config: TrainingConfig, seed: int
) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be continued (plain JSON values)."""
    return {
        "training_version": TRAINING_VERSION,
        "base": base.fingerprint,
        "dtype": str(base.model.dtype),
        "device": base.device.type,
        "config": config.model_dump(mode="json", exclude={"checkpoint_every"}),
        "seed": seed,
        "data": _digest(data),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "peft": str(peft.__version__),
    }


def _digest(data: Sequence[Rendered]) -> str:
    digest = hashlib.sha256()
    for example in data:
        digest.update(np.array([example.n_prompt, len(example.ids)], dtype=np.int64).tobytes())
        digest.update(example.ids.tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------- the loop
def train_adapter(
    base: Base,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    seed: int,
    checkpoint_folder: Path | None = None,
    on_step: OnStep | None = None,
    start: Path | None = None,
    update: UpdateTerms | None = None,
) -> TrainingResult:
    """Train an adapter on `examples` and leave it attached to `base`.

    Same base, examples, config, seed, start and terms give the same weights, bit for bit on a CPU
    with one thread count, also when the run was killed and continued from `checkpoint_folder`.

    Args:
        base: The frozen base; no other adapter may be attached.
        examples: Training pairs and plain text, in a fixed order.
        config: The adapter and its training.
        seed: Seed of initial weights, order and dropout.
        checkpoint_folder: Where to keep checkpoints and look for one; None keeps none.
        on_step: Called after each optimiser step; what it raises stops the training.
        start: Folder of the adapter whose weights training starts from; None: new weights.
        update: What keeps the adapter from forgetting; needs `start`.

    Returns:
        The trained adapter with its history.

    Raises:
        DataError: E03 no examples, E16 no response token in any of them.
        ModelError: E35 unknown target modules; see `load_adapter` for `start` and `require_fit`
            for Fisher information that does not belong to it.
        ConfigError: E65 the loss or gradient is not finite; the last checkpoint is kept. E42
            `config` describes another adapter than `start`, or `update` came without it.
    """
    if update is not None and start is None:
        raise ConfigError(
            "An update needs the adapter it starts from: give start_folder, or train without "
            "EWC and replay.",
            code="E42",
        )
    data = prepare_data(base, examples, config)
    model = (
        attach_adapter(base, config, seed=seed)
        if start is None
        else continue_adapter(base, start, config)
    )
    try:
        loop = _Loop(base, model, data, config, seed)
        if start is not None:
            loop.start_from(adapter_sha256(start), update)
        with seeded(0, base.device):
            progress = loop.run(checkpoint_folder, on_step)
    except BaseException:
        detach_adapter(model)
        raise
    model.eval()
    tokens = sum(record["tokens"] for record in progress.history)
    padded = sum(record["padded_tokens"] for record in progress.history)
    return TrainingResult(
        model=model,
        steps=progress.step,
        history=progress.history,
        tokens=tokens,
        padding_efficiency=tokens / padded,
        n_truncated=data.n_truncated,
        n_dropped=data.n_dropped,
        tokens_replay=sum(record.get("tokens_replay", 0) for record in progress.history),
    )


class _Loop:
    """One training: what stays the same over its steps."""

    def __init__(
        self, base: Base, model: PeftModel, data: TrainingData, config: TrainingConfig, seed: int
    ) -> None:
        self.base = base
        self.model = model
        self.data = data
        self.config = config
        self.seed = seed
        self.steps = count_steps(len(data.examples), config)
        self.order = StepOrder(len(data.examples), config.batch_size, seed)
        self.vocab_size = int(base.model.config.get_text_config().vocab_size)
        self.recipe = recipe_of(base, data.examples, config, seed)
        self.update: UpdateTerms | None = None
        self.ewc: EwcPenalty | None = None
        self.replay: TrainingData | None = None
        self.bits = BitSource()
        if base.device.type == "cpu":
            use_step_dropout(model, self.bits)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Fused: one call for all tensors; an adapter is many small ones.
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def start_from(self, adapter_sha256: str, update: UpdateTerms | None) -> None:
        """Anchor the terms of `update` at the weights the model has now."""
        self.recipe["start"] = adapter_sha256
        self.update = update
        if update is None:
            return
        if update.fisher is not None and update.uses_ewc:
            weights = adapter_parameters(self.model)
            require_fit(update.fisher, self.base.fingerprint, weights, adapter_sha256)
            values = scaled_fisher(update.fisher, update.fisher_scale)
            self.ewc = EwcPenalty(weights, values, update.ewc_strength)
        if update.uses_replay:
            self.replay = prepare_data(self.base, update.replay, self.config)
            size = update.replay_batch(self.config)
            seed = derive_seed(self.seed, "replay")
            self.replay_order = StepOrder(len(self.replay.examples), size, seed)
        self.recipe["update"] = self._update_recipe(update)

    def _update_recipe(self, update: UpdateTerms) -> dict[str, Any]:
        recipe: dict[str, Any] = {}
        if self.ewc is not None:
            values = self.ewc.fisher.cpu().numpy().tobytes()
            recipe["ewc"] = [update.ewc_strength, hashlib.sha256(values).hexdigest()]
        if self.replay is not None:
            size = update.replay_batch(self.config)
            recipe["replay"] = [update.replay_strength, size, _digest(self.replay.examples)]
        return recipe

    def run(self, folder: Path | None, on_step: OnStep | None) -> Progress:
        """Train from the newest checkpoint (or the start) to the end."""
        progress = Progress(0, [])
        if folder is not None:
            progress = resume_checkpoint(folder, self.recipe, self.parameters, self.optimiser)
        self.model.train()
        history = progress.history
        for step in range(progress.step, self.steps):
            record = self._step(step)
            history.append(record)
            done = step + 1
            if folder is not None and done % self.config.checkpoint_every == 0:
                state = Progress(done, history)
                write_checkpoint(folder, state, self.recipe, self.parameters, self.optimiser)
            if on_step is not None:
                on_step(done, self.steps, record)
        return Progress(self.steps, history)

    def _step(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._reseed(step)
        batches = self._batches(self.data, self.order, step)
        loss = self._add_gradient(batches, 1.0)
        parts: dict[str, Any] = {}
        if self.update is not None:
            parts = self._add_update(step, loss, self.update)
            loss = parts.pop("loss")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self._require_finite(step, loss, float(norm))
        rate = learning_rate_at(step, self.steps, self.config)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": float(norm),
            "tokens": sum(batch.n_tokens for batch in batches),
            "padded_tokens": sum(batch.n_padded for batch in batches),
            **parts,
            "seconds": time.perf_counter() - started,
        }

    def _add_update(self, step: int, task: float, update: UpdateTerms) -> dict[str, Any]:
        """Add the gradients of λ·L_EWC + β·L_DAR; return the losses and the tokens replayed."""
        replay, tokens = 0.0, 0
        if self.replay is not None:
            batches = self._batches(self.replay, self.replay_order, step)
            replay = self._add_gradient(batches, update.replay_strength)
            tokens = sum(batch.n_tokens for batch in batches)
        ewc = 0.0 if self.ewc is None else self.ewc.add_gradient()
        return {
            "loss": task + update.ewc_strength * ewc + update.replay_strength * replay,
            "loss_task": task,
            "loss_ewc": ewc,
            "loss_replay": replay,
            "tokens_replay": tokens,
        }

    def _reseed(self, step: int) -> None:
        seed = derive_seed(self.seed, "dropout", str(step))
        torch.manual_seed(seed)
        self.bits.reseed(seed)

    def _batches(self, data: TrainingData, order: StepOrder, step: int) -> list[MicroBatch]:
        return micro_batches(
            data,
            order.indices(step),
            pad_id=int(self.base.tokenizer.pad_token_id),
            max_tokens=self.config.micro_batch_tokens,
            vocab_size=self.vocab_size,
        )

    def _add_gradient(self, batches: list[MicroBatch], strength: float) -> float:
        """Add the gradient of `strength` · mean over response tokens; return the mean."""
        n_targets = sum(len(batch.targets) for batch in batches)
        mean = 0.0
        for batch in batches:
            moved = batch.to(self.base.device)
            logits = logits_at(self.model, moved.input_ids, moved.positions).float()
            total = torch.nn.functional.cross_entropy(logits, moved.targets, reduction="sum")
            part = total / n_targets
            torch.autograd.backward(part if strength == 1.0 else strength * part)
            mean += float(part.detach())
        return mean

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise ConfigError(
            f"Training stopped at step {step + 1} of {self.steps}: loss {loss}, gradient norm "
            f"{norm}. Lower training.learning_rate (now {self.config.learning_rate:g}) or "
            "training.lora_alpha, and run again; the last checkpoint is kept.",
            code="E65",
        )
