"""Diagonal Fisher information of an adapter, from exact per-example gradients computed in batches.

    F_i = 1/N Σ_n (∂ ℓ_n / ∂ φ_i)²,   ℓ_n = mean over the response tokens of example n of log p

φ are the adapter's weights: A and B of every layer, with DoRA the magnitudes m too. Squaring has to
come before the mean over examples; the square of a batch's mean gradient is another number.

The loss of a batch is Σ_n ℓ_n, so the gradient at a layer's output separates by example. With x the
layer's input, h = A x, y = B h, and g the gradients that arrive, per example n and token t:

    ∂ℓ_n/∂A = Σ_t g_h xᵀ     ∂ℓ_n/∂B = Σ_t g_y hᵀ     ∂ℓ_n/∂m = Σ_t g (W x + s y) / ‖W + s B A‖

(the norm is a constant in DoRA's gradient, section 4.3 of its paper, and in peft). Each is one
batched matrix product over tokens, made when the gradient passes by and squared at once, so the
memory is that of a backward pass and of one layer's gradients.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from compass_core.adaptation.adapters import adapter_state, detach_adapter, load_adapter
from compass_core.adaptation.bases import Base
from compass_core.adaptation.batches import MicroBatch, TrainingData, micro_batches, prepare_data
from compass_core.adaptation.fisher_files import FisherInformation
from compass_core.adaptation.forward import causal_model, logits_at
from compass_core.adaptation.rendering import Rendered
from compass_core.adapter_files import adapter_sha256
from compass_core.config import TrainingConfig
from compass_core.errors import ModelError, bounded_list
from compass_core.records import Example
from compass_core.storage import canonical_json

ADAPTER_NAME = "default"
MAX_TOKENS = 4_096
"""Padded tokens of one batch."""
MAX_GRADIENTS = 1 << 26
"""Numbers of per-example gradients held at once (256 MiB of float32)."""
_PLAN_ROWS = 512
"""Examples planned together: the plan's cost grows with their square."""

OnProgress = Callable[[int, int], None]
"""(examples done, examples in total)."""


