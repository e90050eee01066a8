"""Estimates before a run: hand-checkable arithmetic."""

import pytest

from compass_core.config import TrainingConfig
from compass_core.estimates import estimate_training, processor_speed

SHAPES = {"embed.weight": (100, 10), "layer.weight": (10, 20), "norm.weight": (10,)}


def test_estimate_is_steps_times_tokens_times_weights():
    config = TrainingConfig(batch_size=4, min_steps=5, max_steps=5, lora_rank=2)
    found = estimate_training(
        8, mean_bytes=30.0, shapes=SHAPES, config=config, flops_per_second=1e6
    )
    assert found.steps == 5
    assert found.tokens == 5 * 4 * 10
    # 1,210 weights, 6 operations each per token, at 40 % of the processor's speed.
    assert found.seconds == pytest.approx(6 * 1210 * 200 / 0.4e6)
    # Rank 2 on the one linear layer (10 + 20), 4 bytes, 7 copies (adapter, two checkpoints).
    assert found.bytes == 4 * 2 * 30 * 7


def test_long_examples_are_cut():
    config = TrainingConfig(batch_size=1, min_steps=1, max_steps=1, max_length=8)
    assert estimate_training(1, 3000.0, SHAPES, config, 1e6).tokens == 8


def test_processor_speed_is_plausible():
    assert 1e8 < processor_speed() < 1e14
