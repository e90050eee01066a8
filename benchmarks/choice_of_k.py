"""Three ways to choose the number of clusters, judged by the selection that follows.

    python benchmarks/choice_of_k.py [--seeds 6] [--only planted|sib200|exams]

Every case fits K-Means over one grid, records silhouette, held-out likelihood and held-out JS (both
with the coverage rows as reference, as a run has it, and with a sample of the pool), and then
selects the same budget with every K: water-filling towards the usage shares, uniform draws (their
expectation, so that the luck of the draw plays no part). What counts is the JS, in bits, between
the topics of the selection and the true topics of usage; lower is better. A criterion is charged
with the JS at the K it chose; `best in hindsight` is the K of the least JS in each case. Intervals
are 95 % bootstrap intervals over cases.

- planted: 100 topics around random directions in 384 dimensions, usage of 200, 500 and 2,000
  prompts, 4,000 coverage rows, a pool of 20,000, all three with topic shares of their own.
- sib200: real sentences with 7 topics. The encoder is fitted at run time on half of the train
  split; usage, coverage and pool share no sentence with it nor, in any language, with each other.
- exams: school questions whose subjects differ between languages by nature; one language is the
  target, the others are the pool. The encoder is fitted on the train split of sib200.

The real data is read from COMPASS_TEST_DATA; without it those parts are left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.allocation import plan_allocation
from compass_core.selection.centring import centre_languages
from compass_core.selection.clustering import assign_clusters, fit_clusters
from compass_core.selection.gap import count_clusters, js_divergence
from compass_core.selection.shrinkage import ShrinkageRule, usage_shares

Floats = NDArray[np.float64]
GRID = (20, 40, 60, 80, 100, 120, 200, 300, 500)
CRITERIA = ("silhouette", "likelihood", "js", "likelihood, pool", "js, pool")
DIMENSION, N_TOPICS, NOISE = 384, 100, 0.06
N_REFERENCE = 5_000


@dataclass(frozen=True)
class Case:
    """One target language: vectors, the pool's topics and usage's true topic shares."""

    usage: NDArray[np.float32]
    coverage: NDArray[np.float32]
    pool: NDArray[np.float32]
    pool_topics: NDArray[np.int64]
    target: Floats
    budget: int


# ---------------------------------------------------------------------------------------- cases
def planted_case(n_usage: int, seed: int) -> Case:
    """Return topics around random directions, each role with topic shares of its own."""
    rng = np.random.default_rng([seed, n_usage])
    centres = rng.normal(size=(N_TOPICS, DIMENSION)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def rows(n: int, shares: Floats) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        topics = rng.choice(N_TOPICS, n, p=shares)
        vectors = centres[topics]
        vectors += rng.normal(scale=NOISE, size=vectors.shape).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), topics

    target, covered, offered = (rng.dirichlet(np.full(N_TOPICS, 0.6)) for _ in range(3))
    pool, topics = rows(20_000, offered)
    return Case(rows(n_usage, target)[0], rows(4_000, covered)[0], pool, topics, target, 1_000)


def read_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of one file of the test data, or none where it is absent."""
    folder = Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data"))
    path = folder / f"{name}.jsonl.gz"
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def fit_and_encode(
    fit_rows: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> NDArray[np.float32]:
    """Fit an encoder on parallel rows and return the other rows' vectors, languages centred."""
    from sentence_transformers import SentenceTransformer

    from compass_core.encoder_fitting import fit_encoder

    parallel: dict[str, dict[str, str]] = {}
    for row in fit_rows:
        parallel.setdefault(row["parallel_id"], {})[row["language"]] = row["text"]
    with tempfile.TemporaryDirectory() as folder:
        encoder = SentenceTransformer(str(fit_encoder(parallel, Path(folder) / "encoder")))
        vectors = encoder.encode(
            [row["text"] for row in rows], batch_size=256, show_progress_bar=False
        )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    languages = np.array([row["language"] for row in rows])
    return centre_languages(unit.astype(np.float32), languages)[0]


def as_numbers(names: list[str]) -> tuple[NDArray[np.int64], int]:
    """Return names as integers and how many there are."""
    distinct, numbers = np.unique(names, return_inverse=True)
    return numbers, len(distinct)


def sib200_cases(n_seeds: int) -> Iterator[Case]:
    """Yield cases with usage and coverage of skewed topics in one language."""
    everything = read_rows("sib200")
    if not everything:
        return
    train = sorted({row["parallel_id"] for row in everything if row["split"] == "train"})
    fitted = set(np.random.default_rng(0).permutation(train)[: len(train) // 2].tolist())
    rows = [row for row in everything if row["parallel_id"] not in fitted]
    vectors = fit_and_encode([r for r in everything if r["parallel_id"] in fitted], rows)
    topics, n_topics = as_numbers([row["topic"] for row in rows])
    languages = np.array([row["language"] for row in rows])
    sentences = np.array([row["parallel_id"] for row in rows])
    names = sorted(set(languages.tolist()))
    for seed in range(n_seeds):
        rng = np.random.default_rng([seed, 1])
        own = np.flatnonzero(languages == names[(5 * seed + 3) % len(names)])
        wanted = rng.dirichlet(np.full(n_topics, 0.6)) + 0.02
        weights = wanted[topics[own]]
        usage = rng.choice(own, 150, replace=False, p=weights / weights.sum())
        coverage = rng.choice(np.setdiff1d(own, usage), 200, replace=False)
        used = np.isin(sentences, sentences[np.concatenate([usage, coverage])])
        pool = np.flatnonzero(~used)
        target = np.bincount(topics[usage], minlength=n_topics) / len(usage)
        yield Case(
            vectors[usage], vectors[coverage], vectors[pool], topics[pool], target, len(pool) // 20
        )


def exams_cases(n_seeds: int) -> Iterator[Case]:
    """Yield cases with each language of at least six subjects as the target in turn."""
    parallel, rows = read_rows("sib200"), read_rows("exams")
    if not rows or not parallel:
        return
    vectors = fit_and_encode([row for row in parallel if row["split"] == "train"], rows)
    topics, n_topics = as_numbers([row["topic"] for row in rows])
    languages = np.array([row["language"] for row in rows])
    targets = ("bg", "hr", "hu", "mk", "sq", "sr", "tr", "it")
    for seed in range(n_seeds):
        rng = np.random.default_rng([seed, 2])
        own = rng.permutation(np.flatnonzero(languages == targets[seed % len(targets)]))
        pool = np.flatnonzero(languages != targets[seed % len(targets)])
        # Coverage lacks half of the subjects, as existing data does; usage has them all.
        kept = rng.permutation(n_topics)[: n_topics // 2]
        covered = own[285:][np.isin(topics[own[285:]], kept)][:600]
        target = np.bincount(topics[own], minlength=n_topics) / len(own)
        yield Case(
            vectors[own[:285]],
            vectors[covered],
            vectors[pool],
            topics[pool],
            target,
            len(pool) // 20,
        )


# ------------------------------------------------------------------------------------ measuring
def outcome(case: Case, centroids: NDArray[np.float32], shrinkage: ShrinkageRule) -> float:
    """Return the JS between the selection's expected topics and the target."""
    k = len(centroids)
    usage_ids = assign_clusters(case.usage, centroids)[0]
    pool_ids = assign_clusters(case.pool, centroids)[0]
    capacity = count_clusters(pool_ids, k)
    shares = usage_shares(count_clusters(usage_ids, k), shrinkage=shrinkage)
    plan = plan_allocation(shares, np.zeros(k), capacity, case.budget)
    per_row = (plan.counts / np.maximum(capacity, 1))[pool_ids]
    found = np.bincount(case.pool_topics, weights=per_row, minlength=len(case.target))
    return js_divergence(case.target, found)


def best(curve: list[dict[str, Any]], criterion: str, sign: int) -> int:
    """Return the K of the highest (`sign` 1) or lowest (−1) value."""
    return int(max(curve, key=lambda entry: sign * entry[criterion])["n_clusters"])


def measure(case: Case, seed: int) -> dict[str, Any]:
    """Return what each criterion chose and, per K and rule, the outcome."""
    rows = np.concatenate([case.usage, case.coverage])
    rng = np.random.default_rng(seed)
    size = min(N_REFERENCE, len(case.pool))
    reference = case.pool[rng.choice(len(case.pool), size, replace=False)]
    settings: dict[str, Any] = {"choose_by": "js", "n_usage": len(case.usage), "seed": seed}
    started = time.perf_counter()
    fitted = fit_clusters(rows, n_clusters=GRID, **settings)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    fit_clusters(rows, n_clusters=GRID, choose_by="silhouette", seed=seed)
    spent = time.perf_counter() - started
    by_pool = fit_clusters(rows, n_clusters=GRID, reference=reference, **settings)
    chosen = {
        "silhouette": best(fitted.curve, "silhouette", 1),
        "likelihood": best(fitted.curve, "likelihood", 1),
        "js": best(fitted.curve, "js", -1),
        "likelihood, pool": best(by_pool.curve, "likelihood", 1),
        "js, pool": best(by_pool.curve, "js", -1),
    }
    tried = [entry["n_clusters"] for entry in fitted.curve]
    outcomes: dict[str, dict[int, float]] = {"additive": {}, "adaptive": {}}
    for k in tried:
        centroids = fit_clusters(rows, n_clusters=(k,), seed=seed).centroids
        outcomes["additive"][k] = outcome(case, centroids, "additive")
        outcomes["adaptive"][k] = outcome(case, centroids, "adaptive")
    return {"chosen": chosen, "outcomes": outcomes, "fit": spent, "held_out": seconds - spent}


def interval(values: Floats) -> str:
    """Return mean and 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():7.4f} [{low:7.4f}, {high:7.4f}]"


def report(name: str, cases: Iterator[Case]) -> None:
    """Measure all cases of one kind and print the table."""
    found = [measure(case, seed) for seed, case in enumerate(cases)]
    if not found:
        print(f"\n{name}: no data, left out (set COMPASS_TEST_DATA)")
        return
    fit, held = (np.mean([entry[key] for entry in found]) for key in ("fit", "held_out"))
    print(f"\n{name}: {len(found)} cases; the grid takes {fit:.1f} s, held-out scores {held:.1f} s")
    grid = sorted(set.intersection(*(set(entry["outcomes"]["adaptive"]) for entry in found)))
    for rule in ("additive", "adaptive"):
        means = [np.mean([entry["outcomes"][rule][k] for entry in found]) for k in grid]
        print(
            f"  {rule} JS by K  "
            + "  ".join(f"{k}: {m:.4f}" for k, m in zip(grid, means, strict=True))
        )
        at: dict[str, Floats] = {
            criterion: np.array([e["outcomes"][rule][e["chosen"][criterion]] for e in found])
            for criterion in CRITERIA
        }
        for k in (100, 300):
            if k in grid:
                at[f"always {k}"] = np.array([e["outcomes"][rule][k] for e in found])
        at["largest K"] = np.array(
            [entry["outcomes"][rule][max(entry["outcomes"][rule])] for entry in found]
        )
        at["best in hindsight"] = np.array([min(e["outcomes"][rule].values()) for e in found])
        for criterion, values in at.items():
            chosen = [entry["chosen"].get(criterion, 0) for entry in found]
            median = f"{np.median(chosen):4.0f}" if criterion in CRITERIA else "   -"
            print(
                f"    {criterion:18} median K {median}   JS {interval(values)}"
                f"   less than silhouette by {interval(at['silhouette'] - values)}"
            )


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", choices=("planted", "sib200", "exams"), action="append")
    arguments = parser.parse_args()
    wanted = arguments.only or ["planted", "sib200", "exams"]
    if "planted" in wanted:
        for n_usage in (200, 500, 2_000):
            cases = (planted_case(n_usage, seed) for seed in range(arguments.seeds))
            report(f"planted, {n_usage} usage prompts", cases)
    if "sib200" in wanted:
        report("sib200, 150 usage prompts", sib200_cases(arguments.seeds))
    if "exams" in wanted:
        report("exams, 285 usage prompts", exams_cases(arguments.seeds))


if __name__ == "__main__":
    main()
