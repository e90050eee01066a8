"""What an update forgets and learns, over the strengths λ and β of equation (6).

    python benchmarks/forgetting.py [--language sw] [--seeds 0 1 2] [--ewc 0 0.2 2 20]
        [--replay 0 0.1 1] [--scales mean] [--steps 100] [--adapter lora]

The starter's base gets an adapter for the topics a language covers, and then an update on the
topics it lacks (60 examples, none of the old ones among them). Per cell: accuracy on test items of
the old and of the new topics after the update, mean over the seeds; forgetting is the accuracy on
old topics before minus after. The first row of the table is the adapter before the update. All
cells of a seed start from the same adapter and see the same new examples in the same order.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compass_core.adaptation.adapters import detach_adapter, save_adapter
from compass_core.adaptation.bases import Base, load_base
from compass_core.adaptation.fisher import measure_fisher
from compass_core.adaptation.fisher_files import FisherInformation, FisherScale
from compass_core.adaptation.replay import draw_replay
from compass_core.adaptation.training import train_adapter
from compass_core.adaptation.update_terms import UpdateTerms
from compass_core.config import BaseConfig, EvaluationConfig, TrainingConfig
from compass_core.evaluation.scoring import evaluate_items
from compass_core.languages import canonical_language
from compass_core.records import Example
from compass_core.seeding import derive_rng
from compass_core.selection.drawing import example_keys
from compass_core.starter import base_path
from compass_core.starter.corpus import TOPICS, build_language, language_rows

N_NEW = 60
REPLAY_SHARE = 0.05


@dataclass(frozen=True)
class Case:
    """One language and seed: what was learned, what comes, and the items of both."""

    old: list[Example]
    new: list[Example]
    old_items: list[Example]
    new_items: list[Example]


def make_case(language: str, seed: int) -> Case:
    """Cut the starter's rows of `language` into old and new topics."""
    split = build_language(
        language, seed=seed, n_coverage=300, n_usage=200, n_test=450, n_missing_topics=3
    )
    tested = {row.prompt for row in split.test}
    pool = [
        row
        for row in language_rows(language, "train")
        if row.topic in split.missing_topics and row.prompt not in tested
    ]
    order = derive_rng(seed, "new").permutation(len(pool))[:N_NEW]
    is_new = [item.topic in split.missing_topics for item in split.test]
    return Case(
        old=split.coverage,
        new=[pool[index] for index in order],
        old_items=[item for item, new in zip(split.test, is_new, strict=True) if not new],
        new_items=[item for item, new in zip(split.test, is_new, strict=True) if new],
    )


def draw_buffer(rows: Sequence[Example], seed: int) -> list[Example]:
    """Return the replay buffer of `rows`, stratified by topic."""
    ids = np.array([TOPICS.index(row.topic) for row in rows])
    keys = example_keys(row.id for row in rows)
    chosen = draw_replay(ids, keys, REPLAY_SHARE, 5_000, derive_rng(seed, "replay"))
    return [rows[index] for index in chosen]


def train(
    base: Base, rows: list[Example], config: TrainingConfig, seed: int, out: Path, **options: object
) -> dict[str, float]:
    """Train into the folder `out`; return tokens and the mean penalty of the last steps."""
    result = train_adapter(base, rows, config, seed=seed, **options)  # type: ignore[arg-type]
    save_adapter(result.model, out, {}, base=base)
    detach_adapter(result.model)
    last = result.history[-10:]
    return {
        "tokens": result.tokens,
        "tokens_replay": result.tokens_replay,
        "penalty": float(np.mean([record.get("loss_ewc", 0.0) for record in last])),
    }


def accuracies(base: Base, case: Case, folder: Path) -> tuple[float, float]:
    """Return the adapter's accuracy on old and new items."""
    table = evaluate_items(base, case.old_items + case.new_items, EvaluationConfig(), folder)
    correct = np.array(table.column("correct").to_pylist())
    n_old = len(case.old_items)
    return float(correct[:n_old].mean()), float(correct[n_old:].mean())


def measure_seed(
    base: Base,
    arguments: argparse.Namespace,
    seed: int,
    cells: list[tuple[FisherScale, float, float]],
) -> dict[tuple[FisherScale, float, float] | None, list[float]]:
    """Return cell (None: before the update) → [old, new, penalty, replay share, mean, max of F]."""
    case = make_case(arguments.language, seed)
    config = TrainingConfig(
        adapter=arguments.adapter,
        lora_rank=8,
        lora_alpha=16,
        lora_dropout=0.0,
        learning_rate=arguments.learning_rate,
        batch_size=16,
        min_steps=200,
        max_steps=200,
        max_length=128,
    )
    shorter = {"min_steps": arguments.steps, "max_steps": arguments.steps}
    update_config = config.model_copy(update=shorter)
    buffer = draw_buffer(case.old, seed)
    with tempfile.TemporaryDirectory() as folder:
        start, out = Path(folder) / "start", Path(folder) / "out"
        train(base, case.old, config, seed, start)
        fisher: FisherInformation = measure_fisher(base, start, case.old, config)
        found = {None: [*accuracies(base, case, start), 0.0, 0.0, fisher.mean, fisher.max]}
        for cell in cells:
            scale, ewc, replay = cell
            terms = UpdateTerms(fisher, ewc, scale, buffer, replay)
            facts = train(base, case.new, update_config, seed, out, start=start, update=terms)
            share = facts["tokens_replay"] / facts["tokens"]
            old_new = accuracies(base, case, out)
            found[cell] = [*old_new, facts["penalty"], share, fisher.mean, fisher.max]
    return found


def main() -> None:
    """Print one row per cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--language", default="sw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ewc", type=float, nargs="+", default=[0.0, 0.2, 2.0, 20.0])
    parser.add_argument("--replay", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    parser.add_argument("--scales", nargs="+", default=["mean"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--adapter", default="lora")
    arguments = parser.parse_args()
    arguments.language = canonical_language(arguments.language)
    torch.set_num_threads(1)
    base = load_base(BaseConfig(model=str(base_path()), device="cpu"))
    cells = [
        cell
        for cell in itertools.product(arguments.scales, arguments.ewc, arguments.replay)
        # Without EWC the scale means nothing: once is enough.
        if cell[1] > 0 or cell[0] == arguments.scales[0]
    ]
    by_seed = [measure_seed(base, arguments, seed, cells) for seed in arguments.seeds]
    before = np.mean([found[None] for found in by_seed], axis=0)
    print(
        f"{arguments.language}, {arguments.adapter}, {len(arguments.seeds)} seeds, "
        f"{arguments.steps} steps of the update; F mean {before[4]:.3g}, max {before[5]:.3g}"
    )
    print(
        "| scale | λ | β | old topics | new topics | forgotten | learned | L_EWC | replay tokens |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(f"| before | | | {before[0]:.3f} | {before[1]:.3f} | | | | |")
    for cell in cells:
        old, new, penalty, share, *_ = np.mean([found[cell] for found in by_seed], axis=0)
        print(
            f"| {cell[0] if cell[1] else ''} | {cell[1]:g} | {cell[2]:g} | {old:.3f} | {new:.3f} "
            f"| {before[0] - old:+.3f} | {new - before[1]:+.3f} | {penalty:.3g} | {share:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
