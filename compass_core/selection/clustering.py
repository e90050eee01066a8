"""Clusters of meaning: fit candidates, choose among them, record the whole curve.

K-Means is judged by its silhouette or by held-out usage, HDBSCAN by its DBCV. All K-Means
candidates of one fit share their seeding: k-means++ seeds for the largest K contain, as a prefix,
seeds for every smaller K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

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
from compass_core.selection.choosing import (
    MIN_REFERENCE,
    MIN_USAGE,
    ChooseBy,
    HeldOut,
    held_out_scores,
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
        curve: One entry per candidate: its parameter, n_clusters and scores.
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
    choose_by: ChooseBy = "silhouette",
    n_usage: int = 0,
    reference: Vectors | None = None,
) -> Clusters:
    """Fit clusters to `vectors` and choose their number.

    K-Means (spherical, k-means++ seeds) takes the K that is best by `choose_by`; HDBSCAN takes the
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
        choose_by: K-Means: ``silhouette``, or ``likelihood`` or ``js`` of held-out usage (see
            `choosing`), which needs 20 usage rows and 20 others. Without them, or with a single
            candidate, the silhouette decides; `notes` says so.
        n_usage: the first `n_usage` rows are usage.
        reference: (R, d) rows as those that will be drawn from, best a sample of the pool; by
            default the rows that are not usage.

    Raises:
        DataError: no rows, rows that are not finite unit vectors, or impossible settings.
    """
    vectors = np.asanyarray(vectors)
    check_unit(vectors)
    if not 0 <= n_usage <= len(vectors):
        raise DataError(
            f"n_usage={n_usage} rows cannot be usage: the fit has {len(vectors)}. Put the usage "
            "vectors first and pass how many they are."
        )
    rng = derive_rng(seed, "clusters", method)
    notes: list[str] = []
    order = canonical_order(vectors)
    if len(order) > max_fit_rows:
        order = order[np.sort(rng.choice(len(order), max_fit_rows, replace=False))]
        notes.append(f"Fitted on a sample of {max_fit_rows} of {len(vectors)} rows.")
    rows = np.ascontiguousarray(vectors[order], dtype=np.float32)
    if method == "kmeans":
        evidence = _evidence(rows, order < n_usage, reference, choose_by, seed)
        centroids, curve, chosen = _choose_kmeans(rows, n_clusters, evidence, rng, notes)
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


class _Evidence(NamedTuple):
    """What K is chosen by: the criterion and the rows it needs."""

    choose_by: ChooseBy
    usage: Vectors
    others: Vectors
    reference: Vectors
    seed: int

    def scores(self, candidates: Sequence[int], notes: list[str]) -> list[HeldOut] | None:
        """Return held-out scores, or None where the silhouette decides."""
        if self.choose_by == "silhouette" or len(candidates) < 2:
            return None
        if len(self.usage) < MIN_USAGE or len(self.reference) < MIN_REFERENCE:
            notes.append(
                f"{len(self.usage)} usage rows and {len(self.reference)} others are too few to "
                f"hold some out ({MIN_USAGE} and {MIN_REFERENCE} needed): the silhouette chose "
                "the number of clusters."
            )
            return None
        rng = derive_rng(self.seed, "clusters", "held-out")
        return held_out_scores(self.usage, self.others, self.reference, candidates, rng)


def _evidence(
    rows: Vectors,
    is_usage: NDArray[np.bool_],
    reference: Vectors | None,
    choose_by: ChooseBy,
    seed: int,
) -> _Evidence:
    if choose_by not in get_args(ChooseBy):
        raise DataError(
            f"clustering.choose_by must be silhouette, likelihood or js, got {choose_by!r}.",
            code="E42",
        )
    usage, others = rows[is_usage], rows[~is_usage]
    if reference is None or choose_by == "silhouette":
        return _Evidence(choose_by, usage, others, others, seed)
    reference = np.asarray(reference, dtype=np.float32)
    check_unit(reference)
    if reference.shape[1] != rows.shape[1]:
        raise DataError(
            f"Reference rows of dimension {reference.shape[1]} cannot be compared with fit rows "
            f"of dimension {rows.shape[1]}: they come from different encoders. Use one for both.",
            code="E50",
        )
    return _Evidence(choose_by, usage, others, reference[canonical_order(reference)], seed)


def _choose_kmeans(
    rows: Vectors,
    candidates: Sequence[int],
    evidence: _Evidence,
    rng: np.random.Generator,
    notes: list[str],
) -> tuple[Vectors, list[dict[str, Any]], dict[str, Any]]:
    wanted = _feasible_candidates(candidates, len(rows), notes)
    cheap = len(rows) * rows.shape[1] * max(wanted) <= _CHEAP_PRODUCT
    starts = [kmeans_plus_plus(rows, max(wanted), rng) for _ in range(_RESTARTS if cheap else 1)]
    n_points = max(len(seeds) for seeds in starts)
    if n_points < max(wanted):
        notes.append(f"Only {n_points} different points: no more clusters than that.")
        wanted = sorted({min(k, n_points) for k in wanted})
    fitted = [_fit_candidate(rows, k, starts) for k in wanted]
    curve = [entry for _, entry in fitted]
    scores = evidence.scores(wanted, notes)
    if scores is None:
        value = [entry["silhouette"] for entry in curve]
    else:
        for entry, score in zip(curve, scores, strict=True):
            entry |= {"likelihood": round(score.likelihood, 6), "js": round(score.js, 6)}
        by_likelihood = evidence.choose_by == "likelihood"
        value = [entry["likelihood"] if by_likelihood else -entry["js"] for entry in curve]
    best = max(range(len(wanted)), key=lambda i: (value[i], -wanted[i]))
    return fitted[best][0], curve, dict(curve[best])


def _fit_candidate(
    rows: Vectors, k: int, starts: Sequence[NDArray[np.int64]]
) -> tuple[Vectors, dict[str, Any]]:
    """Return the tightest run's centroids and its entry of the curve."""
    runs = [lloyd(rows, rows[seeds[:k]]) for seeds in starts if len(seeds) >= k]
    best = min(runs, key=lambda run: run.inertia)
    score = float(silhouette_by_row(rows, best.labels, k).mean()) if k > 1 else 0.0
    return best.centroids, {
        "n_clusters": k,
        "silhouette": round(score, 6),
        "n_iterations": best.n_iterations,
    }


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
