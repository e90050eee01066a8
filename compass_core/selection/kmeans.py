"""K-Means on the unit sphere, and the exact silhouette that judges it.

With the distance 1 − cosine the silhouette needs no N × N matrix: one product with the cluster
sums, O(N·K·d), gives every row's mean distance to every cluster,

    Σ_{j in c} (1 − x·x_j) = n_c − x·Σ_{j in c} x_j
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.assignment import (
    PRODUCT_ROWS,
    SAME_POINT,
    ClusterIds,
    Vectors,
    assign_clusters,
    cluster_sums,
)

_MAX_ITERATIONS = 50
_SETTLED_SHARE = 5e-4
"""Lloyd stops when at most this share of the points changes cluster."""


def kmeans_plus_plus(rows: Vectors, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `k` row numbers by greedy k-means++; fewer when the points run out."""
    n_trials = 2 + int(np.log(max(k, 1)))
    first = int(rng.integers(len(rows)))
    seeds = [first]
    nearest = np.maximum(1.0 - rows @ rows[first], 0.0).astype(np.float64)
    while len(seeds) < k:
        nearest[nearest < SAME_POINT] = 0.0
        cumulative = np.cumsum(nearest)
        if cumulative[-1] <= 0:
            break
        draws = rng.random(n_trials) * cumulative[-1]
        trials = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(rows) - 1)
        distances = np.minimum(np.maximum(1.0 - rows @ rows[trials].T, 0.0), nearest[:, None])
        best = int(distances.sum(axis=0).argmin())
        if nearest[trials[best]] <= 0:
            break
        seeds.append(int(trials[best]))
        nearest = distances[:, best].copy()
    return np.array(seeds, dtype=np.int64)


class KMeansRun(NamedTuple):
    """One K-Means run; inertia is the mean distance of the rows to their centroid."""

    centroids: Vectors
    labels: ClusterIds
    inertia: float
    n_iterations: int


def lloyd(rows: Vectors, start: Vectors) -> KMeansRun:
    """Iterate assignment and mean until hardly any row moves."""
    centroids = start.copy()
    labels, distances = assign_clusters(rows, centroids)
    n_iterations, n_moved = 0, len(rows)
    while n_iterations < _MAX_ITERATIONS and n_moved > _SETTLED_SHARE * len(rows):
        centroids = _update_centroids(rows, labels, distances, centroids)
        moved, distances = assign_clusters(rows, centroids)
        n_moved = int((moved != labels).sum())
        labels = moved
        n_iterations += 1
    return KMeansRun(centroids, labels, float(distances.mean(dtype=np.float64)), n_iterations)


def _update_centroids(
    rows: Vectors, labels: ClusterIds, distances: NDArray[np.float32], centroids: Vectors
) -> Vectors:
    """Return normalised means; an empty cluster moves to the row farthest from its centroid."""
    sums = cluster_sums(rows, labels, len(centroids))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    updated: Vectors = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-12), centroids)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centroids)) == 0)
    if len(empty):
        updated[empty] = rows[np.argsort(-distances, kind="stable")[: len(empty)]]
    return updated.astype(np.float32)


def silhouette_by_row(
    vectors: Vectors, labels: NDArray[np.integer[Any]], n_clusters: int
) -> NDArray[np.float64]:
    """Return every row's exact silhouette under the distance 1 − cosine, in [−1, 1].

    Args:
        vectors: (N, d) unit norm.
        labels: (N,) cluster of each row, in [0, K).
        n_clusters: K >= 2.

    Returns:
        (N,); rows alone in their cluster get 0.
    """
    sums = cluster_sums(vectors, labels, n_clusters)
    counts = np.bincount(labels, minlength=n_clusters).astype(np.float64)
    result = np.zeros(len(vectors))
    for low in range(0, len(vectors), PRODUCT_ROWS):
        part = slice(low, low + PRODUCT_ROWS)
        own = labels[part]
        rows = np.arange(len(own))
        to_all = counts - (vectors[part] @ sums.T).astype(np.float64)
        own_count = counts[own]
        # The row's zero distance to itself is in its own cluster's total already.
        inner = to_all[rows, own] / np.maximum(own_count - 1, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_to_all = np.where(counts > 0, to_all / counts, np.inf)
        mean_to_all[rows, own] = np.inf
        outer = mean_to_all.min(axis=1)
        scale = np.maximum(np.maximum(inner, outer), 1e-12)
        result[part] = np.where(own_count > 1, (outer - inner) / scale, 0.0)
    return np.clip(result, -1.0, 1.0)
