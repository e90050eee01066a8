"""Training throughput against transformers' Trainer on the same rows, adapter and steps.

    python benchmarks/training.py [--steps 30] [--rounds 3] [--threads 1]

The base is the starter's Llama (3 layers, width 128); rows have skewed lengths (log-normal, most
short, a few long). Both arms see equally many examples per step, one adapter (LoRA r=8, dropout
.05) and learning rate. Rounds are interleaved; time is CPU time of this process, the best round of
each arm counts, and tokens are real ones (no padding).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model
from torch.utils.data import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from compass_core.adaptation.adapters import detach_adapter, lora_config
from compass_core.adaptation.bases import Base, load_base
from compass_core.adaptation.rendering import render_examples
from compass_core.adaptation.training import train_adapter
from compass_core.config import BaseConfig, TrainingConfig
from compass_core.records import Example
from compass_core.starter import base_path

BATCH_SIZE = 32


class Rows(Dataset):
    """Rendered rows as Trainer wants them."""

    def __init__(self, base: Base, rows: list[Example]) -> None:
        self.rows = [
            {"input_ids": r.ids.tolist(), "labels": r.labels.tolist()}
            for r in render_examples(rows, base.tokenizer)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def make_rows(n: int, spread: float, rng: np.random.Generator) -> list[Example]:
    """Return rows whose prompts have log-normal lengths (median 8 words) and short answers."""
    words = ["".join(rng.choice(list("abcdefghij"), size=4)) for _ in range(200)]
    lengths = np.clip(rng.lognormal(np.log(8), spread, size=n), 1, 120).astype(int)
    return [
        Example(
            id=str(k),
            language="eng_Latn",
            prompt=" ".join(rng.choice(words, size=length)),
            response=" ".join(rng.choice(words, size=1 + length // 8)),
        )
        for k, length in enumerate(lengths)
    ]


def run_ours(base: Base, rows: list[Example], steps: int) -> tuple[float, float, float]:
    """Return CPU seconds, real tokens and padding efficiency of our loop."""
    config = TrainingConfig(
        lora_rank=8, lora_alpha=16, batch_size=BATCH_SIZE, min_steps=steps, max_steps=steps
    )
    started = time.process_time()
    result = train_adapter(base, rows, config, seed=0)
    seconds = time.process_time() - started
    detach_adapter(result.model)
    return seconds, result.tokens, result.padding_efficiency


def run_trainer(base: Base, rows: list[Example], steps: int) -> tuple[float, float, float]:
    """Return CPU seconds, real tokens and padding efficiency of Trainer's defaults."""
    started = time.process_time()
    data = Rows(base, rows)
    model = get_peft_model(base.model, lora_config(base, TrainingConfig(lora_rank=8)))
    counts = {"real": 0, "padded": 0}
    plain = DataCollatorForSeq2Seq(base.tokenizer)

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        tensors = plain(batch)
        counts["real"] += sum(len(row["input_ids"]) for row in batch)
        counts["padded"] += tensors["input_ids"].numel()
        return tensors

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=steps,
            learning_rate=2e-4,
            report_to=[],
            save_strategy="no",
            logging_steps=1_000_000,
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    seconds = time.process_time() - started
    detach_adapter(model)
    return seconds, counts["real"], counts["real"] / counts["padded"]


def main() -> None:
    """Print real tokens per CPU second of both arms and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = load_base(BaseConfig(model=str(Path(base_path())), device="cpu"))
    for name, spread in (("even lengths", 0.2), ("skewed lengths", 1.0)):
        rows = make_rows(BATCH_SIZE * arguments.steps, spread, np.random.default_rng(0))
        best: dict[str, tuple[float, float, float]] = {}
        for _ in range(arguments.rounds):
            for arm, run in (("ours", run_ours), ("Trainer", run_trainer)):
                found = run(base, rows, arguments.steps)
                best[arm] = min(best.get(arm, found), found)
        print(f"{name}: {BATCH_SIZE} examples per step, {arguments.steps} steps")
        rates = {}
        for arm, (seconds, tokens, efficiency) in best.items():
            rates[arm] = tokens / seconds
            print(
                f"  {arm:8s} {rates[arm]:8.0f} real tokens/CPU s  "
                f"{1000 * seconds / arguments.steps:6.1f} CPU ms/step  "
                f"{tokens / arguments.steps:6.0f} tokens/step  padding efficiency {efficiency:.2f}"
            )
        print(f"  ratio    {rates['ours'] / rates['Trainer']:.2f} ×")


if __name__ == "__main__":
    main()
