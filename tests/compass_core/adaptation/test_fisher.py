import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from compass_core.adaptation.adapters import attach_adapter, detach_adapter, save_adapter
from compass_core.adaptation.bases import load_base
from compass_core.adaptation.batches import collate
from compass_core.adaptation.fisher import (
    adapter_parameters,
    draw_examples,
    example_losses,
    fisher_diagonal,
    measure_fisher,
)
from compass_core.adaptation.fisher_files import (
    FisherInformation,
    add_fisher,
    read_fisher,
    require_fit,
    scaled_fisher,
    write_fisher,
)
from compass_core.adaptation.rendering import Rendered, render_examples
from compass_core.config import BaseConfig, TrainingConfig
from compass_core.errors import DataError, ModelError
from compass_core.starter import base_path
from compass_core.starter.corpus import language_rows

CONFIG = TrainingConfig(lora_rank=4, lora_alpha=8.0, lora_dropout=0.1)


@pytest.fixture(scope="module")
def starter():
    torch.set_num_threads(1)
    return load_base(BaseConfig(model=str(base_path()), device="cpu"))


@pytest.fixture
def adapter(starter):
    """Give a function that attaches an adapter with all its weights away from zero."""
    models = []

    def attach(kind="lora", rank=4, dtype=torch.float32):
        config = CONFIG.model_copy(update={"adapter": kind, "lora_rank": rank})
        model = attach_adapter(starter, config)
        models.append(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in adapter_parameters(model).values():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
        return model.to(dtype).eval()

    yield attach
    for model in models:
        model.float()
        detach_adapter(model)


def rendered(base, n=24):
    """Starter rows of one language, of different lengths."""
    data = render_examples(language_rows("swh_Latn", "train")[: 10 * n : 10], base.tokenizer)
    assert len({len(example.ids) for example in data}) > 2
    return data


def fisher_slowly(model, data):
    """Slow twin: one example, one backward pass, then the mean of the squares."""
    model.eval()
    weights = adapter_parameters(model)
    for weight in weights.values():
        weight.requires_grad_()
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    for example in data:
        model.zero_grad()
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0]
        first = max(example.n_prompt, 1)
        loss = torch.nn.functional.cross_entropy(logits[first - 1 : -1], ids[0, first:])
        loss.backward()
        for name, weight in weights.items():
            total[name] += weight.grad.double().square()
    return {name: value / len(data) for name, value in total.items()}


def relative_error(found, wanted):
    """Return ‖found − wanted‖ / ‖wanted‖ over all weights and the worst of any tensor."""
    square = {n: float((found[n] - wanted[n]).square().sum()) for n in wanted}
    norm = {n: float(wanted[n].square().sum()) for n in wanted}
    worst = max((square[n] / norm[n]) ** 0.5 for n in wanted)
    return (sum(square.values()) / sum(norm.values())) ** 0.5, worst


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_fisher_equals_one_backward_pass_per_example(starter, adapter, kind, rank):
    model = adapter(kind, rank)
    data = rendered(starter)
    overall, worst = relative_error(
        fisher_diagonal(model, data, pad_id=0), fisher_slowly(model, data)
    )
    assert overall < 2e-6
    assert worst < 1e-5


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fisher_is_exact_in_every_element_but_for_rounding(starter, adapter, kind):
    model = adapter(kind, dtype=torch.float64)
    data = rendered(starter)
    found, wanted = fisher_diagonal(model, data, pad_id=0), fisher_slowly(model, data)
    assert set(found) == set(wanted)
    assert any("magnitude" in name for name in found) == (kind == "dora")
    for name, value in wanted.items():
        assert found[name].dtype == torch.float64
        assert torch.allclose(found[name], value, rtol=1e-10, atol=0.0), name


