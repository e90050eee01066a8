"""Clusters of meaning on the unit sphere: fit, choose how many, assign, and how far they reach.

The distance is everywhere 1 − cosine (half the squared Euclidean distance between unit vectors, so
nearest by one is nearest by the other). That choice makes the silhouette exact at the price of one
product with the cluster sums, O(N·K·d), instead of a sampled N × N distance matrix:

    Σ_{j in c} (1 − x·x_j) = n_c − x·Σ_{j in c} x_j

All candidates of one fit share their seeding: k-means++ seeds for the largest K contain, as a
prefix, k-means++ seeds for every smaller K.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.seeding import derive_rng
from compass_core.selection.density import dbcv_score, hdbscan_labels, reduce_dimensions

Vectors = NDArray[np.float32]
ClusterIds = NDArray[np.int32]
ClusterMethod = Literal["kmeans", "hdbscan"]

_MAX_ITERATIONS = 50
_SETTLED_SHARE = 5e-4
"""Lloyd stops when fewer than this share of the points changes cluster."""
_RESTARTS, _CHEAP_PRODUCT = 4, 2 * 10**8
"""Small fits (N·d·K) are run from several seedings and the tightest is kept; they cost little."""
_SAME_POINT = 1e-6
"""Vectors nearer than this (1 − cosine) count as one point."""
_MIN_POINTS_FOR_RADIUS = 5
_ASSIGN_ROWS = 4096
"""Rows per product inside a block: their scores stay in the processor's cache."""


@dataclass(frozen=True)
class Clusters:
    """Fitted clusters.

    Attributes:
        centroids: (K, d) float32, unit norm.
        labels: (N,) cluster of each fitted row: always its nearest centroid, as for every other
            row, so that usage, coverage and pool are counted by one rule.
        method: ``kmeans`` or ``hdbscan``.
        chosen: The winning candidate's entry of `curve`.
        curve: One entry per candidate: its parameter, n_clusters, score and seconds.
        cohesion: (K,) mean cosine of a cluster's rows with its centroid.
        notes: What a reader should know (dropped candidates, sampling).
    """

    centroids: Vectors
    labels: ClusterIds
    method: str
    chosen: dict[str, Any]
    curve: list[dict[str, Any]]
    cohesion: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.centroids)


def fit_clusters(
    vectors: Vectors,
    *,
    method: ClusterMethod = "kmeans",
    n_clusters: Sequence[int] = (20, 40, 60, 80, 100, 120),
    min_cluster_sizes: Sequence[int] = (5, 10, 20),
    seed: int = 0,
    max_fit_rows: int = 50_000,
) -> Clusters:
    """Fit clusters to `vectors` and choose their number.

    K-Means (spherical, k-means++ seeds) takes the K of the highest silhouette; HDBSCAN takes the
    smallest cluster size of the highest DBCV, its noise goes to the nearest centroid. The result
    does not depend on the order of the rows.

    Args:
        vectors: (N, d) unit norm; may be memory-mapped.
        method: ``kmeans`` or ``hdbscan``.
        n_clusters: K-Means: candidates; those that leave fewer than 2 rows per cluster are dropped.
        min_cluster_sizes: HDBSCAN: candidates.
        seed: seed of the seeding and of the sample below.
        max_fit_rows: beyond this many rows the fit uses a seeded sample of this size and the rest
            is assigned; the silhouette is then the sample's (standard error <= 1/√rows).

    Raises:
        DataError: no rows, or rows that are not finite unit vectors.
    """
    vectors = np.asanyarray(vectors)
    _check_unit(vectors)
    rng = derive_rng(seed, "clusters", method)
    notes: list[str] = []
    order = canonical_order(vectors)
    if len(order) > max_fit_rows:
        order = order[np.sort(rng.choice(len(order), max_fit_rows, replace=False))]
        notes.append(f"Fitted on a sample of {max_fit_rows} of {len(vectors)} rows.")
    rows = np.ascontiguousarray(vectors[order], dtype=np.float32)
    if method == "kmeans":
        centroids, curve, chosen = _choose_kmeans(rows, n_clusters, rng, notes)
    elif method == "hdbscan":
        centroids, curve, chosen = _choose_hdbscan(rows, min_cluster_sizes, notes)
    else:
        raise DataError(f"clustering.method must be kmeans or hdbscan, got {method!r}.", code="E42")
    labels, distances = assign_clusters(vectors, centroids)
    used, compact = np.unique(labels, return_inverse=True)
    centroids, labels = centroids[used], compact.astype(np.int32)
    sums = np.bincount(labels, weights=1.0 - distances, minlength=len(used))
    cohesion = (sums / np.bincount(labels, minlength=len(used))).astype(np.float32)
    return Clusters(centroids, labels, method, chosen, curve, cohesion, tuple(notes))


