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
_PRODUCT_ENTRIES = 2**22
"""Distances (rows × trials) that the seeding computes at once."""
_SETTLED_SHARE = 5e-4
"""Lloyd stops when at most this share of the points changes cluster."""


def kmeans_plus_plus(rows: Vectors, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `k` row numbers by greedy k-means++; fewer when the points run out.

    Trials for several steps are drawn at once and share one product with the rows. When a trial's
    turn comes it stands with the probability by which its distance has shrunk since it was drawn,
    so that it is distributed as if it were drawn then.
    """
    n_trials = 2 + int(np.log(max(k, 1)))
    seeds = [int(rng.integers(len(rows)))]
    nearest = np.maximum(1.0 - rows @ rows[seeds[0]], 0.0)
    while len(seeds) < k:
        nearest[nearest < SAME_POINT] = 0.0
        cumulative = np.cumsum(nearest, dtype=np.float64)
        if cumulative[-1] <= 0:
            break
        most = max(_PRODUCT_ENTRIES // len(rows), n_trials)
        chances = rng.random((min(most, n_trials * (k - len(seeds))), 2))
        drawn = np.searchsorted(cumulative, chances[:, 0] * cumulative[-1], side="right")
        drawn = np.minimum(drawn, len(rows) - 1)
        thresholds = chances[:, 1] * nearest[drawn]
        distances = np.maximum(1.0 - rows[drawn] @ rows.T, 0.0)
        turn = 0
        while len(seeds) < k:
            standing = turn + np.flatnonzero(thresholds[turn:] < nearest[drawn[turn:]])[:n_trials]
            if (len(standing) < n_trials and turn > 0) or len(standing) == 0:
                break
            shrunk = np.minimum(distances[standing], nearest)
            best = int(shrunk.sum(axis=1).argmin())
            seeds.append(int(drawn[standing[best]]))
            nearest = shrunk[best]
            turn = int(standing[-1]) + 1
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
