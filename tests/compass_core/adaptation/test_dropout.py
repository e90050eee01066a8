import pytest
import torch
from torch import nn

from compass_core.adaptation.dropout import BitSource, StepDropout, use_step_dropout


def dropout(p, seed=0):
    source = BitSource()
    source.reseed(seed)
    return StepDropout(p, source).train()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_share_and_scale_are_those_of_dropout(p):
    found = dropout(p)(torch.ones(400, 501))
    kept = found[found != 0]
    assert float((found == 0).float().mean()) == pytest.approx(p, abs=0.005)
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-3)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02 / (1 - p))


def test_gradient_passes_the_kept_elements_only():
    x = torch.ones(10, 7, requires_grad=True)
    y = dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_mask_depends_on_the_seed_and_differs_between_draws():
    x = torch.ones(33, 5)
    layer = dropout(0.5, seed=3)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert torch.equal(first, dropout(0.5, seed=3)(x))
    assert not torch.equal(first, dropout(0.5, seed=4)(x))


def test_nothing_is_dropped_outside_training_or_at_zero():
    x = torch.randn(4, 4)
    assert dropout(0.5).eval()(x) is x
    assert dropout(0.0)(x) is x


def test_only_adapter_dropout_is_replaced():
    layer = nn.Module()
    layer.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1), "other": nn.Identity()})
    model = nn.Sequential(nn.Dropout(0.2), layer)
    use_step_dropout(model, BitSource())
    assert isinstance(model[0], nn.Dropout)
    assert isinstance(layer.lora_dropout["default"], StepDropout)
    assert isinstance(layer.lora_dropout["other"], nn.Identity)