def test_fisher_is_not_the_square_of_the_mean_gradient(starter, adapter):
    model, data = adapter(), rendered(starter)
    exact = fisher_diagonal(model, data, pad_id=0)
    weights = adapter_parameters(model)
    for weight in weights.values():
        weight.requires_grad_()
    example_losses(model, collate(data, 0)).mean().backward()
    squared_mean = {name: weight.grad.double().square() for name, weight in weights.items()}
    # Jensen: the mean of squares is at least the square of the mean, and here clearly more.
    assert all((exact[n] >= squared_mean[n] * (1 - 1e-4)).all() for n in exact)
    assert sum(v.sum() for v in exact.values()) > 1.5 * sum(v.sum() for v in squared_mean.values())


def test_fisher_of_a_layer_computed_by_hand(tiny_base):
    """One adapter weight: F from a finite difference of the loss, example by example."""
    config = CONFIG.model_copy(update={"target_modules": ("down_proj",), "lora_rank": 1})
    model = attach_adapter(tiny_base, config).eval()
    data = [
        Rendered(np.array(ids, dtype=np.int32), 2) for ids in ([5, 6, 7, 8], [9, 6, 7, 4, 3, 2])
    ]
    model.double()
    found = fisher_diagonal(model, data, pad_id=0)
    name = next(n for n in found if "layers.1" in n and n.endswith("lora_B.weight"))
    weight = adapter_parameters(model)[name]
    # A step well above the rounding of the float32 norms inside the model.
    step, slopes = 2e-3, []
    for example in data:
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[3, 0] += sign * step
                losses.append(float(example_losses(model, collate([example], 0))[0]))
                weight[3, 0] -= sign * step
        slopes.append((losses[0] - losses[1]) / (2 * step))
    assert float(found[name][3, 0]) == pytest.approx(np.mean(np.square(slopes)), rel=1e-3)
    model.float()
    detach_adapter(model)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_fisher_does_not_depend_on_how_examples_are_batched(starter, adapter, kind, dtype, bound):
    model, data = adapter(kind, dtype=dtype), rendered(starter)
    reference = fisher_diagonal(model, data, pad_id=0)
    for tokens in (1, 40, 100):
        batched = fisher_diagonal(model, data, pad_id=0, max_tokens=tokens)
        assert relative_error(batched, reference)[0] < bound


def test_fisher_is_the_same_every_time_and_padding_is_not_seen(starter, adapter):
    model, data = adapter("dora"), rendered(starter)
    reference = fisher_diagonal(model, data, pad_id=0)
    for pad_id in (0, 7):
        again = fisher_diagonal(model, data, pad_id=pad_id)
        assert all(torch.equal(again[name], reference[name]) for name in reference)


def test_fisher_of_examples_together_is_the_mean_of_theirs_alone(starter, adapter):
    model, data = adapter("dora", dtype=torch.float64), rendered(starter, 12)
    whole = fisher_diagonal(model, data, pad_id=0)
    first, rest = (fisher_diagonal(model, part, pad_id=0) for part in (data[:3], data[3:]))
    for name, value in whole.items():
        assert torch.allclose(value, (3 * first[name] + 9 * rest[name]) / 12, rtol=1e-10)
        assert (value >= 0).all()


def test_measuring_leaves_the_model_as_it_was(starter, adapter):
    model = adapter("dora")
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    needed = {n: p.requires_grad for n, p in model.named_parameters()}
    fisher_diagonal(model, rendered(starter, 4), pad_id=0)
    assert model.training
    assert {n: p.requires_grad for n, p in model.named_parameters()} == needed
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    hooked = [m for m in model.modules() if m._forward_hooks]
    assert hooked == []


