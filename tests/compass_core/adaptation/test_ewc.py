import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compass_core.adaptation.ewc import EwcPenalty, ewc_penalty


def parameters(values):
    return {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}


def test_penalty_is_half_the_weighted_squared_distance():
    """½ (1·(2−1)² + 2·(4−1)²) = ½ (1 + 18) = 9.5."""
    one, away = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])
    assert float(ewc_penalty(away, one, torch.tensor([1.0, 2.0]))) == 9.5


def test_nothing_is_lost_where_training_starts():
    weights = parameters({"a": [[1.0, -2.0]], "b": [3.0]})
    ewc = EwcPenalty(weights, {"a": torch.ones(1, 2), "b": torch.ones(1)}, 2.0)
    assert ewc.add_gradient() == 0.0
    assert all(not weight.grad.any() for weight in weights.values())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.0, 50.0))
def test_added_gradient_equals_autograd_s(seed, strength):
    rng = np.random.default_rng(seed)
    shapes = {"a.lora_A": (3, 5), "a.lora_B": (4, 3), "a.magnitude": (4,)}
    start = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    fisher = {name: torch.from_numpy(rng.exponential(size=s)) for name, s in shapes.items()}
    away = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    weights = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    # Given in another order than the weights: names decide, not places.
    ewc = EwcPenalty(weights, dict(reversed(fisher.items())), strength)
    twins = {name: nn.Parameter(start[name] + away[name]) for name in shapes}
    terms = [
        ewc_penalty(twins[n].flatten(), start[n].flatten(), fisher[n].flatten()) for n in twins
    ]
    (strength * sum(terms)).backward()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(away[name])
    task = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    for name, weight in weights.items():
        weight.grad = task[name].clone()
    assert ewc.add_gradient() == pytest.approx(float(sum(terms).detach()))
    for name, weight in weights.items():
        assert torch.allclose(weight.grad, task[name] + twins[name].grad, atol=1e-10)


def test_weights_without_a_gradient_get_one():
    weights = parameters({"a": [1.0, 2.0]})
    ewc = EwcPenalty(weights, {"a": torch.tensor([1.0, 3.0])}, 2.0)
    with torch.no_grad():
        weights["a"] += 1.0
    assert ewc.add_gradient() == 2.0
    assert weights["a"].grad.tolist() == [2.0, 6.0]


def test_descent_on_a_quadratic_task_ends_where_the_two_balance():
    """min ½(w − 1)² + λ F/2 w² from w* = 0 is w = 1 / (1 + λF)."""
    weights = parameters({"w": [0.0, 0.0, 0.0]})
    fisher = torch.tensor([0.0, 1.0, 10.0])
    ewc = EwcPenalty(weights, {"w": fisher}, 2.0)
    optimiser = torch.optim.SGD(weights.values(), lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        (0.5 * (weights["w"] - 1).square()).sum().backward()
        ewc.add_gradient()
        optimiser.step()
    assert torch.allclose(weights["w"], 1 / (1 + 2 * fisher), atol=1e-5)
