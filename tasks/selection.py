"""Measure the gap, spend the budget, draw the map: what to take from the pool for one language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from compass_core.config import SelectionConfig
from compass_core.pool import texts_of
from compass_core.records import ArtifactRef
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.exclusion import exclude_rows
from compass_core.selection.gap import GapTable
from compass_core.selection.match import measure_match, notes_on_match
from compass_core.selection.nearness import distances_to_usage
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.projection import project_2d
from compass_core.selection.strategies import select_examples
from compass_core.storage import (
    Draft,
    read_array,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from tasks.caching import ModelRef, part, stage
from tasks.pools import Corpus, open_pool, open_sketch, open_sketches, pool_shards
from tasks.settings import open_store
from tasks.spaces import open_means, open_own, open_places, own_vectors, pool_vectors

_MAP_POINTS_PER_ROLE = 400
_EXCLUSION_SETTINGS = (
    "licences",
    "sources",
    "exclude_sources",
    "near_duplicates",
    "decontaminate",
)


def gap_settings(config: SelectionConfig) -> dict[str, Any]:
    """Return what the gap depends on; strategies and budgets share one gap table."""
    names = ("smoothing", "shrinkage", *_EXCLUSION_SETTINGS)
    return {name: getattr(config, name) for name in names}


@stage("gap-score", 2)
def gap_score(
    draft: Draft,
    language: str,
    rows: dict[str, ArtifactRef],
    pool: ArtifactRef,
    space: ArtifactRef,
    settings: dict[str, Any],
) -> None:
    """Measure per cluster where coverage falls short of usage, and what the pool may give.

    ``excluded.parquet`` says which rows of the pool may not be taken, why, and what each collides
    with. `settings` are those of `gap_settings`.
    """
    whole = open_pool(pool)
    excluded = exclude_rows(
        open_sketches(pool_shards(pool)),
        candidates=whole.languages != language,
        usage=open_sketch(rows["usage"]),
        coverage=open_sketch(rows["coverage"]),
        test=open_sketch(rows["test"]),
        **{name: settings[name] for name in _EXCLUSION_SETTINGS},
    )
    own, places = open_own(space), open_places(space)
    allowed = excluded.allowed
    within = places.distances <= own["radii"][places.ids]
    table = GapTable.from_assignments(
        own["usage_ids"],
        own["coverage_ids"],
        places.ids,
        len(own["radii"]),
        available=allowed & within,
        smoothing=settings["smoothing"],
        shrinkage=settings["shrinkage"],
    )
    draft.rows = table.n_clusters
    write_table(draft.folder / "gap.parquet", table.to_table())
    write_array(draft.folder / "allowed.npy", allowed)
    write_array(draft.folder / "available.npy", allowed & within)
    write_json(draft.folder / "exclusions.json", excluded.reasons)
    write_table(draft.folder / "excluded.parquet", excluded.removed)


@stage("sample", 2)
def sample(
    draft: Draft,
    language: str,
    own: dict[str, Corpus],
    pool: ArtifactRef,
    measured: dict[str, ArtifactRef],
    behind: ModelRef,
    config: SelectionConfig,
    seed: int,
) -> None:
    """Spend the budget: ``selected.parquet`` says what and why, ``clusters.parquet`` per cluster.

    `measured` holds the artefacts ``space`` and ``gap``; `behind` is the strategy's model (its path
    is empty where there is none) and identifies the packages it depends on.

    Raises:
        InsufficientPoolError: the pool cannot fill the budget.
    """
    whole = open_pool(pool)
    problem = _problem(language, own, pool, measured["space"], measured["gap"], config)
    if behind.path:
        problem = replace(problem, langrank_model=Path(behind.path))
    rng = derive_rng(seed, "draw", language)
    chosen = select_examples(config.strategy, problem, config.budget, rng)
    facts = read_json(open_store().folder(measured["space"]) / "space.json")
    selected = whole.take(chosen.indices)
    match = measure_match(
        problem.gap,
        problem.count_by_cluster(chosen.indices),
        problem.count_by_cluster(problem.candidates),
    )
    draft.rows = selected.num_rows
    draft.provenance |= {
        "language": language,
        "strategy": config.strategy,
        "behind": behind.sha256,
        "budget": config.budget,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "notes": [*chosen.notes, *notes_on_match(match)],
        "details": chosen.details,
        "match": match,
        "exclusions": read_json(open_store().folder(measured["gap"]) / "exclusions.json"),
    }
    write_table(draft.folder / "rows.parquet", selected)
    write_table(draft.folder / "selected.parquet", _selected(selected, problem, chosen))
    write_table(draft.folder / "clusters.parquet", _clusters(problem, chosen, facts["labels"]))
    write_array(draft.folder / "indices.npy", chosen.indices)


def _problem(
    language: str,
    own: dict[str, Corpus],
    pool: ArtifactRef,
    space: ArtifactRef,
    gap: ArtifactRef,
    config: SelectionConfig,
) -> SelectionProblem:
    store = open_store()
    folder = store.folder(gap)
    places = open_places(space)
    texts = {role: _texts(own[role]["rows"]) for role in ("usage", "coverage")}
    whole = open_pool(pool)
    usage_vectors, vectors = (
        own_vectors(own["usage"], space),
        pool_vectors(whole, open_means(space)),
    )
    distances = places.distances
    if config.draw == "nearest":
        asked = open_own(space)["usage_ids"]
        distances = distances_to_usage(vectors, places.ids, usage_vectors, asked, distances)
    return SelectionProblem(
        language=language,
        pool_keys=np.concatenate([np.asarray(s.keys) for s in open_sketches(pool_shards(pool))]),
        pool_languages=whole.languages,
        pool_cluster_ids=places.ids,
        pool_distances=distances,
        available=read_array(folder / "available.npy"),
        allowed=read_array(folder / "allowed.npy"),
        gap=GapTable.from_table(read_table(folder / "gap.parquet")),
        smoothing=config.smoothing,
        rule=config.rule,
        draw=config.draw,
        language_balance=config.language_balance,
        similar_languages=config.similar_languages,
        usage_texts=texts["usage"],
        coverage_texts=texts["coverage"],
        pool_texts=whole.iter_texts,
        usage_vectors=usage_vectors,
        pool_vectors=vectors,
        dsir_target=config.dsir_target,
    )


def _texts(rows: ArtifactRef) -> list[str]:
    path = open_store().folder(rows) / "rows.parquet"
    return texts_of(read_table(path, ["prompt", "response"]))


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


@part("map", 2, libraries=("scikit-learn", "numpy"))
def draw_map(
    draft: Draft,
    language: str,
    own: dict[str, Corpus],
    pool: ArtifactRef,
    space: ArtifactRef,
    selection: ArtifactRef,
    seed: int,
) -> None:
    """Place a bounded number of points per role in the plane, for the report: ``map.parquet``."""
    whole = open_pool(pool)
    selected = read_array(open_store().folder(selection) / "indices.npy")
    others = whole.languages != language
    others[selected] = False
    arrays = open_own(space)
    clusters = {"usage": arrays["usage_ids"], "coverage": arrays["coverage_ids"]}
    clusters["selected"] = clusters["pool"] = open_places(space).ids
    rows = {
        "usage": np.arange(len(clusters["usage"])),
        "coverage": np.arange(len(clusters["coverage"])),
        "selected": selected,
        "pool": np.flatnonzero(others),
    }
    vectors = {role: own_vectors(corpus, space) for role, corpus in own.items()}
    vectors["selected"] = vectors["pool"] = pool_vectors(whole, open_means(space))
    rng = derive_rng(seed, "map", language)
    roles, ids, parts = [], [], []
    for role, candidates in rows.items():
        size = min(_MAP_POINTS_PER_ROLE, len(candidates))
        if size == 0:
            continue
        chosen = np.sort(rng.choice(candidates, size=size, replace=False))
        roles += [role] * size
        ids.append(clusters[role][chosen])
        parts.append(vectors[role][chosen])
    points = project_2d(np.concatenate(parts), seed=derive_seed(seed, "map"))
    draft.rows = len(roles)
    table = {"role": roles, "cluster": np.concatenate(ids), "x": points[:, 0], "y": points[:, 1]}
    write_table(draft.folder / "map.parquet", pa.table(table))
