"""How well, at what cost: the selection against what else one could use, on one planted pool.

    python benchmarks/peers.py [--worlds 5] [--usage ranked|sparse] [--only NAME ...]
                               [--smoothing 0.5]

A pool of 200,000 vectors with 100 topics, 2,000 usage points with another mix of topics, 10,000
rows to select, no existing rows. Each arm runs in a process of its own on one thread and reads the
pool from a memory-mapped file. Printed are the Jensen-Shannon divergence of the selected rows'
topics to usage's true mix in bits, CPU seconds from vectors to row numbers (without imports and
reading), the peak of the process's anonymous memory, and how many selected rows repeat another.
``compass`` and ``exact quota`` run on every world, in turn, and their means count; the others run
on the first. Above the table stands what the usage sample itself allows: its own divergence.

- compass: the product, `build_space` (2,000 usage and 5,000 pool rows, K=500) to `draw_examples`,
  with the hashing of the ids that makes the draw independent of the pool's order.
- exact quota: scikit-learn's KMeans on the same rows with the same K, nearest centroid, the same
  quotas by bisection, uniform draw. ``usage alone`` fits on the usage rows only.
- knn: the 5 nearest pool rows of every usage point.
- dsir: log-linear importance weights of hashed words and word pairs, Gumbel top-k (Xie et al.
  2023). Rows get 24 words each: 3 in 4 from a Zipf background, the rest from their topic's 200.
- tsds: optimal transport to usage, regularised towards an even spread over the neighbours weighted
  by inverse density (Liu et al. 2024), with their kernel, trade-off and sampling with replacement;
  500 neighbours by exact search, density among them.
- craft: proportional quotas over 100 K-Means clusters, inside each the rows with the smallest mean
  distance to the cluster's usage (Panda 2026).
- facility location: lazy greedy on a random fifth of the pool; how well usage is represented plus
  how near the selected rows are to it.
- random.
"""

from __future__ import annotations

import argparse
import heapq
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from children import run_child
from numpy.typing import NDArray
from planted import N_TOPICS, USAGE_MIXES, Floats, World, topic_counts

from compass_core.config import ClusteringConfig
from compass_core.selection.allocation import plan_allocation
from compass_core.selection.drawing import draw_examples, example_keys
from compass_core.selection.gap import GapTable, js_divergence
from compass_core.selection.space import Vectors, build_space

Rows = NDArray[np.int64]

N_POOL, N_USAGE, BUDGET = 200_000, 2_000, 10_000
N_CLUSTERS, N_FIT_POOL = 500, 5_000
_BLOCK = 4_096
_VOCABULARY, _TOPIC_WORDS, _WORDS, _BUCKETS = 20_000, 200, 24, 10_000


class Problem(NamedTuple):
    """What an arm is given."""

    pool: Floats
    usage: Floats
    pool_topics: Rows
    usage_topics: Rows
    smoothing: float
    rng: np.random.Generator


def compass(problem: Problem) -> Rows:
    """Select as the product does."""
    keys = example_keys(f"row-{i}" for i in range(len(problem.pool)))
    space = build_space(
        "swh_Latn",
        Vectors(
            usage=problem.usage,
            coverage=problem.usage[:0],
            pool=problem.pool,
            pool_languages=np.full(len(problem.pool), "eng_Latn"),
            pool_keys=keys,
        ),
        ClusteringConfig(n_clusters=(N_CLUSTERS,), pool_fit_sample=N_FIT_POOL),
        centre=False,
        seed=0,
    )
    available = space.pool_distances <= space.radii[space.pool_ids]
    gap = GapTable.from_assignments(
        space.usage_ids,
        space.coverage_ids,
        space.pool_ids,
        space.n_clusters,
        available=available,
        smoothing=problem.smoothing,
    )
    plan = plan_allocation(gap.usage_share, gap.coverage_count, gap.capacity, BUDGET)
    return draw_examples(
        space.pool_ids,
        space.pool_distances,
        np.empty(0),
        plan.counts,
        available,
        rng=problem.rng,
        keys=keys,
    )


def exact_quota(problem: Problem) -> Rows:
    """Select by exact quotas over clusters of usage and pool rows."""
    sample = problem.rng.choice(len(problem.pool), N_FIT_POOL, replace=False)
    return _quota(problem, np.concatenate([problem.usage, problem.pool[np.sort(sample)]]))


