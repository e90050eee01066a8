"""The cluster stage: fit one language's clusters, place the pool shard by shard, check its health.

    language sums ─► means ─┐                      (only when languages are centred)
    usage, coverage ────────┴► fit ─► assign × shards ─► cluster (labels, health, script guard)

Fit and assignments are parts: a pool that grows leaves the fit and its old shards as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig
from compass_core.pool import Pool, texts_of
from compass_core.records import ArtifactRef
from compass_core.selection.assignment import assign_clusters
from compass_core.selection.centring import CentredVectors, language_means
from compass_core.selection.health import (
    Health,
    check_reach,
    check_script_guard,
    cluster_health,
)
from compass_core.selection.labels import describe_clusters, label_clusters, nearest_examples
from compass_core.selection.retrieval import parallel_retrieval
from compass_core.selection.space import fit_space, needs_pool, sample_rows, take_off
from compass_core.storage import Draft, read_array, read_json, write_array, write_json
from tasks.caching import part, stage
from tasks.pools import (
    Corpus,
    open_corpora,
    open_sketches,
    open_sums,
    pool_shards,
)
from tasks.settings import open_store

_OWN_ARRAYS = (
    "usage_ids",
    "usage_distances",
    "coverage_ids",
    "coverage_distances",
    "radii",
)
ENGLISH = "eng_Latn"
_LABEL_ROWS = 30
"""English rows of the pool that speak for a cluster, the nearest to its centroid."""
_RETRIEVAL_ROWS = 200_000
"""Rows whose translations are looked for: enough for any estimate, whatever the pool's size."""


class Places(NamedTuple):
    """Where the pool lies: (A,) cluster of each row, and (A,) distance to its centroid."""

    ids: NDArray[np.int32]
    distances: NDArray[np.float32]


@stage("cluster", 3, libraries=("scikit-learn", "numpy"))
def cluster(
    draft: Draft,
    language: str,
    own: dict[str, Corpus],
    pool: ArtifactRef,
    config: ClusteringConfig,
    centre_languages: bool,
    seed: int,
) -> None:
    """Fit the clusters of one language, assign everybody, check the space's health.

    Args:
        draft: Where the space is written.
        language: Target language.
        own: ``usage`` and ``coverage``.
        pool: The pool.
        config: Method, grid, choice, radius, guards.
        centre_languages: Subtract each language's mean first.
        seed: Run seed.

    Raises:
        ScriptGuardError: the clusters follow the language instead of the meaning.
        DataError: encoder or clusters miss more than the configuration allows.
    """
    shards = pool_shards(pool)
    means = language_mean_vectors(language, own, shards) if centre_languages else None
    shared = shards if needs_pool(config, own["coverage"]["rows"].rows) else []
    fitted = fit(language, own, shared, means, _fit_config(config), seed)
    assigned = [assign(fitted, shard, means) for shard in shards]
    folder = open_store().folder(fitted)
    for name in (*_OWN_ARRAYS, "centroids"):
        write_array(draft.folder / f"{name}.npy", read_array(folder / f"{name}.npy"))
    if means is not None:
        write_array(draft.folder / "mean.npy", read_means(means)[language])
    parts = [fitted, *assigned, *([means] if means else [])]
    draft.provenance["parts"] = [ref.path for ref in parts]
    draft.rows = fitted.rows
    facts = read_json(folder / "fit.json") | {
        "fit": fitted.to_dict(),
        "assigned": [ref.to_dict() for ref in assigned],
        "means": means.to_dict() if means else None,
    }
    health = _health(language, draft, [*own.values(), *shards], shards, assigned, means)
    warnings = check_script_guard(health, config.script_guard) + check_reach(
        health,
        min_retrieval=config.min_retrieval,
        max_usage_outside=config.max_usage_outside,
    )
    facts |= _descriptions(language, draft, own, shards, assigned)
    facts |= {"health": health.to_dict(), "warnings": [*warnings, *facts["notes"]]}
    write_json(draft.folder / "space.json", facts)


def open_places(space: ArtifactRef) -> Places:
    """Return where every row of the pool lies in the space `space`."""
    store = open_store()
    refs = read_json(store.folder(space) / "space.json")["assigned"]
    return _places([ArtifactRef.from_dict(ref) for ref in refs])


def open_own(space: ArtifactRef) -> dict[str, NDArray[Any]]:
    """Return the arrays of usage and coverage in the space `space`, and its radii."""
    folder = open_store().folder(space)
    return {name: read_array(folder / f"{name}.npy") for name in _OWN_ARRAYS}


