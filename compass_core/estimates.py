"""What a run will take, before it starts: steps, time and disk, from sizes alone.

The time counts 6 floating-point operations per weight and trained token, at the speed this
machine's processor reaches on a matrix product; a GPU is faster, a small model slower than that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compass_core.config import TrainingConfig

FLOPS_PER_WEIGHT_AND_TOKEN = 6
BYTES_PER_TOKEN = 3.0
"""Mean length of a token in UTF-8 bytes; between 2 and 5 for the tokenizers we met."""

_EFFICIENCY = 0.4
"""Share of a plain matrix product's speed that training reaches."""
_MATRIX = 768


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one adapter costs.

    Attributes:
        steps: Optimiser steps.
        tokens: Tokens read in all steps together.
        seconds: On this machine's processor.
        bytes: Adapter and its checkpoints on disk.
    """

    steps: int
    tokens: int
    seconds: float
    bytes: int


def estimate_training(
    n_examples: int,
    mean_bytes: float,
    shapes: Mapping[str, tuple[int, ...]],
    config: TrainingConfig,
    flops_per_second: float,
) -> Estimate:
    """Estimate one adapter's training.

    Args:
        n_examples: Coverage and selection together.
        mean_bytes: Mean UTF-8 length of prompt and response together.
        shapes: Shape of each weight of the base.
        config: The training.
        flops_per_second: From `processor_speed`.
    """
    from compass_core.adaptation.training import count_steps

    steps = count_steps(n_examples, config)
    per_example = min(mean_bytes / BYTES_PER_TOKEN, config.max_length)
    tokens = int(steps * min(config.batch_size, max(n_examples, 1)) * per_example)
    weights = sum(math.prod(shape) for shape in shapes.values())
    flops = FLOPS_PER_WEIGHT_AND_TOKEN * weights * tokens
    linear = [shape for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name]
    adapter = 4 * config.lora_rank * sum(sum(shape) for shape in linear)
    # Two checkpoints are kept, each with the weights and AdamW's two moments.
    return Estimate(steps, tokens, flops / (_EFFICIENCY * flops_per_second), adapter * 7)


def processor_speed() -> float:
    """Return floating-point operations per second of one float32 matrix product here."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((_MATRIX, _MATRIX), dtype=np.float32)
    best = math.inf
    for _ in range(3):
        started = time.perf_counter()
        _ = matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return float(2 * _MATRIX**3 / best)
