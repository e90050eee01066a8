"""Selection against the obvious alternatives, on the same input in the same run.

    python benchmarks/selection.py [--rows 100000] [--fit-rows 20000] [--repeats 3]

Two ratios are printed:

- choosing K over a grid of 8: ours against a plain scikit-learn loop (KMeans with n_init="auto",
  silhouette with sample_size=10_000), with the silhouette both reach;
- assign + gap + allocate + draw against the bare product of the vectors with the centroids in the
  same blocks, which no method that looks at every vector can undercut.

Both sides alternate, and the fastest repeat of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.allocation import allocate_budget
from compass_core.selection.clustering import assign_clusters, fit_clusters
from compass_core.selection.drawing import draw_examples, example_keys
from compass_core.selection.gap import GapTable, js_divergence

GRID = (20, 40, 60, 80, 100, 120, 140, 160)
BLOCK = 4096
DIMENSION = 384
N_TOPICS = 100


def planted(n_rows: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return unit vectors around 100 topics of unequal size, and the topic of each."""
    centres = np.random.default_rng(7).normal(size=(N_TOPICS, DIMENSION))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    topics = rng.choice(N_TOPICS, n_rows, p=rng.dirichlet(np.full(N_TOPICS, 0.6)))
    vectors = centres[topics].astype(np.float32)
    vectors += rng.normal(scale=0.06, size=vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, topics


def fastest(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Return each side's fastest wall time over interleaved repeats."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            started = time.perf_counter()
            side()
            best[i] = min(best[i], time.perf_counter() - started)
    return best


def compare_choice_of_k(n_rows: int, repeats: int) -> None:
    """Print ours against the scikit-learn loop."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    vectors, _ = planted(n_rows, np.random.default_rng(0))
    chosen: dict[str, tuple[int, NDArray[np.int32]]] = {}

    def ours() -> None:
        clusters = fit_clusters(vectors, n_clusters=GRID, seed=0)
        chosen["ours"] = clusters.n_clusters, clusters.labels

    def theirs() -> None:
        scored = []
        for k in GRID:
            labels = KMeans(k, n_init="auto", random_state=0).fit(vectors).labels_
            size = min(10_000, n_rows)
            scored.append(
                (silhouette_score(vectors, labels, sample_size=size, random_state=0), k, labels)
            )
        _, k, labels = max(scored, key=lambda entry: entry[0])
        chosen["theirs"] = k, labels

    own, loop = fastest(repeats, ours, theirs)
    size = min(5_000, n_rows)
    score = {
        name: silhouette_score(vectors, labels, sample_size=size, random_state=1)
        for name, (_, labels) in chosen.items()
    }
    print(f"choose K over {len(GRID)} values, {n_rows} x {DIMENSION}")
    print(f"  scikit-learn loop {loop:8.2f} s   K={chosen['theirs'][0]}  {score['theirs']:.4f}")
    print(f"  fit_clusters      {own:8.2f} s   K={chosen['ours'][0]}  {score['ours']:.4f}")
    print(f"  ratio             {loop / own:8.2f} x faster")


def compare_selection(n_rows: int, n_clusters: int, repeats: int) -> None:
    """Print the whole selection against the bare product."""
    rng = np.random.default_rng(1)
    pool, pool_topics = planted(n_rows, rng)
    usage, usage_topics = planted(2_000, rng)
    coverage, _ = planted(4_000, rng)
    fit = np.concatenate([usage, coverage])
    centroids = fit_clusters(fit, n_clusters=(n_clusters,), seed=0).centroids
    keys = example_keys(f"row-{i}" for i in range(n_rows))
    languages = np.array([f"l{i}" for i in range(30)])[rng.integers(0, 30, n_rows)]
    budget = n_rows // 20
    everything = np.ones(n_rows, dtype=np.bool_)
    rows = np.empty(0, dtype=np.int64)

    def product() -> None:
        weights = np.ascontiguousarray(centroids.T)
        for start in range(0, n_rows, BLOCK):
            pool[start : start + BLOCK] @ weights

    def select() -> None:
        nonlocal rows
        pool_ids, distances = assign_clusters(pool, centroids)
        gap = GapTable.from_assignments(
            assign_clusters(usage, centroids)[0],
            np.empty(0, dtype=np.int32),
            pool_ids,
            len(centroids),
        )
        allocation = allocate_budget(
            gap.usage_share, gap.coverage_count, gap.capacity, budget, rule="waterfill"
        )
        rows = draw_examples(
            pool_ids,
            distances,
            languages,
            allocation,
            everything,
            rng=np.random.default_rng(0),
            keys=keys,
        )

    bare, whole = fastest(repeats, product, select)
    target = np.bincount(usage_topics, minlength=N_TOPICS)
    taken = np.bincount(pool_topics[rows], minlength=N_TOPICS)
    chance = np.bincount(pool_topics, minlength=N_TOPICS)
    print(f"assign + gap + allocate + draw, {n_rows} x {DIMENSION}, K={len(centroids)}")
    print(f"  bare product      {bare:8.3f} s")
    print(
        f"  whole selection   {whole:8.3f} s   JS to usage's topics "
        f"{js_divergence(target, taken):.4f} bits (pool: {js_divergence(target, chance):.4f})"
    )
    print(f"  ratio             {whole / bare:8.2f} x the product")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="pool size")
    parser.add_argument("--fit-rows", type=int, default=20_000, help="rows to cluster")
    parser.add_argument("--clusters", type=int, default=500, help="K of the selection")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    compare_selection(arguments.rows, arguments.clusters, arguments.repeats)
    compare_choice_of_k(arguments.fit_rows, 1)


if __name__ == "__main__":
    main()