def own_vectors(corpus: Corpus, space: ArtifactRef) -> NDArray[np.float32]:
    """Return the vectors of usage or coverage as the space sees them: centred where languages are.

    An empty corpus gives (0, 0).
    """
    if not corpus["rows"].rows:
        return np.zeros((0, 0), dtype=np.float32)
    vectors = open_corpora([corpus]).vectors[:]
    path = open_store().folder(space) / "mean.npy"
    return take_off(vectors, read_array(path)) if path.exists() else vectors


def open_means(space: ArtifactRef) -> ArtifactRef | None:
    """Return where the means of all languages are; None without centring."""
    found = read_json(open_store().folder(space) / "space.json")["means"]
    return ArtifactRef.from_dict(found) if found else None


def _places(assigned: Sequence[ArtifactRef]) -> Places:
    folders = [open_store().folder(ref) for ref in assigned]
    return Places(
        np.concatenate([read_array(folder / "ids.npy") for folder in folders]),
        np.concatenate([read_array(folder / "distances.npy") for folder in folders]),
    )


def _fit_config(config: ClusteringConfig) -> ClusteringConfig:
    """Return what of the configuration the fit depends on; the guards judge it afterwards."""
    defaults = ClusteringConfig()
    guards = ("script_guard", "min_retrieval", "max_usage_outside")
    return config.model_copy(update={name: getattr(defaults, name) for name in guards})


@part("means", 1)
def language_mean_vectors(
    draft: Draft, language: str, own: dict[str, Corpus], pool: list[Corpus]
) -> None:
    """Average the vectors of each language: ``means.npy`` (L, d) and ``languages.json``.

    The target language's mean is that of its usage, its coverage and its rows in the pool.
    """
    corpora = [corpus for corpus in (*own.values(), *pool) if corpus["rows"].rows]
    means = language_means(open_sums(corpus) for corpus in corpora)
    draft.rows = len(means)
    write_json(draft.folder / "languages.json", list(means))
    write_array(draft.folder / "means.npy", np.stack(list(means.values())))


def read_means(means: ArtifactRef) -> dict[str, NDArray[np.float32]]:
    """Return the mean vector of each language."""
    folder = open_store().folder(means)
    names = read_json(folder / "languages.json")
    return dict(zip(names, read_array(folder / "means.npy"), strict=True))


@part("fit", 1, libraries=("scikit-learn", "numpy"))
def fit(
    draft: Draft,
    language: str,
    own: dict[str, Corpus],
    pool: list[Corpus],
    means: ArtifactRef | None,
    config: ClusteringConfig,
    seed: int,
) -> None:
    """Fit the clusters: centroids, radii, and where usage and coverage lie.

    `pool` is empty unless its rows take part, so that a growing pool changes nothing here.
    """
    mean = read_means(means)[language] if means is not None else None
    usage = open_corpora([own["usage"]]).vectors[:]
    has_coverage = own["coverage"]["rows"].rows > 0
    coverage = open_corpora([own["coverage"]]).vectors[:] if has_coverage else usage[:0]
    if mean is not None:
        usage, coverage = take_off(usage, mean), take_off(coverage, mean)
    sample = _fit_sample(language, pool, means, config, seed) if pool else None
    space = fit_space(language, usage, coverage, sample, config, seed=seed)
    draft.rows = space.n_clusters
    for name in _OWN_ARRAYS:
        write_array(draft.folder / f"{name}.npy", getattr(space, name))
    write_array(draft.folder / "centroids.npy", space.clusters.centroids)
    clusters = space.clusters
    facts = {"method": clusters.method, "chosen": clusters.chosen, "curve": clusters.curve}
    write_json(draft.folder / "fit.json", facts | {"notes": list(clusters.notes)})


def _fit_sample(
    language: str,
    shards: list[Corpus],
    means: ArtifactRef | None,
    config: ClusteringConfig,
    seed: int,
) -> NDArray[np.float32]:
    pool = open_corpora(shards)
    keys = np.concatenate([np.asarray(found.keys) for found in open_sketches(shards)])
    foreign = pool.languages != language
    rows = sample_rows(language, foreign, keys, config, seed=seed)
    chosen: NDArray[np.float32] = pool_vectors(pool, means)[rows]
    return chosen


def pool_vectors(pool: Pool, means: ArtifactRef | None) -> Any:
    """Return the vectors of a pool as its space sees them: centred where languages are."""
    if means is None:
        return pool.vectors
    return CentredVectors(pool.vectors, pool.languages, read_means(means))


