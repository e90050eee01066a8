"""Logits at chosen positions only: the output head of a large vocabulary is most of a small model.

The positions are picked by a hook in front of the head, so whatever an architecture does after it
(soft-capping, scaling) still happens, and the code knows no architecture.
"""

from __future__ import annotations

from typing import Any

import torch


def causal_model(model: Any) -> Any:
    """Return the causal LM itself, adapter layers included, without peft's outer wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits_at(
    model: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Return the logits that follow chosen positions.

    Args:
        model: A causal LM or a peft model around one.
        input_ids: (B, T) tokens, padded on the right.
        positions: (N,) flat indices into B × T.
        inputs: Further inputs of the model (attention mask, position ids).

    Returns:
        (N, V) logits; row n predicts the token after position n.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    if head is None:
        logits: torch.Tensor = causal(input_ids=input_ids, use_cache=False, **inputs).logits
        return logits.flatten(0, 1).index_select(0, positions)

    def pick(_module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = arguments
        chosen = hidden.flatten(0, -2).index_select(0, positions)
        return (chosen.unsqueeze(0), *rest)

    hook = head.register_forward_pre_hook(pick)
    try:
        picked: torch.Tensor = causal(input_ids=input_ids, use_cache=False, **inputs).logits
    finally:
        hook.remove()
    assert picked.shape[:2] == (1, len(positions)), "the head was not called on hidden states"
    return picked[0]
