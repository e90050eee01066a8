"""Where vectors lie: nearest centroid, distance, and how far a cluster reaches.

The distance is everywhere 1 − cosine. Rows are read in blocks, so that a memory-mapped pool of any
size passes through a few megabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError

Vectors = NDArray[np.float32]
ClusterIds = NDArray[np.int32]

SAME_POINT = 1e-6
"""Vectors nearer than this (1 − cosine) count as one point."""
PRODUCT_ROWS = 4096
"""Rows per product inside a block: their scores stay in the processor's cache."""
MIN_POINTS_FOR_RADIUS = 5
_CHECK_ROWS = 65_536


def assign_clusters(
    vectors: Vectors, centroids: Vectors, *, block: int = PRODUCT_ROWS
) -> tuple[ClusterIds, NDArray[np.float32]]:
    """Return each row's nearest centroid and its distance 1 − cosine, in [0, 2].

    Ties go to the lower cluster id. Rows are read, checked, multiplied and compared `block` at a
    time: a memory-mapped pool never lies in memory as a whole, and the scores of a block are
    compared while they are still in the processor's cache.

    Args:
        vectors: (N, d) unit norm; may be memory-mapped or sharded, float16 or float32.
        centroids: (K, d) unit norm.
        block: rows at a time.

    Raises:
        DataError: the dimensions differ, or a row is not a finite unit vector.
    """
    if vectors.ndim != 2 or vectors.shape[1] != centroids.shape[1]:
        raise DataError(
            f"Vectors of shape {vectors.shape} cannot be assigned to centroids of dimension "
            f"{centroids.shape[1]}: they come from different encoders. Use one for both.",
            code="E50",
        )
    n_rows = len(vectors)
    cluster_ids = np.empty(n_rows, dtype=np.int32)
    distances = np.empty(n_rows, dtype=np.float32)
    weights = np.ascontiguousarray(centroids.T, dtype=np.float32)
    size = min(block, n_rows)
    room = np.empty((size, len(centroids)), dtype=np.float32)
    every_row = np.arange(size)
    for start in range(0, n_rows, block):
        part = np.asarray(vectors[start : start + block], dtype=np.float32)
        check_unit(part, first_row=start)
        scores = np.matmul(part, weights, out=room[: len(part)])
        nearest = scores.argmax(axis=1)
        here = slice(start, start + len(part))
        cluster_ids[here] = nearest
        np.subtract(1.0, scores[every_row[: len(part)], nearest], out=distances[here])
    np.maximum(distances, 0.0, out=distances)
    return cluster_ids, distances


def leave_one_out_distances(
    vectors: Vectors, cluster_ids: ClusterIds, n_clusters: int
) -> NDArray[np.float32]:
    """Return each fit row's distance to its cluster's mean direction computed without that row.

    A row that helped to place a centroid lies nearer to it than a new row of the same kind would,
    the more so the smaller the cluster and the more dimensions. Radii made of plain distances
    therefore shut out most of a pool that is perfectly on topic; these do not.

    Args:
        vectors: (N, d) unit norm, the rows of the fit.
        cluster_ids: (N,) their clusters.
        n_clusters: K.

    Returns:
        (N,) float32 in [0, 2]; rows alone in their cluster get 1, the distance of strangers.
    """
    own = np.asarray(vectors, dtype=np.float32)
    sums = cluster_sums(own, cluster_ids, n_clusters).astype(np.float64)
    squared = np.einsum("kd,kd->k", sums, sums)[cluster_ids]
    along = np.empty(len(own))
    for start in range(0, len(own), PRODUCT_ROWS):
        part = slice(start, start + PRODUCT_ROWS)
        along[part] = np.einsum("nd,nd->n", own[part], sums[cluster_ids[part]])
    # With s the sum and x the row: x·(s − x) = x·s − 1 and |s − x|² = |s|² − 2 x·s + 1.
    rest = squared - 2 * along + 1
    alone = rest < SAME_POINT
    cosine = np.where(alone, 0.0, (along - 1) / np.sqrt(np.where(alone, 1.0, rest)))
    return np.clip(1.0 - cosine, 0.0, 2.0).astype(np.float32)


def relevance_radii(
    fit_distances: NDArray[np.float32],
    fit_cluster_ids: ClusterIds,
    n_clusters: int,
    quantile: float,
) -> NDArray[np.float32]:
    """Return how far each cluster reaches: a quantile of its own fit rows' distances.

    Clusters with fewer than `MIN_POINTS_FOR_RADIUS` fit rows use the quantile over all rows but
    those alone in their cluster, whose distance says nothing.

    Args:
        fit_distances: (N,) distances of the fit rows, best from `leave_one_out_distances`.
        fit_cluster_ids: (N,) their clusters.
        n_clusters: K.
        quantile: in [0, 1]; 0 switches the radius off (infinite everywhere).

    Returns:
        (K,) float32. A pool row is available to its cluster when its distance is <= the radius.
    """
    if quantile == 0.0 or len(fit_distances) == 0:
        return np.full(n_clusters, np.inf, dtype=np.float32)
    sizes = np.bincount(fit_cluster_ids, minlength=n_clusters)
    accompanied = fit_distances[sizes[fit_cluster_ids] > 1]
    common = np.quantile(accompanied if len(accompanied) else fit_distances, quantile)
    radii = np.full(n_clusters, common, dtype=np.float32)
    order = np.argsort(fit_cluster_ids, kind="stable")
    bounds = np.searchsorted(fit_cluster_ids[order], np.arange(n_clusters + 1))
    for cluster in range(n_clusters):
        own = fit_distances[order[bounds[cluster] : bounds[cluster + 1]]]
        if len(own) >= MIN_POINTS_FOR_RADIUS:
            radii[cluster] = np.quantile(own, quantile)
    # The floor keeps exact copies of a fit row inside, whose distance is rounding noise.
    return np.maximum(radii, np.float32(SAME_POINT))


def cluster_sums(
    rows: Vectors, labels: NDArray[np.integer[Any]], n_clusters: int
) -> NDArray[np.float32]:
    """Return (K, d) sums of the rows of each cluster."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(rows), dtype=np.float32)
    member = csr_matrix((ones, (labels, np.arange(len(rows)))), shape=(n_clusters, len(rows)))
    sums: NDArray[np.float32] = np.asarray(member @ rows, dtype=np.float32)
    return sums


def check_unit(vectors: NDArray[Any], *, first_row: int = 0) -> None:
    """Refuse rows that are not finite unit vectors; name the first few."""
    if vectors.ndim != 2 or len(vectors) == 0 or vectors.shape[1] == 0:
        raise DataError(
            f"Clusters need at least one vector; got an array of shape {vectors.shape}.", code="E51"
        )
    for start in range(0, len(vectors), _CHECK_ROWS):
        part = np.asarray(vectors[start : start + _CHECK_ROWS], dtype=np.float32)
        squared = np.vecdot(part, part)
        bad = np.flatnonzero(~(np.abs(squared - 1.0) < 1e-2))
        if len(bad):
            shown = ", ".join(str(first_row + start + row) for row in bad[:5])
            kind = "NaN or infinite" if not np.isfinite(squared[bad]).all() else "not of length 1"
            raise DataError(
                f"{len(bad)} vectors are {kind} (rows {shown}{', …' if len(bad) > 5 else ''}). "
                "Vectors must come from `encode_texts`; embed these rows again.",
                code="E30",
            )