@part("assign", 1, libraries=("numpy",))
def assign(draft: Draft, fitted: ArtifactRef, shard: Corpus, means: ArtifactRef | None) -> None:
    """Assign one shard of the pool: ``ids.npy`` and ``distances.npy``."""
    centroids = read_array(open_store().folder(fitted) / "centroids.npy")
    ids, distances = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    if shard["rows"].rows:  # a file of the pool may have no row that is wanted
        ids, distances = assign_clusters(pool_vectors(open_corpora([shard]), means), centroids)
    draft.rows = len(ids)
    write_array(draft.folder / "ids.npy", ids)
    write_array(draft.folder / "distances.npy", distances)


def _health(
    language: str,
    draft: Draft,
    corpora: list[Corpus],
    shards: list[Corpus],
    assigned: Sequence[ArtifactRef],
    means: ArtifactRef | None,
) -> Health:
    pool = open_corpora(shards)
    foreign = np.flatnonzero(pool.languages != language)
    distances = read_array(draft.folder / "usage_distances.npy")
    radii = read_array(draft.folder / "radii.npy")
    topics, names = pool.codes("topic")
    named = np.array([name != "" for name in names], dtype=np.bool_)
    return cluster_health(
        _places(assigned).ids[foreign],
        pool.languages[foreign],
        topics=np.where(named[topics], topics, -1)[foreign] if named.any() else None,
        usage_outside=distances > radii[read_array(draft.folder / "usage_ids.npy")],
        retrieval=_retrieval(language, corpora, means),
    )


def _retrieval(
    language: str, corpora: list[Corpus], means: ArtifactRef | None
) -> dict[str, float] | None:
    """Return how well translations find each other among all rows of the run."""
    corpora = [corpus for corpus in corpora if corpus["rows"].rows]
    keys = np.concatenate([found.parallel_keys for found in open_sketches(corpora)])
    if not keys.any():
        return None
    if np.count_nonzero(keys) > _RETRIEVAL_ROWS:  # the smallest keys, so translations stay together
        keys[keys > np.partition(keys[keys > 0], _RETRIEVAL_ROWS)[_RETRIEVAL_ROWS]] = 0
    everything = open_corpora(corpora)
    vectors = pool_vectors(everything, means)
    return parallel_retrieval(keys, everything.languages, vectors, first=language)


def _descriptions(
    language: str,
    draft: Draft,
    own: dict[str, Corpus],
    shards: list[Corpus],
    assigned: Sequence[ArtifactRef],
) -> dict[str, list[Any]]:
    """Return per cluster a label, and the usage prompts nearest to its centroid.

    The label holds terms of usage and coverage and, for readers of another language, those of the
    pool's nearest rows in English.
    """
    corpora = [own[role] for role in ("usage", "coverage") if own[role]["rows"].rows]
    arrays = [_own_arrays(draft.folder, role) for role in ("usage", "coverage")]
    ids, distances = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
    texts = [text for batch in open_corpora(corpora).iter_texts() for text in batch]
    n_clusters = len(read_array(draft.folder / "radii.npy"))
    labels = label_clusters(ids, texts, distances, n_clusters=n_clusters)
    english = _english_labels(open_corpora(shards), _places(assigned), n_clusters)
    if english and language != ENGLISH:
        labels = [" | ".join(parts) for parts in zip(labels, english, strict=True)]
    n_usage = own["usage"]["rows"].rows
    described = describe_clusters(
        ids[:n_usage], texts[:n_usage], distances[:n_usage], n_clusters=n_clusters
    )
    return {"labels": labels, "examples": [cluster.examples for cluster in described]}


def _english_labels(pool: Pool, places: Places, n_clusters: int) -> list[str]:
    """Return terms of the pool's English rows nearest to each centroid; none without English."""
    rows = np.flatnonzero(pool.languages == ENGLISH)
    if not len(rows):
        return []
    near = nearest_examples(
        places.ids[rows],
        places.distances[rows],
        n_clusters=n_clusters,
        n_examples=_LABEL_ROWS,
    )
    chosen = [rows[place] for place in near]
    texts = texts_of(pool.take(np.concatenate(chosen), ["prompt", "response"]))
    ids = np.repeat(np.arange(n_clusters), [len(part) for part in chosen])
    return label_clusters(ids, texts, n_clusters=n_clusters, n_terms=3)


def _own_arrays(folder: Path, role: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return read_array(folder / f"{role}_ids.npy"), read_array(folder / f"{role}_distances.npy")
