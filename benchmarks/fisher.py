"""Fisher information of an adapter: our batched per-example gradients against two alternatives.

    python benchmarks/fisher.py [--examples 256] [--rank 8] [--rounds 3] [--language sw] [--words 1]

The base is the starter's, the rows are its names; `--words 20` joins twenty names to longer texts.
Arms: *hooks* (`fisher_diagonal`), *one by one* (a backward pass per example) and *vmap*
(torch.func.vmap of grad over the same padded batches, which builds all per-example gradients of a
batch at once; eager attention, since the fused one has no batching rule). Rounds are interleaved;
time is CPU time of this process with one thread, the best round of each arm counts. Errors are
‖F − F*‖ / ‖F*‖ over all weights, with F* from one backward pass per example in float64, and the
largest error of a single element of F.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from peft import PeftModel

from compass_core.adaptation.adapters import attach_adapter, detach_adapter
from compass_core.adaptation.bases import Base, load_base
from compass_core.adaptation.batches import TrainingData, collate, micro_batches
from compass_core.adaptation.fisher import adapter_parameters, example_losses, fisher_diagonal
from compass_core.adaptation.rendering import Rendered, render_examples
from compass_core.config import BaseConfig, TrainingConfig
from compass_core.languages import canonical_language
from compass_core.records import Example
from compass_core.starter import base_path
from compass_core.starter.corpus import language_rows

Fisher = dict[str, torch.Tensor]
VMAP_TOKENS = 1_024
"""Padded tokens per batch of the vmap arm, the fastest of 256, 1,024 and 4,096 here."""


def make_rows(language: str, n: int, n_words: int) -> list[Example]:
    """Return `n` rows whose prompts are `n_words` names of `language` each."""
    rows = language_rows(language, "train")
    return [
        replace(
            rows[k % len(rows)],
            prompt=" ".join(rows[(k + 7 * w) % len(rows)].prompt for w in range(n_words)),
        )
        for k in range(n)
    ]


def one_by_one(model: PeftModel, data: Sequence[Rendered]) -> Fisher:
    """Square the gradient of every example alone."""
    weights = adapter_parameters(model)
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    for example in data:
        model.zero_grad()
        torch.autograd.backward(example_losses(model, collate([example], 0)).sum())
        for name, weight in weights.items():
            assert weight.grad is not None
            total[name] += weight.grad.double().square()
    model.zero_grad()
    return {name: value / len(data) for name, value in total.items()}


def with_vmap(model: PeftModel, data: Sequence[Rendered]) -> Fisher:
    """Let torch.func build the per-example gradients of each batch."""
    weights = adapter_parameters(model)
    names = {id(p): n for n, p in model.named_parameters()}
    by_path = {names[id(weight)]: weight.detach() for weight in weights.values()}
    total = {path: torch.zeros_like(w, dtype=torch.float64) for path, w in by_path.items()}

    def loss(
        values: dict[str, torch.Tensor], ids: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        places = torch.arange(ids.shape[0])
        named = {"input_ids": ids[None], "position_ids": places[None], "use_cache": False}
        # Without a mask given, transformers looks into the tokens, which vmap does not allow.
        causal = torch.full((len(ids), len(ids)), torch.finfo(torch.float32).min).triu(1)
        named["attention_mask"] = causal[None, None]
        logits = torch.func.functional_call(model, values, (), named).logits[0]
        logp = torch.log_softmax(logits[:-1], -1).gather(1, targets[1:, None].clamp(min=0))[:, 0]
        counted = (targets[1:] >= 0).to(logp.dtype)
        return -(logp * counted).sum() / counted.sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    ordered = sorted(data, key=lambda example: len(example.ids))
    batches = micro_batches(
        TrainingData(ordered, 0, 0),
        np.arange(len(ordered)),
        pad_id=0,
        max_tokens=VMAP_TOKENS,
        vocab_size=6_144,
    )
    for batch in batches:
        targets = torch.full_like(batch.input_ids, -1).flatten()
        targets[batch.positions + 1] = batch.targets
        found = gradients(by_path, batch.input_ids, targets.view_as(batch.input_ids))
        for path, value in found.items():
            total[path] += value.double().square().sum(0)
    paths = {name: names[id(weight)] for name, weight in weights.items()}
    return {name: total[path] / len(data) for name, path in paths.items()}


def with_hooks(model: PeftModel, data: Sequence[Rendered]) -> Fisher:
    """Ours."""
    return fisher_diagonal(model, data, pad_id=0)


def errors(found: Fisher, truth: Fisher) -> tuple[float, float]:
    """Return the relative error over all weights and that of the worst element."""
    off = sum(float((found[n] - truth[n]).square().sum()) for n in truth)
    norm = sum(float(truth[n].square().sum()) for n in truth)
    worst = max(float(((found[n] - truth[n]).abs() / truth[n]).nan_to_num().max()) for n in truth)
    return (off / norm) ** 0.5, worst


def measure(base: Base, kind: str, data: Sequence[Rendered], rank: int, rounds: int) -> None:
    """Print one row per arm for one kind of adapter."""
    config = TrainingConfig(adapter=kind, lora_rank=rank, lora_alpha=2 * rank)  # type: ignore[arg-type]
    model = attach_adapter(base, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    arms: dict[str, Callable[[PeftModel, Sequence[Rendered]], Fisher]]
    arms = {"hooks": with_hooks, "one by one": one_by_one, "vmap": with_vmap}
    best = dict.fromkeys(arms, float("inf"))
    found: dict[str, Fisher] = {}
    for _ in range(rounds):
        for arm, compute in arms.items():
            implementation = "eager" if arm == "vmap" else "sdpa"
            base.model.set_attn_implementation(implementation)
            started = time.process_time()
            found[arm] = compute(model, data)
            best[arm] = min(best[arm], time.process_time() - started)
    base.model.set_attn_implementation("sdpa")
    truth = one_by_one(model.double(), data)
    base.model.float()
    detach_adapter(model)
    for arm, seconds in best.items():
        error, worst = errors(found[arm], truth)
        times = f"{seconds / best['hooks']:.1f} ×"
        print(f"| {kind} | {arm} | {seconds:.2f} | {times} | {error:.1e} | {worst:.1e} |")


def main() -> None:
    """Print seconds, ratios and errors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--language", default="sw")
    parser.add_argument("--words", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(BaseConfig(model=str(base_path()), device="cpu"))
    language = canonical_language(arguments.language)
    rows = make_rows(language, arguments.examples, arguments.words)
    data = render_examples(rows, base.tokenizer)
    tokens = sum(len(example.ids) for example in data)
    print(f"{len(data)} examples, {tokens / len(data):.0f} tokens each, rank {arguments.rank}")
    print("| adapter | arm | seconds | against hooks | relative error | worst element |")
    print("|---|---|---|---|---|---|")
    for kind in ("lora", "dora"):
        measure(base, kind, data, arguments.rank, arguments.rounds)


if __name__ == "__main__":
    main()
