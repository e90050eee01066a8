"""Diagonal Fisher information of an adapter's weights, from exact per-example gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FisherInformation:
    """How much each weight of an adapter matters for what it was trained on.

    Attributes:
        values: Name in the adapter's state → F, float32, of the weight's shape.
        base_fingerprint: Identity of the base.
        adapter_sha256: Identity of the adapter whose weights it was computed at.
        n_examples: Examples it is the mean over, of the newest stage.
        tokens: Real tokens that were read for it.
    """

    values: dict[str, torch.Tensor]
    base_fingerprint: str
    adapter_sha256: str
    n_examples: int
    tokens: int
