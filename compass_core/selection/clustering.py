"""Clusters of meaning: fit candidates, choose among them, record the whole curve.

K-Means is judged by its silhouette, HDBSCAN by its DBCV. All K-Means candidates of one fit share
their seeding: k-means++ seeds for the largest K contain, as a prefix, seeds for every smaller K.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.seeding import derive_rng
from compass_core.selection.assignment import (
    ClusterIds,
    Vectors,
    assign_clusters,
    check_unit,
    cluster_sums,
    leave_one_out_distances,
    relevance_radii,
)
from compass_core.selection.density import dbcv_score, hdbscan_labels, reduce_dimensions
from compass_core.selection.kmeans import (
    kmeans_plus_plus,
    lloyd,
    silhouette_by_row,
)

__all__ = [
    "ClusterIds",
    "Clusters",
    "Vectors",
    "assign_clusters",
    "canonical_order",
    "fit_clusters",
    "leave_one_out_distances",
    "relevance_radii",
    "silhouette_by_row",
]

ClusterMethod = Literal["kmeans", "hdbscan"]

_RESTARTS, _CHEAP_PRODUCT = 4, 2 * 10**8
"""Small fits (N·d·K) are run from several seedings and the tightest is kept; they cost little."""


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
    check_unit(vectors)
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


def canonical_order(vectors: Vectors) -> NDArray[np.int64]:
    """Return an order of the rows that depends on their values alone."""
    columns = [np.asarray(vectors[:, column]) for column in range(min(4, vectors.shape[1]))]
    return np.lexsort(columns[::-1])


def _choose_kmeans(
    rows: Vectors, candidates: Sequence[int], rng: np.random.Generator, notes: list[str]
) -> tuple[Vectors, list[dict[str, Any]], dict[str, Any]]:
    wanted = _feasible_candidates(candidates, len(rows), notes)
    cheap = len(rows) * rows.shape[1] * max(wanted) <= _CHEAP_PRODUCT
    starts = [kmeans_plus_plus(rows, max(wanted), rng) for _ in range(_RESTARTS if cheap else 1)]
    n_points = max(len(seeds) for seeds in starts)
    if n_points < max(wanted):
        notes.append(f"Only {n_points} different points: no more clusters than that.")
        wanted = sorted({min(k, n_points) for k in wanted})
    fits: list[Vectors] = []
    curve: list[dict[str, Any]] = []
    for k in wanted:
        started = time.perf_counter()
        runs = [lloyd(rows, rows[seeds[:k]]) for seeds in starts if len(seeds) >= k]
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


def _choose_hdbscan(
    rows: Vectors, sizes: Sequence[int], notes: list[str]
) -> tuple[Vectors, list[dict[str, Any]], dict[str, Any]]:
    asked = sorted({int(size) for size in sizes})
    if not asked or asked[0] < 2:
        raise DataError(
            f"clustering.min_cluster_sizes needs numbers >= 2, got {list(sizes)}.", code="E42"
        )
    space = reduce_dimensions(rows)
    fits: list[Vectors] = []
    curve: list[dict[str, Any]] = []
    for size in (size for size in asked if 2 * size <= len(rows)):
        started = time.perf_counter()
        labels = hdbscan_labels(space, size)
        member = labels >= 0
        if not member.any():
            continue
        sums = cluster_sums(rows[member], labels[member], int(labels.max()) + 1)
        fits.append(_normalised(sums))
        nearest = assign_clusters(rows, fits[-1])[0]
        curve.append(
            {
                "min_cluster_size": size,
                "n_clusters": len(fits[-1]),
                "dbcv": round(dbcv_score(space, labels), 6),
                "noise_share": round(float((~member).mean()), 6),
                # Members that their own centroid also claims: low values mean shapes that
                # "nearest centroid" cannot follow.
                "centroid_agreement": round(float((nearest == labels)[member].mean()), 6),
                "seconds": round(time.perf_counter() - started, 4),
            }
        )
    if not curve:
        notes.append(
            f"HDBSCAN found no cluster of at least {asked[0]} among {len(rows)} rows: "
            "one cluster holds everything. Lower `clustering.min_cluster_sizes` or use kmeans."
        )
        mean = rows.mean(axis=0, keepdims=True)
        centre = _normalised(mean) if np.linalg.norm(mean) > 1e-6 else rows[:1].copy()
        single = {"min_cluster_size": asked[0], "n_clusters": 1, "dbcv": 0.0, "noise_share": 1.0}
        return centre, [single], dict(single)
    best = max(range(len(curve)), key=lambda i: (curve[i]["dbcv"], curve[i]["min_cluster_size"]))
    return fits[best], curve, dict(curve[best])


def _normalised(vectors: NDArray[np.float32]) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
