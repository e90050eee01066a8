"""Selection against the obvious alternatives, on the same input in the same run.

    python benchmarks/selection.py [--rows 10000 100000 1000000] [--fit-rows 20000] [--repeats 5]

Two ratios are printed:

- assign + gap + allocate + draw against the bare product of the vectors with the centroids in the
  same blocks, which no method that looks at every vector can undercut; and the exponent with which
  the time grows with the pool. The vectors are memory-mapped from a file that has just been written
  and lie in the page cache; clusters (with the places of usage and coverage) and keys exist, and
  no manifest is written.
- choosing K over a grid of 8: ours against a plain scikit-learn loop (KMeans with n_init="auto",
  silhouette with sample_size=10_000), with the silhouette both reach.

Both sides alternate, and the fastest repeat of each counts, in wall and in CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from planted import DIMENSION, World

from compass_core.selection.allocation import plan_allocation
from compass_core.selection.clustering import assign_clusters, fit_clusters
from compass_core.selection.drawing import draw_examples
from compass_core.selection.gap import GapTable

GRID = (20, 40, 60, 80, 100, 120, 140, 160)
BLOCK = 4096
CLAIM_FROM = 100_000
"""Rows from which the ratio is claimed; below, fixed costs show."""


class Selection:
    """One pool in a file, and both ways over it."""

    def __init__(self, path: Path, n_rows: int, n_clusters: int) -> None:
        """Write the pool, fit clusters on usage and coverage."""
        rng = np.random.default_rng(1)
        world = World()
        world.write_pool(path, n_rows, rng)
        self.pool = np.load(path, mmap_mode="r")
        usage, _ = world.draw(2_000, world.usage_mix, rng)
        coverage, _ = world.draw(4_000, world.pool_mix, rng)
        fit = np.concatenate([usage, coverage])
        clusters = fit_clusters(fit, n_clusters=(n_clusters,), seed=0)
        self.centroids = clusters.centroids
        self.usage_ids, self.coverage_ids = np.split(clusters.labels, [len(usage)])
        self.keys = rng.integers(0, 2**64, n_rows, dtype=np.uint64)
        self.languages = np.array([f"l{i}" for i in range(30)])[rng.integers(0, 30, n_rows)]

    def product(self) -> None:
        """Multiply every vector with every centroid."""
        weights = np.ascontiguousarray(self.centroids.T)
        room = np.empty((BLOCK, len(self.centroids)), dtype=np.float32)
        for start in range(0, len(self.pool), BLOCK):
            part = np.asarray(self.pool[start : start + BLOCK])
            np.matmul(part, weights, out=room[: len(part)])

    def select(self) -> None:
        """Assign, measure the gap, allocate and draw one row in twenty."""
        pool_ids, distances = assign_clusters(self.pool, self.centroids, block=BLOCK)
        gap = GapTable.from_assignments(
            self.usage_ids, self.coverage_ids, pool_ids, len(self.centroids)
        )
        plan = plan_allocation(
            gap.usage_share, gap.coverage_count, gap.capacity, len(self.pool) // 20
        )
        draw_examples(
            pool_ids,
            distances,
            self.languages,
            plan.counts,
            np.ones(len(pool_ids), dtype=np.bool_),
            rng=np.random.default_rng(0),
            keys=self.keys,
        )


def fastest(repeats: int, *sides: Callable[[], object]) -> NDArray[np.float64]:
    """Return (sides, 2) each side's fastest wall and CPU seconds over interleaved repeats."""
    best = np.full((len(sides), 2), np.inf)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            started = time.perf_counter(), time.process_time()
            side()
            taken = time.perf_counter() - started[0], time.process_time() - started[1]
            best[i] = np.minimum(best[i], taken)
    return best


def compare_selection(sizes: list[int], n_clusters: int, repeats: int) -> None:
    """Print the whole selection against the bare product, and how the time grows."""
    print(f"assign + gap + allocate + draw, n x {DIMENSION} float32, K={n_clusters}")
    print("       rows   product s  selection s  ratio   CPU: product  selection  ratio")
    taken = []
    for n_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            case = Selection(Path(folder) / "pool.npy", n_rows, n_clusters)
            bare, whole = fastest(repeats, case.product, case.select)
        taken.append(whole)
        claim = "  (claim: <= 1.5)" if n_rows >= CLAIM_FROM else ""
        print(
            f"{n_rows:11,d} {bare[0]:11.3f} {whole[0]:12.3f} {whole[0] / bare[0]:6.2f} "
            f"{bare[1]:14.3f} {whole[1]:10.3f} {whole[1] / bare[1]:6.2f}{claim}"
        )
    if len(sizes) > 1:
        slopes = [np.polyfit(np.log(sizes), np.log(seconds), 1)[0] for seconds in np.array(taken).T]
        print(f"time ~ rows^{slopes[0]:.2f} (wall), rows^{slopes[1]:.2f} (CPU)")


def compare_choice_of_k(n_rows: int, repeats: int) -> None:
    """Print ours against the scikit-learn loop."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    world = World()
    vectors, _ = world.draw(n_rows, world.pool_mix, np.random.default_rng(0))
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
    print(f"choose K over {len(GRID)} values, {n_rows:,d} x {DIMENSION}")
    print(f"  scikit-learn loop {loop[0]:8.2f} s   K={chosen['theirs'][0]}  {score['theirs']:.4f}")
    print(f"  fit_clusters      {own[0]:8.2f} s   K={chosen['ours'][0]}  {score['ours']:.4f}")
    print(
        f"  ratio             {loop[0] / own[0]:8.2f} x faster, {loop[1] / own[1]:.2f} x less CPU, "
        f"silhouette {score['ours'] - score['theirs']:+.4f}  (claim: >= 3, within .01)"
    )


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--fit-rows", type=int, default=20_000, help="rows to cluster; 0 skips")
    parser.add_argument("--clusters", type=int, default=500, help="K of the selection")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rows:
        compare_selection(arguments.rows, arguments.clusters, arguments.repeats)
    if arguments.fit_rows:
        compare_choice_of_k(arguments.fit_rows, 1)


if __name__ == "__main__":
    main()