def assign_clusters(
    vectors: Vectors, centroids: Vectors, *, block: int = 16_384
) -> tuple[ClusterIds, NDArray[np.float32]]:
    """Return each row's nearest centroid and its distance 1 − cosine, in [0, 2].

    Ties go to the lower cluster id. Rows are read `block` at a time, so that a memory-mapped pool
    never lies in memory as a whole.

    Args:
        vectors: (N, d) unit norm; may be memory-mapped, float16 or float32.
        centroids: (K, d) unit norm.
        block: rows read at a time.

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
    for start in range(0, n_rows, block):
        part = np.asarray(vectors[start : start + block], dtype=np.float32)
        _check_unit(part, first_row=start)
        for low in range(0, len(part), _ASSIGN_ROWS):
            scores = part[low : low + _ASSIGN_ROWS] @ weights
            nearest = scores.argmax(axis=1)
            here = slice(start + low, start + low + len(scores))
            cluster_ids[here] = nearest
            distances[here] = 1.0 - scores[np.arange(len(scores)), nearest]
    np.maximum(distances, 0.0, out=distances)
    return cluster_ids, distances


def relevance_radii(
    fit_distances: NDArray[np.float32],
    fit_cluster_ids: ClusterIds,
    n_clusters: int,
    quantile: float,
) -> NDArray[np.float32]:
    """Return how far each cluster reaches: a quantile of its own fit rows' distances.

    Clusters with fewer than 5 fit rows use the quantile over all rows.

    Args:
        fit_distances: (N,) distances of the fit rows to their centroid.
        fit_cluster_ids: (N,) their clusters.
        n_clusters: K.
        quantile: in [0, 1]; 0 switches the radius off (infinite everywhere).

    Returns:
        (K,) float32. A pool row is available to its cluster when its distance is <= the radius.
    """
    if quantile == 0.0 or len(fit_distances) == 0:
        return np.full(n_clusters, np.inf, dtype=np.float32)
    radii = np.full(n_clusters, np.quantile(fit_distances, quantile), dtype=np.float32)
    order = np.argsort(fit_cluster_ids, kind="stable")
    bounds = np.searchsorted(fit_cluster_ids[order], np.arange(n_clusters + 1))
    for cluster in range(n_clusters):
        own = fit_distances[order[bounds[cluster] : bounds[cluster + 1]]]
        if len(own) >= _MIN_POINTS_FOR_RADIUS:
            radii[cluster] = np.quantile(own, quantile)
    # The floor keeps exact copies of a fit row inside, whose distance is rounding noise.
    return np.maximum(radii, np.float32(_SAME_POINT))


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
    sums = _cluster_sums(vectors, labels, n_clusters)
    counts = np.bincount(labels, minlength=n_clusters).astype(np.float64)
    result = np.zeros(len(vectors))
    for low in range(0, len(vectors), _ASSIGN_ROWS):
        part = slice(low, low + _ASSIGN_ROWS)
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


def canonical_order(vectors: Vectors) -> NDArray[np.int64]:
    """Return an order of the rows that depends on their values alone."""
    columns = [np.asarray(vectors[:, column]) for column in range(min(4, vectors.shape[1]))]
    return np.lexsort(columns[::-1])


def _choose_kmeans(
    rows: Vectors, candidates: Sequence[int], rng: np.random.Generator, notes: list[str]
) -> tuple[Vectors, list[dict[str, Any]], dict[str, Any]]:
    wanted = _feasible_candidates(candidates, len(rows), notes)
    cheap = len(rows) * rows.shape[1] * max(wanted) <= _CHEAP_PRODUCT
    starts = [_kmeans_plus_plus(rows, max(wanted), rng) for _ in range(_RESTARTS if cheap else 1)]
    n_points = max(len(seeds) for seeds in starts)
    if n_points < max(wanted):
        notes.append(f"Only {n_points} different points: no more clusters than that.")
        wanted = sorted({min(k, n_points) for k in wanted})
    fits: list[Vectors] = []
    curve: list[dict[str, Any]] = []
    for k in wanted:
        started = time.perf_counter()
        runs = [_lloyd(rows, rows[seeds[:k]]) for seeds in starts if len(seeds) >= k]
        best_run = min(runs, key=lambda run: run.inertia)
        score = 0.0
        if k > 1:
            score = float(silhouette_by_row(rows, best_run.labels, k).mean())
        fits.append(best_run.centroids)
        curve.append(
            {
                "n_clusters": k,
                "silhouette": round(score, 6),
                "n_iterations": best_run.n_iterations,
                "seconds": round(time.perf_counter() - started, 4),
            }
        )
    best = max(range(len(wanted)), key=lambda i: (curve[i]["silhouette"], -wanted[i]))
    return fits[best], curve, dict(curve[best])


def _feasible_candidates(candidates: Sequence[int], n_rows: int, notes: list[str]) -> list[int]:
    """Drop numbers of clusters that leave fewer than 2 rows per cluster; keep at least one."""
    asked = sorted({int(k) for k in candidates})
    if not asked or asked[0] < 1:
        raise DataError(
            f"clustering.n_clusters needs positive numbers, got {list(candidates)}.", code="E42"
        )
    most = max(n_rows // 2, 1)
    kept = [k for k in asked if k <= most]
    if len(kept) < len(asked):
        dropped = ", ".join(str(k) for k in asked if k > most)
        notes.append(f"{n_rows} rows carry at most {most} clusters; not tried: {dropped}.")
    return kept or [most]


def _kmeans_plus_plus(rows: Vectors, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `k` row numbers by greedy k-means++; fewer when the points run out."""
    n_trials = 2 + int(np.log(max(k, 1)))
    first = int(rng.integers(len(rows)))
    seeds = [first]
    nearest = np.maximum(1.0 - rows @ rows[first], 0.0).astype(np.float64)
    while len(seeds) < k:
        nearest[nearest < _SAME_POINT] = 0.0
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


