"""Dropout for adapters on a CPU, cheaper than torch's, which draws a number for every element.

There it is a quarter of the training step of a small model. Elements are dropped by
comparing 16 random bits with a threshold, so p is met to 1/65536, and the kept elements are scaled
by the share that is really kept. The bits of a step depend on its seed alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_LEVELS = 1 << 16


class BitSource:
    """Random bits of the current step, shared by all dropout layers of one training."""

    def __init__(self) -> None:
        """Start undefined: `reseed` comes before the first draw."""
        self._bits = np.random.SFC64(0)

    def reseed(self, seed: int) -> None:
        """Start the stream of `seed`."""
        self._bits = np.random.SFC64(seed)

    def mask(self, shape: torch.Size, threshold: int) -> torch.Tensor:
        """Return a mask: 0 where 16 bits fall below `threshold`, else 1 / P(not below)."""
        n = shape.numel()
        words = self._bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
        scale = np.float32(_LEVELS / (_LEVELS - threshold))
        return torch.from_numpy(np.multiply(words >= threshold, scale, dtype=np.float32)).view(
            shape
        )


class StepDropout(nn.Module):
    """Dropout with probability `p` whose masks come from a `BitSource`."""

    def __init__(self, p: float, source: BitSource) -> None:
        """Drop with probability `p` in [0, 1)."""
        super().__init__()
        self.threshold = round(p * _LEVELS)
        self.source = source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with elements dropped in training mode, unchanged otherwise."""
        if not self.training or self.threshold == 0:
            return x
        return x * self.source.mask(x.shape, self.threshold).to(x.dtype)


def use_step_dropout(model: nn.Module, source: BitSource) -> None:
    """Replace the dropout of every adapter layer of `model`."""
    for module in list(model.modules()):
        layers = getattr(module, "lora_dropout", None)
        if not isinstance(layers, nn.ModuleDict):
            continue
        for name, layer in layers.items():
            if isinstance(layer, nn.Dropout):
                layers[name] = StepDropout(layer.p, source)