def measure_fisher(
    base: Base,
    adapter_folder: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    max_examples: int = 0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> FisherInformation:
    """Return the Fisher information of a saved adapter over `examples`.

    Args:
        base: The base the adapter belongs to; no adapter may be attached.
        adapter_folder: The saved adapter.
        examples: What it was trained on, in any order.
        config: Its training; `max_length` cuts the examples.
        max_examples: Average over this many, drawn by `seed`; 0 takes all.
        seed: Of the draw.
        on_progress: Called after each batch.

    Raises:
        DataError: E03 no examples, E16 no response token in any of them.
        ModelError: see `load_adapter` and `fisher_diagonal`.
    """
    data = prepare_data(base, draw_examples(examples, max_examples, seed), config)
    model = load_adapter(base, adapter_folder)
    try:
        values = fisher_diagonal(
            model,
            data.examples,
            pad_id=int(base.tokenizer.pad_token_id),
            on_progress=on_progress,
        )
    finally:
        detach_adapter(model)
    return FisherInformation(
        values={name: value.float().cpu() for name, value in values.items()},
        base_fingerprint=base.fingerprint,
        adapter_sha256=adapter_sha256(adapter_folder),
        n_examples=len(data.examples),
        tokens=sum(len(example.ids) for example in data.examples),
    )


def draw_examples(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """Return `n` of `examples` (0: all), the same ones in the same order however they come."""

    def place(row: Example) -> str:
        text = canonical_json([seed, row.id, row.prompt, row.response])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    return sorted(examples, key=place)[: n or None]


# --------------------------------------------------------------------------- the adapter's weights
def adapter_layers(model: PeftModel) -> dict[str, lora.Linear]:
    """Return name → layer of every adapted layer, refusing what is not plain LoRA or DoRA.

    Raises:
        ModelError: E34 another kind of adapter layer, or weights besides A, B and magnitudes.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, lora.Linear) and _is_supported(module)
    }
    known = {name for prefix, layer in layers.items() for name in _weights(prefix, layer)}
    strangers = sorted(set(adapter_state(model)) ^ known)
    if strangers or not layers:
        raise ModelError(
            "Fisher information is defined here for LoRA and DoRA on linear layers. The adapter "
            f"has other weights:\n{bounded_list(strangers)}\nUpdate it with "
            "update.ewc_strength=0, or train an adapter on linear layers only.",
            code="E34",
        )
    return layers


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return name in the adapter's state → parameter, for LoRA and DoRA.

    Raises:
        ModelError: E34, see `adapter_layers`.
    """
    found: dict[str, nn.Parameter] = {}
    for prefix, layer in adapter_layers(model).items():
        found |= _weights(prefix, layer)
    return found


def _is_supported(layer: lora.Linear) -> bool:
    variant = layer.lora_variant.get(ADAPTER_NAME)
    return list(layer.lora_A) == [ADAPTER_NAME] and (
        variant is None or isinstance(variant, DoraLinearVariant)
    )


def _weights(prefix: str, layer: lora.Linear) -> dict[str, nn.Parameter]:
    weights = {
        f"{prefix}.lora_A.weight": layer.lora_A[ADAPTER_NAME].weight,
        f"{prefix}.lora_B.weight": layer.lora_B[ADAPTER_NAME].weight,
    }
    if ADAPTER_NAME in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[ADAPTER_NAME].weight
        weights[f"{prefix}.lora_magnitude_vector"] = magnitude
    return weights


# --------------------------------------------------------------------------- the estimator
def fisher_diagonal(
    model: PeftModel,
    examples: Sequence[Rendered],
    *,
    pad_id: int,
    max_tokens: int = MAX_TOKENS,
    on_progress: OnProgress | None = None,
) -> dict[str, torch.Tensor]:
    """Return the diagonal empirical Fisher information of the attached adapter.

    Exact: the mean over examples of squared per-example gradients, dropout off. Padding and the
    other examples of a batch have no influence but rounding.

    Args:
        model: A base with one LoRA or DoRA adapter.
        examples: Rendered examples with a response token each.
        pad_id: Token to pad with.
        max_tokens: Padded tokens per batch; a longer example is a batch of its own.
        on_progress: Called after each batch.

    Returns:
        Name in the adapter's state → (shape of the weight) F ≥ 0, float64.

    Raises:
        ModelError: E34 an adapter or a base whose per-example gradients cannot be told apart, E30
            a gradient that is not finite.
    """
    assert examples, "Fisher information needs an example"
    # Apple's devices have no float64: there the sums are kept on the CPU.
    device = "cpu" if model.device.type == "mps" else model.device
    sums = {
        name: torch.zeros(weight.shape, dtype=torch.float64, device=device)
        for name, weight in adapter_parameters(model).items()
    }
    vocab_size = int(causal_model(model).config.get_text_config().vocab_size)
    done = 0
    with _frozen(model), _recording(model, sums) as recorder:
        for chosen in _plan_blocks(examples):
            data = TrainingData(chosen, 0, 0)
            for batch in micro_batches(
                data,
                np.arange(len(chosen)),
                pad_id=pad_id,
                max_tokens=max_tokens,
                vocab_size=vocab_size,
            ):
                recorder.start(len(batch.input_ids))
                torch.autograd.backward(example_losses(model, batch.to(model.device)).sum())
                done += len(batch.input_ids)
                if on_progress is not None:
                    on_progress(done, len(examples))
    damaged = [name for name, total in sums.items() if not bool(torch.isfinite(total).all())]
    if damaged:
        raise ModelError(
            f"The gradients of the adapter are not finite in:\n{bounded_list(damaged)}\nTrain it "
            "again with a lower learning rate, or load the base with base.dtype=float32.",
            code="E30",
        )
    return {name: total / len(examples) for name, total in sums.items()}


def example_losses(model: PeftModel, batch: MicroBatch) -> torch.Tensor:
    """Return (B,) per example the mean over its response tokens of −log p."""
    logits = logits_at(model, batch.input_ids, batch.positions)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = nn.functional.cross_entropy(exact, batch.targets, reduction="none")
    rows = batch.positions // batch.input_ids.shape[1]
    counts = torch.bincount(rows, minlength=len(batch.input_ids))
    means = torch.zeros(len(batch.input_ids), dtype=losses.dtype, device=losses.device)
    return means.index_add(0, rows, losses / counts[rows])


def _plan_blocks(examples: Sequence[Rendered]) -> Iterator[list[Rendered]]:
    """Give the examples by length, some hundred at a time."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), _PLAN_ROWS):
        yield ordered[start : start + _PLAN_ROWS]


@contextlib.contextmanager
def _frozen(model: PeftModel) -> Iterator[None]:
    """Switch dropout and the weights' own gradients off; only activations carry gradients."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    embeddings = causal_model(model).get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())
    for parameter in trainable:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        hook.remove()
        model.train(training)
        for parameter in trainable:
            parameter.requires_grad_()


# --------------------------------------------------------------------------- recording gradients
@dataclass
class _Recorder:
    """Adds squared per-example gradients to `sums` while a backward pass runs.

    Attributes:
        sums: Weight → Σ over examples of squared gradients, float64.
        n_rows: Examples of the batch in work.
        seen: Weights whose gradient has passed in this batch.
    """

    sums: dict[str, torch.Tensor]
    n_rows: int = 0
    seen: set[str] = field(default_factory=set)

    def start(self, n_rows: int) -> None:
        """Begin a batch of `n_rows` examples."""
        self.n_rows = n_rows
        self.seen.clear()

    def add_product(self, name: str, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the gradient of a linear map: Σ_t gradient (B, T, O) ⊗ inputs (B, T, I)."""
        self._check(name, gradient)
        rows = max(1, MAX_GRADIENTS // self.sums[name].numel())
        for g, x in zip(torch.split(gradient, rows), torch.split(inputs, rows), strict=True):
            per_example = torch.bmm(g.transpose(1, 2), x)
            self._add(name, per_example.square_().sum(0))

    def add_scaling(self, name: str, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the gradient of a factor per output: Σ_t gradient (B, T, O) · inputs (B, T, O)."""
        self._check(name, gradient)
        self._add(name, (gradient * inputs).sum(1).square_().sum(0))

    def _add(self, name: str, squares: torch.Tensor) -> None:
        total = self.sums[name]
        total += squares.to(total.device)

    def _check(self, name: str, gradient: torch.Tensor) -> None:
        if gradient.dim() == 3 and len(gradient) == self.n_rows and name not in self.seen:
            self.seen.add(name)
            return
        what = "is used twice in one pass" if name in self.seen else "does not see whole examples"
        raise ModelError(
            f"Fisher information needs the gradients of single examples, but {name} {what} "
            f"(gradient of shape {tuple(gradient.shape)} for {self.n_rows} examples). Leave this "
            "layer out of training.target_modules, or set update.ewc_strength=0.",
            code="E34",
        )


@contextlib.contextmanager
def _recording(model: PeftModel, sums: dict[str, torch.Tensor]) -> Iterator[_Recorder]:
    """Watch every adapted layer of `model` inside the block."""
    recorder = _Recorder(sums)
    hooks: list[Any] = []
    try:
        for name, layer in adapter_layers(model).items():
            hooks += _watch(name, layer, recorder)
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()


def _watch(name: str, layer: lora.Linear, recorder: _Recorder) -> list[Any]:
    """Hook A, B and the magnitude of one layer."""
    up: dict[str, torch.Tensor] = {}

    def watch_linear(weight: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], out: Any) -> None:
            # DoRA also sends an identity matrix through A and B for its norm: no gradient there.
            if out.requires_grad:
                (x,) = inputs
                out.register_hook(lambda g: recorder.add_product(weight, g, x.detach()))
                up["out"] = out.detach()

        return hook

    hooks = [
        layer.lora_A[ADAPTER_NAME].register_forward_hook(watch_linear(f"{name}.lora_A.weight")),
        layer.lora_B[ADAPTER_NAME].register_forward_hook(watch_linear(f"{name}.lora_B.weight")),
    ]
    if ADAPTER_NAME not in layer.lora_magnitude_vector:
        return hooks
    norm = _weight_norm(layer)
    scaling = float(layer.scaling[ADAPTER_NAME])

    def watch_magnitude(_module: nn.Module, _inputs: Any, named: dict[str, Any], out: Any) -> None:
        bias = layer.get_base_layer().bias
        base = named["base_result"] if bias is None else named["base_result"] - bias
        direction = ((base + scaling * up["out"]) / norm).detach()
        weight = f"{name}.lora_magnitude_vector"
        out.register_hook(lambda g: recorder.add_scaling(weight, g, direction))

    dora = layer.lora_magnitude_vector[ADAPTER_NAME]
    return [*hooks, dora.register_forward_hook(watch_magnitude, with_kwargs=True)]


def _weight_norm(layer: lora.Linear) -> torch.Tensor:
    """Return (O,) ‖W + s B A‖ per output, as DoRA computes it."""
    dora: DoraLinearLayer = layer.lora_magnitude_vector[ADAPTER_NAME]
    low_rank = layer.lora_B[ADAPTER_NAME].weight @ layer.lora_A[ADAPTER_NAME].weight
    weight = dequantize_module_weight(layer.get_base_layer()).to(low_rank.dtype)
    with torch.no_grad():
        norm: torch.Tensor = dora.get_weight_norm(weight, low_rank, layer.scaling[ADAPTER_NAME])
    return norm.detach()