class _Run(NamedTuple):
    """One K-Means run; inertia is the mean distance of the rows to their centroid."""

    centroids: Vectors
    labels: ClusterIds
    inertia: float
    n_iterations: int


def _lloyd(rows: Vectors, start: Vectors) -> _Run:
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
    return _Run(centroids, labels, float(distances.mean(dtype=np.float64)), n_iterations)


def _update_centroids(
    rows: Vectors, labels: ClusterIds, distances: NDArray[np.float32], centroids: Vectors
) -> Vectors:
    """Return normalised means; an empty cluster moves to the row farthest from its centroid."""
    sums = _cluster_sums(rows, labels, len(centroids))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    updated: Vectors = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-12), centroids)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centroids)) == 0)
    if len(empty):
        updated[empty] = rows[np.argsort(-distances, kind="stable")[: len(empty)]]
    return updated.astype(np.float32)


def _cluster_sums(
    rows: Vectors, labels: NDArray[np.integer[Any]], n_clusters: int
) -> NDArray[np.float32]:
    """Return (K, d) sums of the rows of each cluster."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(rows), dtype=np.float32)
    member = csr_matrix((ones, (labels, np.arange(len(rows)))), shape=(n_clusters, len(rows)))
    sums: NDArray[np.float32] = np.asarray(member @ rows, dtype=np.float32)
    return sums


def _choose_hdbscan(
    rows: Vectors, sizes: Sequence[int], notes: list[str]
) -> tuple[Vectors, list[dict[str, Any]], dict[str, Any]]:
    asked = sorted({int(size) for size in sizes})
    if not asked or asked[0] < 2:
        raise DataError(
            f"clustering.min_cluster_sizes needs numbers >= 2, got {list(sizes)}.", code="E42"
        )
    kept = [size for size in asked if 2 * size <= len(rows)]
    space = reduce_dimensions(rows)
    fits: list[Vectors] = []
    curve: list[dict[str, Any]] = []
    for size in kept:
        started = time.perf_counter()
        labels = hdbscan_labels(space, size)
        k = int(labels.max()) + 1
        if k >= 1:
            sums = _cluster_sums(rows[labels >= 0], labels[labels >= 0], k)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            centroids = (sums / np.maximum(norms, 1e-12)).astype(np.float32)
            fits.append(centroids)
            nearest = assign_clusters(rows, centroids)[0]
            curve.append(
                {
                    "min_cluster_size": size,
                    "n_clusters": k,
                    "dbcv": round(dbcv_score(space, labels), 6),
                    "noise_share": round(float((labels < 0).mean()), 6),
                    # Members that their own centroid also claims: low values mean shapes that
                    # "nearest centroid" cannot follow.
                    "centroid_agreement": round(float((nearest == labels)[labels >= 0].mean()), 6),
                    "seconds": round(time.perf_counter() - started, 4),
                }
            )
    if not curve:
        notes.append(
            f"HDBSCAN found no cluster of at least {asked[0]} among {len(rows)} rows: "
            "one cluster holds everything. Lower `clustering.min_cluster_sizes` or use kmeans."
        )
        mean = rows.mean(axis=0, keepdims=True)
        norm = float(np.linalg.norm(mean))
        centre = mean / norm if norm > 1e-6 else rows[:1]
        single = {"min_cluster_size": asked[0], "n_clusters": 1, "dbcv": 0.0, "noise_share": 1.0}
        return centre.astype(np.float32), [single], dict(single)
    best = max(range(len(curve)), key=lambda i: (curve[i]["dbcv"], curve[i]["min_cluster_size"]))
    return fits[best], curve, dict(curve[best])


def _check_unit(vectors: NDArray[Any], *, first_row: int = 0) -> None:
    """Refuse rows that are not finite unit vectors; name the first few."""
    if vectors.ndim != 2 or len(vectors) == 0 or vectors.shape[1] == 0:
        raise DataError(
            f"Clusters need at least one vector; got an array of shape {vectors.shape}.", code="E51"
        )
    for start in range(0, len(vectors), 65_536):
        part = np.asarray(vectors[start : start + 65_536], dtype=np.float32)
        squared = np.einsum("ij,ij->i", part, part)
        bad = np.flatnonzero(~(np.abs(squared - 1.0) < 1e-2))
        if len(bad):
            shown = ", ".join(str(first_row + start + row) for row in bad[:5])
            kind = "NaN or infinite" if not np.isfinite(squared[bad]).all() else "not of length 1"
            raise DataError(
                f"{len(bad)} vectors are {kind} (rows {shown}{', …' if len(bad) > 5 else ''}). "
                "Vectors must come from `encode_texts`; embed these rows again.",
                code="E30",
            )
