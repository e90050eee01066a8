"""Elastic weight consolidation: weights that matter for the old are held where they are.

    (7) L_EWC = Σ_i F_i/2 (φ_i − φ*_i)²      ∂L_EWC/∂φ_i = F_i (φ_i − φ*_i)

φ* are the weights the update starts from, F their Fisher information, scaled by a named policy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector


def ewc_penalty(weights: torch.Tensor, anchor: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """Return L_EWC of equation (7), a scalar.

    Args:
        weights: (P,) φ.
        anchor: (P,) φ*.
        fisher: (P,) F ≥ 0.

    Examples:
        >>> one, two = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])
        >>> ewc_penalty(two, one, torch.tensor([1.0, 2.0])).item()
        9.5
    """
    return 0.5 * (fisher * (weights - anchor).square()).sum()


class EwcPenalty:
    """λ·L_EWC of a training that starts now: φ* are the parameters' values at this moment."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        fisher: Mapping[str, torch.Tensor],
        strength: float,
    ) -> None:
        """Anchor `parameters` where they are.

        Args:
            parameters: Name → weight.
            fisher: The same names → scaled F of the weight's shape.
            strength: λ ≥ 0 of equation (6).
        """
        self.parameters = list(parameters.values())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.anchor = parameters_to_vector(self.parameters).detach().clone()
        ordered = [fisher[name].reshape(-1) for name in parameters]
        self.fisher = torch.cat(ordered).to(self.anchor)
        self.strength = strength

    @torch.no_grad()
    def add_gradient(self) -> float:
        """Add the gradient of λ·L_EWC to the parameters' gradients and return L_EWC.

        The gradient is known in closed form, so there is no graph to build and walk.
        """
        away = parameters_to_vector(self.parameters) - self.anchor
        pull = self.fisher * away
        for parameter, part in zip(self.parameters, torch.split(pull, self.sizes), strict=True):
            gradient = part.view_as(parameter) * self.strength
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return 0.5 * float(torch.dot(pull, away))
