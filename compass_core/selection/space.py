"""The semantic space of one target language: its clusters, how far they reach, who lies where.

Clusters are fitted on usage and coverage (switch: also the pool); everything else is assigned to
its nearest centroid. With no coverage a seeded sample of the pool takes part in the fit, because a
few hundred usage points cannot carry the clusters alone. So a pool that grows leaves the clusters
as they are, and only its new shards are assigned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.assignment import MIN_POINTS_FOR_RADIUS
from compass_core.selection.centring import (
    CentredVectors,
    language_means,
    subtract_means,
    sum_by_language,
)
from compass_core.selection.clustering import (
    Clusters,
    assign_clusters,
    fit_clusters,
    leave_one_out_distances,
    relevance_radii,
)
from compass_core.selection.drawing import Keys, random_priorities

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

HELD_OUT = "coverage+pool"
"""`fit_on` that keeps usage out, so that it is a fair reference for later usage."""

MAX_THIN_SHARE = 0.5
"""Share of clusters with too few rows for a radius of their own that is worth a note."""


@dataclass(frozen=True)
class Space:
    """The clusters of one language, and where its own examples lie.

    Attributes:
        clusters: The fitted clusters and the curve they were chosen from.
        radii: (K,) relevance radius of each cluster.
        usage_ids: (U,) cluster of each usage prompt.
        usage_distances: (U,) distance to its centroid as placed without it.
        coverage_ids: (D,) cluster of each coverage example.
        coverage_distances: (D,) the same of the coverage.
    """

    clusters: Clusters
    radii: FloatArray
    usage_ids: IntArray
    usage_distances: FloatArray
    coverage_ids: IntArray
    coverage_distances: FloatArray

    @property
    def n_clusters(self) -> int:
        """K."""
        return int(self.clusters.centroids.shape[0])


@dataclass(frozen=True)
class PlacedSpace(Space):
    """A space with a whole pool in it.

    Attributes:
        pool_ids: (A,) cluster of each pool example (rows of the target language included).
        pool_distances: (A,) distance to its centroid.
        foreign: (A,) True where the pool row is in another language than the target.
        means: Mean vector of each language that was subtracted; empty without centring.
    """

    pool_ids: IntArray
    pool_distances: FloatArray
    foreign: NDArray[np.bool_]
    means: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Vectors:
    """Unit-norm embeddings by role, all of one encoder.

    Attributes:
        usage: (U, d).
        coverage: (D, d); D may be 0.
        pool: (A, d); an array, memory-mapped, or in shards.
        pool_languages: (A,) canonical language of each pool row.
        pool_keys: (A,) keys of the ids; without them chance goes by the order of the rows.
    """

    usage: FloatArray
    coverage: FloatArray
    pool: Any
    pool_languages: NDArray[np.str_]
    pool_keys: Keys | None = None


def fit_space(
    language: str,
    usage: FloatArray,
    coverage: FloatArray,
    pool_sample: FloatArray | None,
    config: ClusteringConfig,
    *,
    seed: int,
) -> Space:
    """Fit the clusters of `language` and measure how far they reach.

    Args:
        language: Canonical target language.
        usage: (U, d).
        coverage: (D, d); D may be 0.
        pool_sample: (S, d) pool rows that take part in the fit, see `needs_pool`; or None.
        config: Method, grid, choice, radius.
        seed: Run seed.
    """
    held_out = config.fit_on == HELD_OUT
    own = [part for part in ([coverage] if held_out else [usage, coverage]) if len(part)]
    fit = np.concatenate([*own, *([] if pool_sample is None else [pool_sample])])
    clusters = fit_clusters(
        fit,
        method=config.method,
        n_clusters=config.n_clusters,
        min_cluster_sizes=config.min_cluster_sizes,
        choose_by="silhouette" if held_out else config.choose_by,
        n_usage=0 if held_out else len(usage),
        seed=derive_seed(seed, "cluster", language) % 2**31,
    )
    centroids = clusters.centroids
    ids, _ = assign_clusters(fit, centroids)
    # A row lies nearer to a centroid that it helped to place than any new row can: measured
    # without it, the radius admits new rows at the stated rate.
    distances = leave_one_out_distances(fit, ids, len(centroids))
    radii = relevance_radii(distances, ids, len(centroids), config.relevance_quantile)
    notes = _notes_on_thin_clusters(ids, len(centroids))
    if held_out:
        usage_ids, usage_distances = assign_clusters(usage, centroids)
    else:
        usage_ids, usage_distances = ids[: len(usage)], distances[: len(usage)]
    covered = slice(0, len(coverage)) if held_out else slice(len(usage), len(usage) + len(coverage))
    return Space(
        clusters=replace(clusters, notes=(*clusters.notes, *notes)),
        radii=radii,
        usage_ids=usage_ids,
        usage_distances=usage_distances,
        coverage_ids=ids[covered],
        coverage_distances=distances[covered],
    )


def _notes_on_thin_clusters(ids: IntArray, n_clusters: int) -> tuple[str, ...]:
    """Say what a reader should know about clusters that are too few or too small."""
    if n_clusters == 1:
        return (
            "One cluster holds everything, so there is no gap to see and the selection is a random "
            "draw. Lower `clustering.min_cluster_sizes`, or use kmeans with more clusters.",
        )
    n_thin = int((np.bincount(ids, minlength=n_clusters) < MIN_POINTS_FOR_RADIUS).sum())
    if n_thin <= n_clusters * MAX_THIN_SHARE:
        return ()
    return (
        f"{n_thin} of {n_clusters} clusters hold fewer than {MIN_POINTS_FOR_RADIUS} of the "
        f"{len(ids)} rows they were fitted on, and share one relevance radius. Fewer clusters "
        "would reach as far as their own rows do.",
    )


def build_space(
    language: str, vectors: Vectors, config: ClusteringConfig, *, centre: bool, seed: int
) -> PlacedSpace:
    """Fit the clusters of `language` and assign usage, coverage and a whole pool to them.

    Args:
        language: Canonical target language; its own rows in the pool take no part in the fit.
        vectors: Embeddings by role.
        config: Method, grid, choice, radius.
        centre: Subtract each language's mean first (the remedy against clusters by script).
        seed: Run seed.
    """
    usage, coverage, pool = vectors.usage, vectors.coverage, vectors.pool
    means: dict[str, FloatArray] = {}
    if centre:
        own = [sum_by_language(v, np.full(len(v), language)) for v in (usage, coverage) if len(v)]
        means = language_means([*own, sum_by_language(pool, vectors.pool_languages)])
        usage, coverage = (take_off(v, means[language]) for v in (usage, coverage))
        pool = CentredVectors(pool, vectors.pool_languages, means)
    sample = None
    foreign = vectors.pool_languages != language
    if needs_pool(config, len(coverage)):
        keys = vectors.pool_keys
        keys = np.arange(len(foreign), dtype=np.uint64) if keys is None else keys
        sample = pool[sample_rows(language, foreign, keys, config, seed=seed)]
    space = fit_space(language, usage, coverage, sample, config, seed=seed)
    pool_ids, pool_distances = assign_clusters(pool, space.clusters.centroids)
    return PlacedSpace(
        **vars(space),
        pool_ids=pool_ids,
        pool_distances=pool_distances,
        foreign=foreign,
        means=means,
    )


def needs_pool(config: ClusteringConfig, n_coverage: int) -> bool:
    """Say whether pool rows take part in the fit: asked for, or there is no coverage."""
    return n_coverage == 0 or config.fit_on != "usage+coverage"


def sample_rows(
    language: str,
    foreign: NDArray[np.bool_],
    keys: Keys,
    config: ClusteringConfig,
    *,
    seed: int,
) -> NDArray[np.int64]:
    """Return the pool rows that take part in the fit, ascending; chance goes by the rows' keys.

    Args:
        language: Canonical target language.
        foreign: (A,) rows of other languages.
        keys: (A,) keys of the rows' ids.
        config: `pool_fit_sample` bounds their number.
        seed: Run seed.
    """
    others = np.flatnonzero(foreign)
    if len(others) <= config.pool_fit_sample:
        return others
    chance = random_priorities(keys[others], derive_rng(seed, "cluster-sample", language))
    return np.sort(
        others[np.argpartition(chance, config.pool_fit_sample)[: config.pool_fit_sample]]
    )


def take_off(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    """Return `vectors` (N, d) of one language centred by its `mean` (d,)."""
    if len(vectors) == 0:
        return vectors
    return subtract_means(vectors, np.broadcast_to(mean, vectors.shape))


def locate(
    vectors: FloatArray, centroids: FloatArray, mean: FloatArray | None
) -> tuple[IntArray, FloatArray]:
    """Return cluster and distance of new texts of the target language, (N,) each."""
    if mean is not None:
        vectors = take_off(vectors, mean)
    return assign_clusters(vectors, centroids)