def exact_quota_usage(problem: Problem) -> Rows:
    """Select by exact quotas over clusters of usage rows."""
    return _quota(problem, problem.usage)


def _quota(problem: Problem, fit: Floats) -> Rows:
    centroids = _kmeans(fit, N_CLUSTERS)
    clusters = _nearest(problem.pool, centroids)
    counts = np.bincount(_nearest(problem.usage, centroids), minlength=N_CLUSTERS)
    shares = counts + problem.smoothing
    shares /= shares.sum()
    capacity = np.bincount(clusters, minlength=N_CLUSTERS)
    quotas = _fill(shares, capacity)
    order = np.argsort(clusters, kind="stable")
    parts = np.split(order, np.cumsum(capacity)[:-1])
    drawn = [
        problem.rng.choice(part, quota, replace=False)
        for part, quota in zip(parts, quotas, strict=True)
    ]
    return np.concatenate(drawn)


def _kmeans(rows: Floats, k: int) -> Floats:
    from sklearn.cluster import KMeans

    centres = KMeans(k, n_init="auto", random_state=0).fit(rows).cluster_centers_
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres.astype(np.float32)


def _nearest(vectors: Floats, centroids: Floats) -> Rows:
    blocks = range(0, len(vectors), _BLOCK)
    weights = np.ascontiguousarray(centroids.T)
    return np.concatenate([(vectors[i : i + _BLOCK] @ weights).argmax(axis=1) for i in blocks])


def _fill(shares: NDArray[np.float64], capacity: Rows) -> Rows:
    """Return whole quotas min(share * level, capacity) that sum to the budget."""
    low, high = 0.0, BUDGET / shares.min()
    for _ in range(100):
        level = (low + high) / 2
        if np.minimum(shares * level, capacity).sum() < BUDGET:
            low = level
        else:
            high = level
    ideal = np.minimum(shares * high, capacity)
    quotas = np.floor(ideal).astype(np.int64)
    rest = BUDGET - int(quotas.sum())
    quotas[np.argsort(quotas - ideal, kind="stable")[:rest]] += 1
    return quotas


