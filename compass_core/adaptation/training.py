"""Adapter training: our own short loop, resumable bit for bit.

Every step is a function of (recipe, step number) and the weights before it: the examples come from
`StepOrder`, dropout from a seed of its own per step, the learning rate from the schedule. So a
checkpoint needs no random state, and a resumed run cannot differ from an uninterrupted one.

The loss is L_task of docs/method.md: the mean over all response tokens of the step, however the
step is cut into micro-batches.
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
    truncate,
)
from compass_core.adaptation.checkpoints import Progress, resume_checkpoint, write_checkpoint
from compass_core.adaptation.dropout import BitSource, use_step_dropout
from compass_core.adaptation.forward import logits_at
from compass_core.adaptation.rendering import Rendered, render_examples
from compass_core.adapter_files import adapter_sha256
from compass_core.config import TrainingConfig
from compass_core.errors import ConfigError, DataError
from compass_core.records import Example
from compass_core.seeding import derive_seed

logger = logging.getLogger(__name__)

TRAINING_VERSION = 1
"""Raised whenever this package trains differently from the same recipe."""

ExtraLoss = Callable[[PeftModel, int], torch.Tensor]
"""(model, 0-based step) → scalar added to the step's loss, such as λ·L_EWC + β·L_DAR."""

OnStep = Callable[[int, int, dict[str, Any]], None]
"""(steps done, steps in total, this step's record of the history)."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained adapter, still attached to its base.

    Attributes:
        model: The base with the adapter; save it, then `detach_adapter`.
        steps: Optimiser steps.
        history: Per step: step, loss (nats per response token), learning_rate, grad_norm (before
            clipping), tokens, padded_tokens, seconds.
        tokens: Real tokens seen, repetitions counted.
        padding_efficiency: Real over padded tokens.
        n_truncated: Examples cut at the token limit.
        n_dropped: Examples left out since no response token remained.
    """

    model: PeftModel
    steps: int
    history: list[dict[str, Any]]
    tokens: int
    padding_efficiency: float
    n_truncated: int = 0
    n_dropped: int = 0


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
    base: Base,
    data: Sequence[Rendered],
    config: TrainingConfig,
    seed: int,
    start: Path | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be continued (plain JSON values)."""
    begun = {} if start is None else {"start": adapter_sha256(start)}
    digest = hashlib.sha256()
    for example in data:
        digest.update(np.array([example.n_prompt, len(example.ids)], dtype=np.int64).tobytes())
        digest.update(example.ids.tobytes())
    return {
        "training_version": TRAINING_VERSION,
        "base": base.fingerprint,
        "dtype": str(base.model.dtype),
        "device": base.device.type,
        "config": config.model_dump(mode="json", exclude={"checkpoint_every"}),
        "seed": seed,
        "data": digest.hexdigest(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "peft": str(peft.__version__),
        **begun,
    }


# --------------------------------------------------------------------------- the loop
def train_adapter(
    base: Base,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    seed: int,
    checkpoint_folder: Path | None = None,
    on_step: OnStep | None = None,
    extra_loss: ExtraLoss | None = None,
    start: Path | None = None,
) -> TrainingResult:
    """Train an adapter on `examples` and leave it attached to `base`.

    Same base, examples, config and seed give the same weights, bit for bit on a CPU with one
    thread count, also when the run was killed and continued from `checkpoint_folder`.

    Args:
        base: The frozen base; no other adapter may be attached.
        examples: Training pairs and plain text, in a fixed order.
        config: The adapter and its training.
        seed: Seed of initial weights, order and dropout.
        checkpoint_folder: Where to keep checkpoints and look for one; None keeps none.
        on_step: Called after each optimiser step; what it raises stops the training.
        extra_loss: A term added to every step's loss.
        start: Folder of the adapter whose weights training starts from; None: new weights.

    Returns:
        The trained adapter with its history.

    Raises:
        DataError: E03 no examples, E16 no response token in any of them.
        ModelError: E35 unknown target modules.
        ConfigError: E65 the loss or gradient is not finite; the last checkpoint is kept.
    """
    data = prepare_data(base, examples, config)
    model = (
        attach_adapter(base, config, seed=seed)
        if start is None
        else continue_adapter(base, start, config)
    )
    try:
        loop = _Loop(base, model, data, config, seed)
        loop.extra_loss = extra_loss
        loop.start = start
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
    )


def prepare_data(base: Base, examples: Sequence[Example], config: TrainingConfig) -> TrainingData:
    """Return `examples` as tokens, cut to what config and base allow.

    Raises:
        DataError: E03 no examples, E16 no response token in any of them.
    """
    if not examples:
        raise DataError(
            "There is nothing to train on: 0 examples. Raise selection.budget or add coverage.",
            code="E03",
        )
    limit = min(config.max_length, base.max_positions or config.max_length)
    return truncate(render_examples(examples, base.tokenizer), limit)


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
        self.extra_loss: ExtraLoss | None = None
        self.start: Path | None = None
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

    def run(self, folder: Path | None, on_step: OnStep | None) -> Progress:
        """Train from the newest checkpoint (or the start) to the end."""
        recipe = recipe_of(self.base, self.data.examples, self.config, self.seed, self.start)
        progress = Progress(0, [])
        if folder is not None:
            progress = resume_checkpoint(folder, recipe, self.parameters, self.optimiser)
        self.model.train()
        history = progress.history
        for step in range(progress.step, self.steps):
            record = self._step(step)
            history.append(record)
            done = step + 1
            if folder is not None and done % self.config.checkpoint_every == 0:
                state = Progress(done, history)
                write_checkpoint(folder, state, recipe, self.parameters, self.optimiser)
            if on_step is not None:
                on_step(done, self.steps, record)
        return Progress(self.steps, history)

    def _step(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._reseed(step)
        batches = self._batches(step)
        n_targets = sum(len(batch.targets) for batch in batches)
        loss = 0.0
        for batch in batches:
            part = self._task_loss(batch, n_targets)
            torch.autograd.backward(part)
            loss += float(part.detach())
        if self.extra_loss is not None:
            extra = self.extra_loss(self.model, step)
            torch.autograd.backward(extra)
            loss += float(extra.detach())
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
            "seconds": time.perf_counter() - started,
        }

    def _reseed(self, step: int) -> None:
        seed = derive_seed(self.seed, "dropout", str(step))
        torch.manual_seed(seed)
        self.bits.reseed(seed)

    def _batches(self, step: int) -> list[MicroBatch]:
        return micro_batches(
            self.data,
            self.order.indices(step),
            pad_id=int(self.base.tokenizer.pad_token_id),
            max_tokens=self.config.micro_batch_tokens,
            vocab_size=self.vocab_size,
        )

    def _task_loss(self, batch: MicroBatch, n_targets: int) -> torch.Tensor:
        """Return this micro-batch's share of the step's mean over response tokens."""
        batch = batch.to(self.base.device)
        logits = logits_at(self.model, batch.input_ids, batch.positions)
        total = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
        return total / n_targets

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise ConfigError(
            f"Training stopped at step {step + 1} of {self.steps}: loss {loss}, gradient norm "
            f"{norm}. Lower training.learning_rate (now {self.config.learning_rate:g}) or "
            "training.lora_alpha, and run again; the last checkpoint is kept.",
            code="E65",
        )
