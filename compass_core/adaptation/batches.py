"""Training examples as batches: every optimiser step has its examples, little of it padding.

A step is a uniform random draw of `batch_size` examples (reshuffled every epoch), so no step is
biased towards short or long texts. Only inside a step are examples sorted by length and cut into
micro-batches, by dynamic programming over padded tokens plus a fixed price per forward pass.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from compass_core.adaptation.bases import Base
from compass_core.adaptation.rendering import Rendered, render_example, render_examples
from compass_core.config import TrainingConfig
from compass_core.errors import DataError
from compass_core.records import Example
from compass_core.seeding import derive_rng

__all__ = [
    "MicroBatch",
    "StepOrder",
    "TrainingData",
    "collate",
    "plan_micro_batches",
    "prepare_data",
    "render_example",
    "truncate",
]

logger = logging.getLogger(__name__)

PASS_PRICE_TOKENS = 96
"""What one more forward and backward pass costs, in tokens, as measured on a CPU for a model of 1 M
parameters: fixed, so that results do not depend on how fast the machine happens to be."""

MAX_LOGITS = 1 << 28
"""Logits held at once (1 GiB of float32): bounds response tokens × vocabulary of a micro-batch."""


@dataclass(frozen=True)
class MicroBatch:
    """Examples of one forward pass, padded on the right.

    Right padding behind a causal mask cannot influence a real token, so no attention mask is
    needed and attention takes its fastest path.

    Attributes:
        input_ids: (B, T) tokens.
        positions: (N,) flat indices into B × T of the positions that predict a response token.
        targets: (N,) the tokens to predict there.
        n_tokens: Real tokens.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    n_tokens: int

    @property
    def n_padded(self) -> int:
        """Tokens with padding: what the forward pass pays for."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on `device`."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            self.input_ids.to(device),
            self.positions.to(device),
            self.targets.to(device),
            self.n_tokens,
        )


@dataclass(frozen=True)
class TrainingData:
    """Rendered examples that have something to train on.

    Attributes:
        examples: Examples, cut to the token limit.
        n_truncated: Examples that were cut.
        n_dropped: Examples left out because no response token remained.
    """

    examples: list[Rendered]
    n_truncated: int
    n_dropped: int


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


def truncate(examples: Sequence[Rendered], max_length: int) -> TrainingData:
    """Cut every example at `max_length` tokens; leave out those without a response token.

    Raises:
        DataError: E16 when nothing remains.
    """
    kept = []
    n_truncated = 0
    for example in examples:
        cut = example
        if len(example.ids) > max_length:
            n_truncated += 1
            cut = Rendered(example.ids[:max_length], example.n_prompt)
        if cut.n_targets > 0:
            kept.append(cut)
    n_dropped = len(examples) - len(kept)
    if not kept:
        raise DataError(
            f"None of the {len(examples)} training examples has a response within "
            f"training.max_length={max_length} tokens. Give examples with answers, or raise it.",
            code="E16",
        )
    if n_truncated or n_dropped:
        logger.warning(
            "%d of %d training examples were cut to %d tokens, %d left out (no response in reach)",
            n_truncated,
            len(examples),
            max_length,
            n_dropped,
        )
    return TrainingData(kept, n_truncated, n_dropped)


class StepOrder:
    """Which examples each optimiser step sees: epoch after epoch, each newly shuffled."""

    def __init__(self, n_examples: int, batch_size: int, seed: int) -> None:
        """Prepare the order of `n_examples` under `seed`."""
        self.n_examples = n_examples
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return derive_rng(self.seed, "order", str(epoch)).permutation(self.n_examples)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the (batch_size,) examples of 0-based `step`, whatever was asked before."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, self.n_examples)
        parts = [self._epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)


def plan_micro_batches(
    lengths: NDArray[np.int64],
    targets: NDArray[np.int64],
    max_tokens: int,
    max_targets: int | None = None,
) -> list[NDArray[np.int64]]:
    """Cut the examples of one step into micro-batches of similar length.

    Minimises Σ (padded tokens + `PASS_PRICE_TOKENS`) exactly over all cuts of the sorted lengths. A
    single example longer than `max_tokens` is a micro-batch of its own.

    Args:
        lengths: (B,) tokens per example.
        targets: (B,) response tokens per example.
        max_tokens: Padded tokens per micro-batch.
        max_targets: Response tokens per micro-batch; None for no limit.

    Returns:
        Index arrays into the step, shortest examples first; together each index exactly once.

    Examples:
        >>> import numpy as np
        >>> lengths = np.array([10, 900, 11, 12])
        >>> [group.tolist() for group in plan_micro_batches(lengths, lengths, 4096)]
        [[0, 2, 3], [1]]
    """
    order = np.argsort(lengths, kind="stable")
    sizes = lengths[order]
    answered = np.concatenate([[0], np.cumsum(targets[order])])
    n = len(order)
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    start_of = np.zeros(n + 1, dtype=np.int64)
    starts = np.arange(n)
    for end in range(1, n + 1):
        padded = (end - starts[:end]) * sizes[end - 1]
        allowed = padded <= max_tokens
        if max_targets is not None:
            allowed &= answered[end] - answered[:end] <= max_targets
        allowed[end - 1] = True
        costs = np.where(allowed, best[:end] + padded + PASS_PRICE_TOKENS, np.inf)
        start_of[end] = int(np.argmin(costs))
        best[end] = costs[start_of[end]]
    groups = []
    end = n
    while end > 0:
        groups.append(order[start_of[end] : end])
        end = int(start_of[end])
    return groups[::-1]


def collate(examples: Sequence[Rendered], pad_id: int) -> MicroBatch:
    """Return `examples` as one right-padded batch with the places that predict a response token."""
    width = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), width), pad_id, dtype=np.int64)
    positions, targets = [], []
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = example.ids
        first = max(example.n_prompt, 1)
        positions.append(np.arange(first - 1, length - 1) + row * width)
        targets.append(example.ids[first:])
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.concatenate(positions)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        n_tokens=sum(len(example.ids) for example in examples),
    )


def micro_batches(
    data: TrainingData,
    indices: NDArray[np.int64],
    *,
    pad_id: int,
    max_tokens: int,
    vocab_size: int,
) -> list[MicroBatch]:
    """Return the examples `indices` of one step as micro-batches."""
    chosen = [data.examples[index] for index in indices]
    lengths = np.array([len(example.ids) for example in chosen])
    targets = np.array([example.n_targets for example in chosen])
    groups = plan_micro_batches(lengths, targets, max_tokens, max(1, MAX_LOGITS // vocab_size))
    return [collate([chosen[index] for index in group], pad_id) for group in groups]