def test_gradients_of_one_layer_are_held_in_bounded_parts(starter, adapter, monkeypatch):
    model, data = adapter(), rendered(starter)
    whole = fisher_diagonal(model, data, pad_id=0)
    monkeypatch.setattr("compass_core.adaptation.fisher.MAX_GRADIENTS", 3_000)
    parts = fisher_diagonal(model, data, pad_id=0)
    assert relative_error(parts, whole)[0] < 1e-6


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_fisher_works_where_weights_lie_transposed(tmp_path):
    """GPT-2's layers keep W as (in, out); DoRA's norm has to follow."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1
            )
        )
        settings = LoraConfig(
            r=3, use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True
        )
        adapted = get_peft_model(model.requires_grad_(False), settings).double().eval()
        with torch.no_grad():
            for weight in adapter_parameters(adapted).values():
                weight.add_(torch.randn_like(weight), alpha=0.1)
    rng = np.random.default_rng(0)
    data = [Rendered(rng.integers(2, 50, size=n).astype(np.int32), n // 2) for n in (4, 9, 9, 15)]
    found, wanted = fisher_diagonal(adapted, data, pad_id=0), fisher_slowly(adapted, data)
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-10) for n in wanted)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*lora_")
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"lora_bias": True},
    ],
)
def test_adapters_with_other_weights_are_refused_by_name(tiny_base_folder, settings):
    base = load_base(BaseConfig(model=str(tiny_base_folder), device="cpu"))
    model = get_peft_model(base.model, LoraConfig(r=2, **{"target_modules": ["q_proj"]} | settings))
    with pytest.raises(ModelError, match=r"update\.ewc_strength=0") as caught:
        fisher_diagonal(model, [Rendered(np.array([3, 4], dtype=np.int32), 1)], pad_id=0)
    assert caught.value.code == "E34"
    detach_adapter(model)


def test_a_layer_that_is_used_twice_is_refused(tiny_base):
    model = attach_adapter(tiny_base, CONFIG)
    layers = tiny_base.model.model.layers
    second, layers[1] = layers[1], layers[0]
    with pytest.raises(ModelError, match="is used twice in one pass"):
        fisher_diagonal(model, [Rendered(np.arange(3, 9, dtype=np.int32), 1)], pad_id=0)
    layers[1] = second
    detach_adapter(model)


def test_gradients_that_are_not_finite_are_refused(tiny_base):
    model = attach_adapter(tiny_base, CONFIG)
    with torch.no_grad():
        next(iter(adapter_parameters(model).values())).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite") as caught:
        fisher_diagonal(model, [Rendered(np.arange(3, 9, dtype=np.int32), 1)], pad_id=0)
    assert caught.value.code == "E30"
    detach_adapter(model)


# --------------------------------------------------------------------------- of a saved adapter
@pytest.fixture
def saved(tiny_base, tmp_path):
    """A saved adapter on the tiny base, its weights away from zero."""
    model = attach_adapter(tiny_base, CONFIG)
    with torch.no_grad():
        for number, weight in enumerate(adapter_parameters(model).values()):
            weight.add_(0.01 * (1 + number % 3))
    save_adapter(model, tmp_path / "adapter", {}, base=tiny_base)
    detach_adapter(model)
    return tmp_path / "adapter"


def test_fisher_of_a_saved_adapter_knows_what_it_belongs_to(tiny_base, saved, pairs):
    fisher = measure_fisher(tiny_base, saved, pairs, CONFIG)
    assert fisher.base_fingerprint == tiny_base.fingerprint
    assert fisher.n_examples == 40
    assert fisher.mean > 0
    assert fisher.max > fisher.mean
    assert all(value.dtype == torch.float32 for value in fisher.values.values())


def test_fisher_of_a_saved_adapter_does_not_depend_on_the_order_of_rows(tiny_base, saved, pairs):
    plain = measure_fisher(tiny_base, saved, pairs, CONFIG, max_examples=10, seed=3)
    mixed = measure_fisher(tiny_base, saved, pairs[::-1], CONFIG, max_examples=10, seed=3)
    assert plain.n_examples == 10
    assert all(torch.equal(plain.values[n], mixed.values[n]) for n in plain.values)
    assert plain.facts() == mixed.facts()


def test_the_draw_of_examples_follows_its_seed(pairs):
    assert draw_examples(pairs, 5, 0) == draw_examples(pairs[::-1], 5, 0)
    assert draw_examples(pairs, 5, 0) != draw_examples(pairs, 5, 1)
    assert len(draw_examples(pairs, 0, 0)) == 40


def test_nothing_to_measure_on_is_refused(tiny_base, saved):
    with pytest.raises(DataError, match="0 examples"):
        measure_fisher(tiny_base, saved, [], CONFIG)


# --------------------------------------------------------------------------- files, scale, sum
def information(**changes):
    values = {"a.lora_A.weight": torch.tensor([[1.0, 3.0]]), "a.lora_B.weight": torch.tensor([8.0])}
    return FisherInformation(
        **{"values": values, "base_fingerprint": "b" * 64, "adapter_sha256": "a" * 64}
        | {"n_examples": 7, "tokens": 70}
        | changes
    )


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("mean", [0.25, 0.75, 2.0]), ("max", [0.125, 0.375, 1.0]), ("raw", None)],
)
def test_scale_divides_by_the_mean_or_the_maximum_over_all_weights(scale, expected):
    scaled = torch.cat([v.flatten() for v in scaled_fisher(information(), scale).values()])
    assert scaled.tolist() == (expected or [1.0, 3.0, 8.0])


def test_a_fisher_of_zeros_stays_zero_at_any_scale():
    zeros = information(values={"a.lora_B.weight": torch.zeros(3)})
    assert all(not scaled_fisher(zeros, s)["a.lora_B.weight"].any() for s in ("mean", "max"))


def test_stages_add_up_with_decay():
    earlier = information(values={n: 2 * v for n, v in information().values.items()})
    total = add_fisher(information(), earlier, 0.5)
    assert total.values["a.lora_A.weight"].tolist() == [[2.0, 6.0]]
    assert total.n_stages == 2
    assert total.n_examples == 7
    assert add_fisher(information(), total, 1.0).n_stages == 3


def test_fisher_comes_back_from_its_folder_as_it_was(tmp_path):
    facts = write_fisher(tmp_path, information())
    again = read_fisher(tmp_path)
    assert again.facts() == information().facts()
    assert all(torch.equal(v, again.values[n]) for n, v in information().values.items())
    assert facts["mean"] == 4.0
    assert facts["max"] == 8.0
    assert "squared gradient" in facts["policy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fisher.json", "fisher.safetensors"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("missing", "E29"),
        ("cut", "E29"),
        ("swapped", "E29"),
        ("facts", "E29"),
        ("format", "E34"),
        ("nan", "E30"),
        ("negative", "E30"),
    ],
)
def test_damaged_fisher_is_refused_with_advice(tmp_path, damage, code):
    write_fisher(tmp_path, information())
    tensors, facts = tmp_path / "fisher.safetensors", tmp_path / "fisher.json"
    if damage == "missing":
        tensors.unlink()
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-3])
    elif damage == "swapped":
        write_fisher(tmp_path / "x", information(values={"other": torch.ones(2)}))
        (tmp_path / "x" / "fisher.safetensors").rename(tensors)
    elif damage == "facts":
        facts.write_text("{")
    elif damage == "format":
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format_version": 9}))
    else:
        value = float("nan") if damage == "nan" else -1.0
        write_fisher(tmp_path, information(values={"a.lora_B.weight": torch.tensor([1.0, value])}))
    with pytest.raises(ModelError, match=r"ompute it again") as caught:
        read_fisher(tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "adapter", "code", "words"),
    [
        ({"base_fingerprint": "c" * 64}, None, "E33", "computed on base cccccccccccc"),
        ({"values": {"a.lora_A.weight": torch.ones(2, 2)}}, None, "E31", r"\(1, 2\)"),
        ({}, "d" * 64, "E33", "starts from dddddddddddd"),
    ],
)
def test_fisher_of_another_base_shape_or_adapter_is_refused(changes, adapter, code, words):
    weights = information().values
    with pytest.raises(ModelError, match=words) as caught:
        require_fit(information(**changes), "b" * 64, weights, adapter)
    assert caught.value.code == code
    if adapter is None:
        with pytest.raises(ModelError):
            add_fisher(information(), information(**changes), 1.0)
    require_fit(information(), "b" * 64, weights, "a" * 64)
