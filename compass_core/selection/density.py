"""Density-based clusters: HDBSCAN in a reduced space, and DBCV, the index that chooses among them.

DBCV (density-based clustering validation) compares, per cluster, the sparsest link inside it with
the densest link to any other cluster, both measured by mutual reachability. It is computed exactly
as defined, but on at most ``MAX_DBCV_ROWS`` rows: its cost is quadratic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DBCV_ROWS = 3_000
"""Rows scored; beyond that every n-th row stands in for all, and the score is approximate."""
REDUCED_DIMENSIONS = 50
"""Density means little in hundreds of dimensions: rows are first reduced to this many."""

_TINY = 1e-12
_TIE_BREAK = 1e-9


def hdbscan_labels(space: NDArray[np.float64], min_cluster_size: int) -> NDArray[np.int64]:
    """Return (N,) density clusters of the (N, d) points `space`, −1 for noise.

    Args:
        space: (N, d) points, as `reduce_dimensions` returns them.
        min_cluster_size: smallest group that counts as a cluster.
    """
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(min_cluster_size=min_cluster_size, copy=True)
    return np.asarray(model.fit_predict(space), dtype=np.int64)


def reduce_dimensions(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rows' leading principal components (N, <= 50)."""
    centred: NDArray[np.float64] = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    if centred.shape[1] <= REDUCED_DIMENSIONS:
        return centred
    values, axes = np.linalg.eigh(centred.T @ centred)
    leading = axes[:, np.argsort(-values)[:REDUCED_DIMENSIONS]]
    reduced: NDArray[np.float64] = centred @ leading
    return reduced


def dbcv_score(space: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Return the DBCV index of a clustering, in [−1, 1]; higher is better, noise counts against it.

    Args:
        space: (N, d) points, Euclidean.
        labels: (N,) clusters, −1 for noise. Clusters of one point contribute 0.
    """
    if len(space) > MAX_DBCV_ROWS:
        sample = np.linspace(0, len(space) - 1, MAX_DBCV_ROWS).astype(np.int64)
        space, labels = space[sample], labels[sample]
    members = [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]
    members = [rows for rows in members if len(rows) >= 2]
    if len(members) < 2:
        return 0.0
    cores = [_core_distances(space[rows]) for rows in members]
    sparseness, inner = zip(
        *(
            _cluster_sparseness(space[rows], core)
            for rows, core in zip(members, cores, strict=True)
        ),
        strict=True,
    )
    score = 0.0
    for i, rows in enumerate(members):
        separation = min(
            _separation(
                space[rows[inner[i]]],
                cores[i][inner[i]],
                space[members[j][inner[j]]],
                cores[j][inner[j]],
            )
            for j in range(len(members))
            if j != i
        )
        validity = (separation - sparseness[i]) / max(separation, sparseness[i], _TINY)
        score += validity * len(rows) / len(space)
    return float(score)


def _distances(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    result: NDArray[np.float64] = cdist(left, right)
    return result


def _core_distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """All-points core distance: the (−d)-power mean of the distances to the cluster's others.

    In logarithms: distances to the power of −50 leave the range of float64.
    """
    n, d = points.shape
    logs = -d * np.log(np.maximum(_distances(points, points), _TINY))
    np.fill_diagonal(logs, -np.inf)
    top = logs.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logs - top).sum(axis=1))
    core: NDArray[np.float64] = np.exp(-(total - np.log(n - 1)) / d)
    return core


def _cluster_sparseness(
    points: NDArray[np.float64], core: NDArray[np.float64]
) -> tuple[float, NDArray[np.int64]]:
    """Return the longest inner edge of the cluster's spanning tree and the rows of inner nodes."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    distance = _distances(points, points)
    reach = np.maximum(np.maximum(core[:, None], core[None, :]), distance)
    # Edges whose reachability is one point's core distance tie; the shorter edge goes first, so
    # that the tree is unique. A zero means "no edge" to the graph routine, but is a distance here.
    tree = minimum_spanning_tree(np.maximum(reach + _TIE_BREAK * distance, _TINY)).tocoo()
    degree = np.bincount(np.concatenate([tree.row, tree.col]), minlength=len(points))
    inner = np.flatnonzero(degree > 1)
    if len(inner) == 0:
        inner = np.arange(len(points))
    inside = (degree[tree.row] > 1) & (degree[tree.col] > 1)
    edges = reach[tree.row, tree.col]
    return float((edges[inside] if inside.any() else edges).max()), inner


def _separation(
    left: NDArray[np.float64],
    left_core: NDArray[np.float64],
    right: NDArray[np.float64],
    right_core: NDArray[np.float64],
) -> float:
    """Return the smallest mutual reachability between the inner nodes of two clusters."""
    cores = np.maximum(left_core[:, None], right_core[None, :])
    return float(np.maximum(cores, _distances(left, right)).min())