def nearest_neighbours(problem: Problem) -> Rows:
    """Take the nearest pool rows of every usage point."""
    rows, _ = _neighbours(problem, BUDGET // N_USAGE)
    return rows.ravel()


def _neighbours(problem: Problem, k: int) -> tuple[Rows, Floats]:
    """Return (usage, k) pool rows by falling cosine, and their cosines."""
    found = np.zeros((N_USAGE, 0), dtype=np.int64)
    cosines = np.zeros((N_USAGE, 0), dtype=np.float32)
    for start in range(0, N_POOL, 4 * _BLOCK):
        scores = problem.usage @ problem.pool[start : start + 4 * _BLOCK].T
        best = np.argpartition(scores, -min(k, scores.shape[1]), axis=1)[:, -k:]
        found = np.concatenate([found, best + start], axis=1)
        cosines = np.concatenate([cosines, np.take_along_axis(scores, best, axis=1)], axis=1)
        if cosines.shape[1] > k:
            keep = np.argpartition(cosines, -k, axis=1)[:, -k:]
            found = np.take_along_axis(found, keep, axis=1)
            cosines = np.take_along_axis(cosines, keep, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def dsir(problem: Problem) -> Rows:
    """Resample by hashed words and word pairs."""
    pool, usage = (
        _hashed_pairs(_words(topics, problem.rng))
        for topics in (problem.pool_topics, problem.usage_topics)
    )
    ours, theirs = (
        np.bincount(buckets.ravel(), minlength=_BUCKETS) + 1.0 for buckets in (usage, pool)
    )
    ratio = np.log(ours / ours.sum()) - np.log(theirs / theirs.sum())
    weights = ratio[pool].sum(axis=1) + problem.rng.gumbel(size=len(pool))
    return np.argpartition(-weights, BUDGET)[:BUDGET]


def _words(topics: Rows, rng: np.random.Generator) -> Rows:
    """Return (N, 24) words: 18 of a Zipf background, 6 of the row's topic."""
    zipf = 1.0 / np.arange(1, _VOCABULARY + 1)
    common = rng.choice(_VOCABULARY, (len(topics), _WORDS), p=zipf / zipf.sum())
    zipf = zipf[:_TOPIC_WORDS]
    own = rng.choice(_TOPIC_WORDS, (len(topics), _WORDS), p=zipf / zipf.sum())
    own += _VOCABULARY + topics[:, None] * _TOPIC_WORDS
    return np.where(rng.random(own.shape) < 0.25, own, common)


def _hashed_pairs(words: Rows) -> Rows:
    pairs = words[:, :-1] * 1_000_003 + words[:, 1:] + 1
    return np.concatenate([words * 2_654_435_761, pairs * 2_246_822_519], axis=1) % _BUCKETS


def tsds(problem: Problem, k: int = 500, sigma: float = 0.75) -> Rows:
    """Sample from the optimal transport of usage, spread over neighbours by inverse density."""
    rows, cosines = _neighbours(problem, k)
    distances = np.sqrt(np.maximum(2.0 - 2.0 * cosines.astype(np.float64), 0.0))
    mass = np.empty_like(distances)
    for i, own in enumerate(rows):
        vectors = problem.pool[own]
        kernel = 1.0 - (2.0 - 2.0 * (vectors @ vectors.T)) / sigma**2
        mass[i] = 1.0 / np.maximum(kernel, 0.0).sum(axis=1)
    spread = _spread(distances, mass)
    weights = np.bincount(rows.ravel(), weights=spread.ravel(), minlength=N_POOL)
    return np.repeat(np.arange(N_POOL), problem.rng.multinomial(BUDGET, weights / weights.sum()))


def _spread(
    distances: NDArray[np.float64], mass: NDArray[np.float64], trade_off: float = 5.0
) -> NDArray[np.float64]:
    """Return (usage, k) probabilities: the nearest rows up to a common mass s per usage point.

    s is the largest at which reaching farther costs no more than it spreads: the mean over usage
    of sum_k mass_k (next distance - distance_k) stays below C (1 - alpha) / alpha, 5 as published.
    """
    filled = np.cumsum(mass, axis=1)
    travelled = np.cumsum(mass * distances, axis=1)
    points = np.arange(len(mass))
    low, high = 0.0, float(filled[:, -2].min())
    for _ in range(50):
        level = (low + high) / 2
        reached = np.minimum((filled < level).sum(axis=1), mass.shape[1] - 2)
        cost = distances[points, reached + 1] * filled[points, reached]
        if (cost - travelled[points, reached]).mean() < trade_off:
            low = level
        else:
            high = level
    part: NDArray[np.float64] = np.clip(low - (filled - mass), 0.0, mass)
    return part / part.sum(axis=1, keepdims=True)


def craft(problem: Problem, k: int = 100) -> Rows:
    """Fill proportional quotas over clusters with the rows nearest to the cluster's usage."""
    sample = problem.rng.choice(len(problem.pool), N_FIT_POOL, replace=False)
    fit = np.concatenate([problem.usage, problem.pool[np.sort(sample)]])
    centroids = _kmeans(fit, k)
    clusters, own = _nearest(problem.pool, centroids), _nearest(problem.usage, centroids)
    shares = np.maximum(np.bincount(own, minlength=k) / N_USAGE, 1e-9)
    quotas = _fill(shares, np.bincount(clusters, minlength=k))
    chosen = []
    for cluster in np.flatnonzero(quotas):
        rows = np.flatnonzero(clusters == cluster)
        inside = problem.usage[own == cluster]
        middle = inside.mean(axis=0) if len(inside) else centroids[cluster]
        near = np.argsort(-(problem.pool[rows] @ middle), kind="stable")
        chosen.append(rows[near[: quotas[cluster]]])
    return np.concatenate(chosen)


def facility_location(problem: Problem, share: float = 0.2) -> Rows:
    """Pick greedily what represents usage best, then what is nearest to it."""
    sample = np.sort(problem.rng.choice(N_POOL, int(share * N_POOL), replace=False))
    similar = np.maximum(problem.pool[sample] @ problem.usage.T, 0.0)
    nearness = similar.max(axis=1)
    best = np.zeros(N_USAGE, dtype=np.float32)
    heap = [(-float(g), i) for i, g in enumerate(similar.sum(axis=1) + nearness)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < BUDGET:
        _, row = heapq.heappop(heap)
        gain = float(np.maximum(similar[row] - best, 0.0).sum() + nearness[row])
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, row))
            continue
        chosen.append(row)
        np.maximum(best, similar[row], out=best)
    return sample[chosen]


def random_rows(problem: Problem) -> Rows:
    """Draw evenly from the pool."""
    return problem.rng.choice(len(problem.pool), BUDGET, replace=False)


ARMS: dict[str, Callable[[Problem], Rows]] = {
    "compass": compass,
    "exact quota": exact_quota,
    "exact quota, usage alone": exact_quota_usage,
    "knn": nearest_neighbours,
    "dsir": dsir,
    "tsds": tsds,
    "craft": craft,
    "facility location": facility_location,
    "random": random_rows,
}
ALWAYS = ("compass", "exact quota")


def run_arm(name: str, folder: Path, seed: int, smoothing: float) -> dict[str, float]:
    """Run one arm on the world in `folder`; return its divergence, CPU seconds and repeats."""
    # Imports are not what is compared.
    for module in ("scipy.sparse", "sklearn.cluster"):
        importlib.import_module(module)

    pool_topics, usage_topics = (np.load(folder / f"{n}_topics.npy") for n in ("pool", "usage"))
    problem = Problem(
        np.load(folder / "pool.npy", mmap_mode="r"),
        np.load(folder / "usage.npy"),
        pool_topics,
        usage_topics,
        smoothing,
        np.random.default_rng(seed),
    )
    started = time.process_time()
    rows = ARMS[name](problem)
    seconds = time.process_time() - started
    target = np.load(folder / "target.npy")
    return {
        "js": js_divergence(target, topic_counts(pool_topics[rows])),
        "cpu": seconds,
        "rows": len(rows),
        "repeats": len(rows) - len(np.unique(rows)),
    }


def write_world(folder: Path, seed: int, usage: str) -> None:
    """Write pool, usage and target into `folder`; print what the sample allows."""
    world, rng = World(seed, usage), np.random.default_rng([seed, 1])
    topics = world.write_pool(folder / "pool.npy", N_POOL, rng)
    vectors, usage_topics = world.draw(N_USAGE, world.usage_mix, rng)
    np.save(folder / "usage.npy", vectors)
    np.save(folder / "pool_topics.npy", topics)
    np.save(folder / "usage_topics.npy", usage_topics)
    np.save(folder / "target.npy", world.usage_mix)
    own = js_divergence(world.usage_mix, topic_counts(usage_topics))
    pool = js_divergence(world.usage_mix, topic_counts(topics))
    print(
        f"world {seed}: JS to the target: whole pool {pool:.4f}, the usage sample itself {own:.4f}"
    )


def report(name: str, found: list[tuple[dict[str, float], float]]) -> None:
    """Print one arm's row: means over its worlds."""
    js, cpu, rows, repeats = (
        np.array([result[key] for result, _ in found]) for key in ("js", "cpu", "rows", "repeats")
    )
    several = f"  JS {' '.join(f'{v:.4f}' for v in js)}" if len(js) > 1 else ""
    print(
        f"{name:26s} {js.mean():8.4f} {cpu.mean():8.2f} {max(peak for _, peak in found):9.0f} "
        f"{(repeats / rows).mean():8.1%}{several}",
        flush=True,
    )


def main() -> None:
    """Run every arm and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--usage", choices=USAGE_MIXES, default=USAGE_MIXES[0])
    parser.add_argument("--smoothing", type=float, default=0.5, help="selection.smoothing")
    parser.add_argument("--only", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, seed = arguments.child
        print(json.dumps(run_arm(name, Path(folder), int(seed), arguments.smoothing)))
        return
    found: dict[str, list[tuple[dict[str, float], float]]] = {name: [] for name in arguments.only}
    for seed in range(arguments.worlds):
        with tempfile.TemporaryDirectory() as folder:
            write_world(Path(folder), seed, arguments.usage)
            for name in arguments.only:
                if seed == 0 or name in ALWAYS:
                    call = ["--child", name, folder, str(seed)]
                    call += ["--smoothing", str(arguments.smoothing)]
                    found[name].append(run_child(__file__, *call, threads=1))
    print(f"{N_POOL:,d} rows, {N_TOPICS} topics, {N_USAGE:,d} usage points, {BUDGET:,d} selected")
    print(f"{'':26s} {'JS bits':>8s} {'CPU s':>8s} {'peak MiB':>9s} {'repeats':>8s}")
    for name, results in found.items():
        report(name, results)
    if all(name in found for name in ALWAYS):
        own, plain = (np.mean([result["cpu"] for result, _ in found[name]]) for name in ALWAYS)
        print(f"CPU of compass / exact quota: {own / plain:.2f}  (claims: <= 1, JS <= .01)")


if __name__ == "__main__":
    main()
