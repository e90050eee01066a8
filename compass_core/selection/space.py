"""The semantic space of one target language: clusters, who lies where, and whether to trust it.

Clusters are fitted on usage and coverage (switch: also the pool); everything else is assigned to
its nearest centroid. With no coverage a seeded sample of the pool takes part in the fit, because a
few hundred usage points cannot carry the clusters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.centring import centre_languages
from compass_core.selection.clustering import (
    Clusters,
    assign_clusters,
    fit_clusters,
    leave_one_out_distances,
    relevance_radii,
)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Space:
    """The clusters of one language and everybody's place in them.

    Attributes:
        clusters: The fitted clusters and the curve they were chosen from.
        radii: (K,) relevance radius of each cluster.
        usage_ids: (U,) cluster of each usage prompt.
        usage_distances: (U,) distance to its centroid as placed without it.
        coverage_ids: (D,) cluster of each coverage example.
        pool_ids: (A,) cluster of each pool example (rows of the target language included).
        pool_distances: (A,) distance to its centroid.
        foreign: (A,) True where the pool row is in another language than the target.
        means: Mean vector of each language that was subtracted; empty without centring.
    """

    clusters: Clusters
    radii: FloatArray
    usage_ids: IntArray
    usage_distances: FloatArray
    coverage_ids: IntArray
    pool_ids: IntArray
    pool_distances: FloatArray
    foreign: NDArray[np.bool_]
    means: Mapping[str, FloatArray]

    @property
    def n_clusters(self) -> int:
        """K."""
        return int(self.clusters.centroids.shape[0])


@dataclass(frozen=True)
class Vectors:
    """Unit-norm embeddings by role, all of one encoder.

    Attributes:
        usage: (U, d).
        coverage: (D, d); D may be 0.
        pool: (A, d), memory-mapped or not.
        pool_languages: (A,) canonical language of each pool row.
    """

    usage: FloatArray
    coverage: FloatArray
    pool: FloatArray
    pool_languages: NDArray[np.str_]


def build_space(
    language: str, vectors: Vectors, config: ClusteringConfig, *, centre: bool, seed: int
) -> Space:
    """Fit the clusters of `language` and assign usage, coverage and pool to them.

    Args:
        language: Canonical target language; its own rows in the pool are left out.
        vectors: Embeddings by role.
        config: Method, grid, radius.
        centre: Subtract each language's mean first (the remedy against clusters by script).
        seed: Run seed.
    """
    vectors, means = _centred(language, vectors) if centre else (vectors, {})
    foreign = vectors.pool_languages != language
    others = np.flatnonzero(foreign)
    fit = _fit_vectors(vectors, others, config, derive_rng(seed, "cluster-sample", language))
    clusters = fit_clusters(
        fit,
        method=config.method,
        n_clusters=config.n_clusters,
        min_cluster_sizes=config.min_cluster_sizes,
        seed=derive_seed(seed, "cluster", language) % 2**31,
    )
    centroids = clusters.centroids
    fit_ids, _ = assign_clusters(fit, centroids)
    # A row lies nearer to a centroid that it helped to place than any new row can: measured
    # without it, the radius admits new rows at the stated rate.
    fit_distances = leave_one_out_distances(fit, fit_ids, len(centroids))
    radii = relevance_radii(fit_distances, fit_ids, len(centroids), config.relevance_quantile)
    n_usage = len(vectors.usage)
    pool_ids, pool_distances = assign_clusters(vectors.pool, centroids)
    return Space(
        clusters=clusters,
        radii=radii,
        usage_ids=fit_ids[:n_usage],
        usage_distances=fit_distances[:n_usage],
        coverage_ids=_assign(vectors.coverage, centroids),
        pool_ids=pool_ids,
        pool_distances=pool_distances,
        foreign=foreign,
        means=means,
    )


def locate(
    vectors: FloatArray, centroids: FloatArray, mean: FloatArray | None
) -> tuple[IntArray, FloatArray]:
    """Return cluster and distance of new texts of the target language, (N,) each."""
    if mean is not None:
        vectors = vectors - mean
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return assign_clusters(vectors, centroids)


def _assign(vectors: FloatArray, centroids: FloatArray) -> IntArray:
    if len(vectors) == 0:
        return np.zeros(0, dtype=np.int32)
    return assign_clusters(vectors, centroids)[0]


def _fit_vectors(
    vectors: Vectors, others: NDArray[np.int64], config: ClusteringConfig, rng: np.random.Generator
) -> FloatArray:
    parts: list[FloatArray] = [vectors.usage]
    if len(vectors.coverage):
        parts.append(vectors.coverage)
    if not len(vectors.coverage) or config.fit_on == "usage+coverage+pool":
        size = min(config.pool_fit_sample, len(others))
        chosen = np.sort(rng.choice(others, size=size, replace=False))
        parts.append(np.asarray(vectors.pool[chosen]))
    return np.concatenate(parts)


def _centred(language: str, vectors: Vectors) -> tuple[Vectors, Mapping[str, FloatArray]]:
    """Centre every language; usage, coverage and pool rows of the target share one mean."""
    own = [part for part in (vectors.usage, vectors.coverage) if len(part)]
    stacked = np.concatenate([*own, np.asarray(vectors.pool)])
    n_own = sum(len(part) for part in own)
    languages = np.concatenate([np.full(n_own, language), vectors.pool_languages])
    moved, means = centre_languages(stacked, languages)
    n_usage = len(vectors.usage)
    return Vectors(
        usage=moved[:n_usage],
        coverage=moved[n_usage:n_own],
        pool=moved[n_own:],
        pool_languages=vectors.pool_languages,
    ), means
