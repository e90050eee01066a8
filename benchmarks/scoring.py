"""Scoring of multiple-choice items against a plain sorted loop with one row per choice.

    python benchmarks/scoring.py [--items 200] [--rounds 3] [--threads 1]

The base is the starter's Llama; items have 4 choices of 1-4 tokens behind prompts of 8 (short) or
80 (long) words. The plain loop sorts rows by length, pads them into batches of the same number of
tokens, and takes the logits of every position, as evaluation harnesses do. Rounds are interleaved;
CPU time of this process, the best round of each arm counts. Both give the same scores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from compass_core.adaptation.bases import Base, load_base
from compass_core.adaptation.rendering import encode_prompts, encode_responses
from compass_core.config import BaseConfig
from compass_core.evaluation.scoring import score_choices
from compass_core.records import Example
from compass_core.starter import base_path

BATCH_TOKENS = 4096


def make_items(n: int, n_words: int, rng: np.random.Generator) -> list[Example]:
    """Return items with 4 choices and prompts of about `n_words` words."""
    words = ["".join(rng.choice(list("abcdefghij"), size=4)) for _ in range(200)]
    return [
        Example(
            id=str(k),
            language="eng_Latn",
            prompt=" ".join(rng.choice(words, size=rng.integers(n_words // 2, 2 * n_words))),
            choices=tuple(" ".join(rng.choice(words, size=size)) for size in (1, 1, 2, 2)),
        )
        for k in range(n)
    ]


def plain_loop(base: Base, items: list[Example]) -> list[list[float]]:
    """Return the same scores from one padded row per choice, head over all positions."""
    prompts = encode_prompts(items, base.tokenizer)
    rows = [
        (number, prompts[number], tokens)
        for number, item in enumerate(items)
        for tokens in encode_responses(item.choices, base.tokenizer, ends=False)
    ]
    scores: dict[int, float] = {}
    order = sorted(range(len(rows)), key=lambda k: -len(rows[k][1]) - len(rows[k][2]))
    start = 0
    while start < len(order):
        width = len(rows[order[start]][1]) + len(rows[order[start]][2])
        batch = order[start : start + max(1, BATCH_TOKENS // width)]
        ids = torch.full((len(batch), width), int(base.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for place, k in enumerate(batch):
            text = rows[k][1] + rows[k][2]
            ids[place, : len(text)] = torch.tensor(text)
            mask[place, : len(text)] = 1
        with torch.inference_mode():
            logprobs = base.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for place, k in enumerate(batch):
            _, prompt, tokens = rows[k]
            span = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            scores[k] = sum(
                float(logprobs[place, at, token]) for at, token in zip(span, tokens, strict=True)
            )
        start += len(batch)
    return [[scores[4 * number + c] for c in range(4)] for number in range(len(items))]


def main() -> None:
    """Print items per CPU second of both arms, their ratio, and the largest difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = load_base(BaseConfig(model=str(Path(base_path())), device="cpu"))
    for name, n_words in (("short prompts", 8), ("long prompts", 80)):
        items = make_items(arguments.items, n_words, np.random.default_rng(0))
        best: dict[str, float] = {}
        found: dict[str, list[list[float]]] = {}

        def ours(items: list[Example] = items) -> list[list[float]]:
            return score_choices(base.model, base.tokenizer, items, batch_tokens=BATCH_TOKENS)

        def plain(items: list[Example] = items) -> list[list[float]]:
            return plain_loop(base, items)

        for _ in range(arguments.rounds):
            for arm, run in (("ours", ours), ("plain", plain)):
                started = time.process_time()
                found[arm] = run()
                seconds = time.process_time() - started
                best[arm] = min(best.get(arm, seconds), seconds)
        gap = np.abs(np.array(found["ours"]) - np.array(found["plain"])).max()
        print(f"{name}: {len(items)} items, 4 choices, largest difference {gap:.1e}")
        for arm, seconds in best.items():
            print(f"  {arm:6s} {len(items) / seconds:8.0f} items/CPU s")
        print(f"  ratio  {best['plain'] / best['ours']:.2f} ×")


if __name__ == "__main__":
    main()
