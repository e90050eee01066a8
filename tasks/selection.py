"""Cluster, measure the gap, sample: what to take from the pool for one language."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig, SelectionConfig
from compass_core.records import ArtifactRef
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.exclusion import forbidden_rows
from compass_core.selection.gap import GapTable
from compass_core.selection.health import check_script_guard, cluster_health
from compass_core.selection.labels import label_clusters
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.projection import project_2d
from compass_core.selection.similarity import lexical_similarity
from compass_core.selection.space import Space, Vectors, build_space
from compass_core.selection.strategies import STRATEGIES
from compass_core.storage import (
    Draft,
    read_array,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from tasks.caching import stage
from tasks.settings import open_store

_MAP_POINTS_PER_ROLE = 400
_ARRAYS = (
    "usage_ids",
    "usage_distances",
    "coverage_ids",
    "pool_ids",
    "pool_distances",
    "foreign",
    "radii",
)


def _rows(ref: ArtifactRef, columns: list[str] | None = None) -> pa.Table:
    return read_table(open_store().folder(ref) / "rows.parquet", columns)


def _vectors(ref: ArtifactRef) -> NDArray[np.float32]:
    return read_array(open_store().folder(ref) / "vectors.npy", mmap=True)


def _texts(rows: pa.Table) -> list[str]:
    columns = rows.select(["prompt", "response"]).to_pydict()
    return [p or r for p, r in zip(columns["prompt"], columns["response"], strict=True)]


def _languages(rows: pa.Table) -> NDArray[np.str_]:
    return np.asarray(rows["language"].to_pylist(), dtype=np.str_)


@stage("cluster", 1, libraries=("scikit-learn", "numpy"))
def cluster(
    draft: Draft,
    language: str,
    rows: dict[str, ArtifactRef],
    vectors: dict[str, ArtifactRef],
    config: ClusteringConfig,
    centre_languages: bool,
    seed: int,
) -> None:
    """Fit the clusters of one language, assign everybody, check the space's health.

    Raises:
        ScriptGuardError: the clusters follow the language instead of the meaning.
    """
    pool = _rows(rows["pool"], ["language", "prompt", "response", "topic"])
    found = build_space(
        language,
        Vectors(
            usage=_vectors(vectors["usage"]),
            coverage=_vectors(vectors["coverage"]),
            pool=_vectors(vectors["pool"]),
            pool_languages=_languages(pool),
        ),
        config,
        centre=centre_languages,
        seed=seed,
    )
    draft.rows = found.n_clusters
    for name in _ARRAYS:
        write_array(draft.folder / f"{name}.npy", getattr(found, name))
    write_array(draft.folder / "centroids.npy", found.clusters.centroids)
    if found.means:
        write_array(draft.folder / "mean.npy", found.means[language])
    write_json(draft.folder / "space.json", _facts(found, rows, pool, config))


def _facts(
    found: Space, rows: dict[str, ArtifactRef], pool: pa.Table, config: ClusteringConfig
) -> dict[str, Any]:
    foreign = np.flatnonzero(found.foreign)
    others = pool.take(foreign)
    health = cluster_health(
        found.pool_ids[foreign],
        _languages(others),
        topics=others["topic"].to_pylist(),
        usage_outside=found.usage_distances > found.radii[found.usage_ids],
    )
    warnings = check_script_guard(health, config.script_guard)
    own = [_rows(rows["usage"]), _rows(rows["coverage"])]
    labels = label_clusters(
        np.concatenate([found.usage_ids, found.coverage_ids]),
        [text for part in own for text in _texts(part)],
        n_clusters=found.n_clusters,
    )
    return {
        "method": found.clusters.method,
        "chosen": found.clusters.chosen,
        "curve": found.clusters.curve,
        "labels": labels,
        "health": health.to_dict(),
        "warnings": warnings,
    }


@stage("gap-score", 1)
def gap_score(
    draft: Draft,
    language: str,
    rows: dict[str, ArtifactRef],
    space: ArtifactRef,
    smoothing: float,
    licences: tuple[str, ...],
) -> None:
    """Measure per cluster where coverage falls short of usage, and what the pool may give."""
    folder = open_store().folder(space)
    arrays = {name: read_array(folder / f"{name}.npy") for name in _ARRAYS}
    allowed, reasons = forbidden_rows(
        _rows(rows["pool"]),
        usage=_rows(rows["usage"]),
        test=_rows(rows["test"], ["prompt", "response", "parallel_id"]),
        coverage=_rows(rows["coverage"]),
        licences=licences,
    )
    allowed &= arrays["foreign"]
    within = arrays["pool_distances"] <= arrays["radii"][arrays["pool_ids"]]
    table = GapTable.from_assignments(
        arrays["usage_ids"],
        arrays["coverage_ids"],
        arrays["pool_ids"],
        len(arrays["radii"]),
        available=allowed & within,
        smoothing=smoothing,
    )
    draft.rows = len(table.gap)
    write_table(draft.folder / "gap.parquet", table.to_table())
    write_array(draft.folder / "allowed.npy", allowed)
    write_array(draft.folder / "available.npy", allowed & within)
    write_json(draft.folder / "exclusions.json", reasons)


@stage("sample", 1)
def sample(
    draft: Draft,
    language: str,
    rows: dict[str, ArtifactRef],
    pool_vectors: ArtifactRef,
    space: ArtifactRef,
    gap: ArtifactRef,
    config: SelectionConfig,
    seed: int,
) -> None:
    """Spend the budget: ``selected.parquet`` says what and why, ``clusters.parquet`` per cluster.

    Raises:
        InsufficientPoolError: the pool cannot fill the budget.
    """
    problem = _problem(language, rows, pool_vectors, space, gap, config)
    rng = derive_rng(seed, "draw", language)
    chosen = STRATEGIES[config.strategy](problem, config.budget, rng)
    facts = read_json(open_store().folder(space) / "space.json")
    selected = _rows(rows["pool"]).take(chosen.indices)
    draft.rows = selected.num_rows
    draft.provenance |= {
        "language": language,
        "strategy": config.strategy,
        "budget": config.budget,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "notes": list(chosen.notes),
        "exclusions": read_json(open_store().folder(gap) / "exclusions.json"),
    }
    write_table(draft.folder / "rows.parquet", selected)
    write_table(draft.folder / "selected.parquet", _selected(selected, problem, chosen))
    write_table(draft.folder / "clusters.parquet", _clusters(problem, chosen, facts["labels"]))
    write_array(draft.folder / "indices.npy", chosen.indices)


def _problem(
    language: str,
    rows: dict[str, ArtifactRef],
    pool_vectors: ArtifactRef,
    space: ArtifactRef,
    gap: ArtifactRef,
    config: SelectionConfig,
) -> SelectionProblem:
    store = open_store()
    pool = _rows(rows["pool"])
    arrays = {
        n: read_array(store.folder(space) / f"{n}.npy") for n in ("pool_ids", "pool_distances")
    }
    languages = _languages(pool)
    similarity: dict[str, float] = {}
    if config.strategy == "similar":
        own = _texts(_rows(rows["usage"])) + _texts(_rows(rows["coverage"]))
        texts: dict[str, list[str]] = {}
        for name, text in zip(languages, _texts(pool), strict=True):
            texts.setdefault(str(name), []).append(text)
        texts.pop(language, None)
        similarity = lexical_similarity(own, texts)
    return SelectionProblem(
        language=language,
        pool_ids=np.asarray(pool["id"].to_pylist()),
        pool_languages=languages,
        pool_cluster_ids=arrays["pool_ids"],
        pool_distances=arrays["pool_distances"],
        available=read_array(store.folder(gap) / "available.npy"),
        allowed=read_array(store.folder(gap) / "allowed.npy"),
        gap=GapTable.from_table(read_table(store.folder(gap) / "gap.parquet")),
        language_similarity=similarity,
        smoothing=config.smoothing,
        rule=config.rule,
        draw=config.draw,
        language_balance=config.language_balance,
        similar_languages=config.similar_languages,
        pool_vectors=_vectors(pool_vectors) if config.draw == "diverse" else None,
    )


def _selected(rows: pa.Table, problem: SelectionProblem, chosen: Selection) -> pa.Table:
    columns = {
        name: rows[name] for name in ("id", "language", "source", "licence", "topic", "parallel_id")
    }
    columns["cluster"] = pa.array(problem.pool_cluster_ids[chosen.indices], pa.int32())
    columns["distance"] = pa.array(problem.pool_distances[chosen.indices], pa.float32())
    columns["reason"] = pa.array(chosen.reasons, pa.string())
    return pa.table(columns | {name: rows[name] for name in ("prompt", "response")})


def _clusters(problem: SelectionProblem, chosen: Selection, labels: list[str]) -> pa.Table:
    table = problem.gap.to_table()
    n_clusters = table.num_rows
    counted = {
        "label": pa.array(labels, pa.string()),
        "pool_count": np.bincount(problem.pool_cluster_ids[problem.allowed], minlength=n_clusters),
        "allocation": chosen.allocation,
        "selected": np.bincount(problem.pool_cluster_ids[chosen.indices], minlength=n_clusters),
    }
    for name, values in counted.items():
        table = table.append_column(name, pa.array(values))
    return table


@stage("map", 1, libraries=("scikit-learn", "numpy"))
def draw_map(
    draft: Draft,
    language: str,
    vectors: dict[str, ArtifactRef],
    space: ArtifactRef,
    selection: ArtifactRef,
    seed: int,
) -> None:
    """Place a bounded number of points per role in the plane, for the report: ``map.parquet``."""
    folder = open_store().folder(space)
    selected = read_array(open_store().folder(selection) / "indices.npy")
    others = read_array(folder / "foreign.npy")
    others[selected] = False
    clusters = {r: read_array(folder / f"{r}_ids.npy") for r in ("usage", "coverage", "pool")}
    rows = {
        "usage": np.arange(len(clusters["usage"])),
        "coverage": np.arange(len(clusters["coverage"])),
        "selected": selected,
        "pool": np.flatnonzero(others),
    }
    rng = derive_rng(seed, "map", language)
    roles, ids, parts = [], [], []
    for role, candidates in rows.items():
        size = min(_MAP_POINTS_PER_ROLE, len(candidates))
        if size == 0:
            continue
        chosen = np.sort(rng.choice(candidates, size=size, replace=False))
        corpus = "pool" if role == "selected" else role
        roles += [role] * size
        ids.append(clusters[corpus][chosen])
        parts.append(np.asarray(_vectors(vectors[corpus])[chosen]))
    points = project_2d(np.concatenate(parts), seed=derive_seed(seed, "map"))
    draft.rows = len(roles)
    table = {"role": roles, "cluster": np.concatenate(ids), "x": points[:, 0], "y": points[:, 1]}
    write_table(draft.folder / "map.parquet", pa.table(table))
