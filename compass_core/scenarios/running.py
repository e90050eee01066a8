"""One case through the product's own functions: encoder, space, gap, strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.config import ClusteringConfig, SelectionConfig
from compass_core.embedding import load_encoder
from compass_core.embedding_batches import encode_texts
from compass_core.errors import DataError
from compass_core.ngram_encoder import fit_ngram_encoder
from compass_core.scenarios.cases import ALL_BUT_TARGET, Case
from compass_core.scenarios.data import DataFolder, Row, encoder_rows, known_language
from compass_core.seeding import derive_rng
from compass_core.selection.centring import CentredVectors
from compass_core.selection.drawing import Keys, example_keys
from compass_core.selection.gap import GapTable
from compass_core.selection.problem import SelectionProblem
from compass_core.selection.quality import topic_lifts
from compass_core.selection.space import PlacedSpace, Vectors, build_space, needs_pool, take_off
from compass_core.selection.strategies import select_examples

FloatArray = NDArray[np.float32]

CLUSTERING = ClusteringConfig(n_clusters=(200,), fit_on="usage+coverage+pool", script_guard="off")
"""An encoder fitted on a few hundred rows blurs topics: fine clusters, fitted on the pool as well,
hold them apart better than the few that a hundred usage prompts would suggest."""

ROWS_PER_CLUSTER = 15
"""A small case gets fewer clusters: this many rows of the fit for each."""

SELECTION = SelectionConfig(rule="gap")
"""The budget goes where usage exceeds coverage. `waterfill`, which evens out the whole mix, spends
part of it on clusters that are nearly covered: nearer to the usage, but a smaller lift."""


@dataclass(frozen=True)
class PreparedCase:
    """A case with its rows and their vectors.

    Attributes:
        case: The case.
        target: Canonical language.
        usage: Usage rows.
        existing: Rows that are covered.
        pool: Rows that may be drawn.
        vectors: Unit vectors of usage, existing and pool.
        encoder_rows: What the encoder was fitted on.
    """

    case: Case
    target: str
    usage: list[Row]
    existing: list[Row]
    pool: list[Row]
    vectors: dict[str, FloatArray] = field(repr=False)
    encoder_rows: list[str]

    @cached_property
    def languages(self) -> NDArray[np.str_]:
        """(A,) language of each pool row."""
        return np.array([row.language for row in self.pool])

    @cached_property
    def keys(self) -> Keys:
        """(A,) keys of the pool's ids."""
        return example_keys(row.id for row in self.pool)

    @cached_property
    def topics(self) -> NDArray[np.str_]:
        """(A,) topic of each pool row."""
        return np.array([row.topic for row in self.pool])


@dataclass(frozen=True)
class Outcome:
    """What one strategy selected with one seed.

    Attributes:
        name: Case.
        seed: Seed of clusters and draw.
        strategy: Strategy.
        selected_ids: Ids of the selected rows, ascending by row.
        lift_gap: Mean over the planted topics of share in the selection / share in the pool.
        lift_other: The same over the other topics; NaN where there are none.
        n_clusters: Clusters used.
    """

    name: str
    seed: int
    strategy: str
    selected_ids: list[str]
    lift_gap: float
    lift_other: float
    n_clusters: int

    def to_dict(self) -> dict[str, Any]:
        """Return what the results file holds, as plain JSON values."""
        names = ("name", "seed", "strategy", "selected_ids")
        return {name: getattr(self, name) for name in names}

    @property
    def holds(self) -> bool:
        """Whether the planted topics are over-represented, and more than the others."""
        return self.lift_gap > 1 and not self.lift_gap <= self.lift_other


def prepare_case(case: Case, data: DataFolder, work: Path, *, seed: int = 0) -> PreparedCase:
    """Gather a case's rows, fit its encoder and embed them.

    Args:
        case: A selection case.
        data: The data folder.
        work: Folder for the encoder.
        seed: Of the encoder's choice of rows.

    Raises:
        DataError: rows are missing, the pool is empty, or too few parallel rows are free.
    """
    assert case.pool is not None
    target = known_language(case.target_language)
    usage = data.find(case.files, case.usage_ids, "usage_ids")
    existing = data.find(case.files, case.existing_ids, "existing_ids")
    pool = _pool(case, data, target, usage + existing)
    used = {row.parallel_id for row in usage + existing} - {""}
    languages = {row.language for row in pool} | {target}
    names = tuple(dict.fromkeys((*case.files, case.pool.file)))
    parallel, told = encoder_rows(data, names, used=used, languages=languages)
    folder = fit_ngram_encoder(parallel, work / "encoder", seed=seed)
    encoder = load_encoder(str(folder), device="cpu")
    vectors = {
        role: encode_texts(encoder, [row.text for row in rows])
        for role, rows in (("usage", usage), ("existing", existing), ("pool", pool))
    }
    return PreparedCase(case, target, usage, existing, pool, vectors, told)


def select_case(
    prepared: PreparedCase,
    strategy: str,
    seed: int,
    *,
    clustering: ClusteringConfig = CLUSTERING,
    selection: SelectionConfig = SELECTION,
) -> Outcome:
    """Select with one strategy and one seed, as the product does.

    Raises:
        InsufficientPoolError: the pool cannot fill the budget.
    """
    problem, space = make_problem(prepared, seed, clustering=clustering, selection=selection)
    rng = derive_rng(seed, "draw", prepared.target)
    chosen = select_examples(strategy, problem, prepared.case.budget, rng)
    lifts = topic_lifts(prepared.topics, chosen.indices)
    planted = prepared.case.gap_topics
    return Outcome(
        name=prepared.case.name,
        seed=seed,
        strategy=strategy,
        selected_ids=[prepared.pool[row].id for row in chosen.indices],
        lift_gap=_mean([lift for topic, lift in lifts.items() if topic in planted]),
        lift_other=_mean([lift for topic, lift in lifts.items() if topic not in planted]),
        n_clusters=space.n_clusters,
    )


def make_problem(
    prepared: PreparedCase,
    seed: int,
    *,
    clustering: ClusteringConfig = CLUSTERING,
    selection: SelectionConfig = SELECTION,
) -> tuple[SelectionProblem, PlacedSpace]:
    """Return the selection problem of a case, and the space it was measured in."""
    vectors = prepared.vectors
    languages = prepared.languages
    space = build_space(
        prepared.target,
        Vectors(
            usage=vectors["usage"],
            coverage=vectors["existing"],
            pool=vectors["pool"],
            pool_languages=prepared.languages,
            pool_keys=prepared.keys,
        ),
        _affordable(clustering, prepared),
        centre=True,
        seed=seed,
    )
    available = space.pool_distances <= space.radii[space.pool_ids]
    gap = GapTable.from_assignments(
        space.usage_ids,
        space.coverage_ids,
        space.pool_ids,
        space.n_clusters,
        available=available,
        smoothing=selection.smoothing,
        shrinkage=selection.shrinkage,
    )
    problem = SelectionProblem(
        language=prepared.target,
        pool_keys=prepared.keys,
        pool_languages=prepared.languages,
        pool_cluster_ids=space.pool_ids,
        pool_distances=space.pool_distances,
        available=available,
        allowed=np.ones(len(prepared.pool), dtype=np.bool_),
        gap=gap,
        rule=selection.rule,
        draw=selection.draw,
        language_balance=selection.language_balance,
        similar_languages=selection.similar_languages,
        smoothing=selection.smoothing,
        usage_texts=[row.text for row in prepared.usage],
        coverage_texts=[row.text for row in prepared.existing],
        pool_texts=lambda: [[row.text for row in prepared.pool]],
        usage_vectors=take_off(vectors["usage"], space.means[prepared.target]),
        pool_vectors=CentredVectors(vectors["pool"], languages, space.means),
    )
    return problem, space


def _affordable(clustering: ClusteringConfig, prepared: PreparedCase) -> ClusteringConfig:
    """Return `clustering` with no more clusters than a small case can fill."""
    n_rows = len(prepared.usage) + len(prepared.existing)
    if needs_pool(clustering, len(prepared.existing)):
        n_rows += min(len(prepared.pool), clustering.pool_fit_sample)
    most = max(n_rows // ROWS_PER_CLUSTER, 2)
    capped = tuple(dict.fromkeys(min(k, most) for k in clustering.n_clusters))
    return clustering.model_copy(update={"n_clusters": capped})


def _pool(case: Case, data: DataFolder, target: str, own: Sequence[Row]) -> list[Row]:
    """Return the rows that may be drawn: by the filter, no translation and no copy of usage."""
    wanted = case.pool
    assert wanted is not None
    chosen: set[str] | None = None
    if isinstance(wanted.languages, list):
        chosen = {known_language(code) for code in wanted.languages}
    elif wanted.languages != ALL_BUT_TARGET:
        chosen = {known_language(wanted.languages)}
    usage = {row.parallel_id for row in own if row.id in set(case.usage_ids)} - {""}
    ids = {row.id for row in own}
    rows = [
        row
        for row in data.rows(wanted.file)
        if row.language != target
        and (chosen is None or row.language in chosen)
        and (not wanted.split or row.split == wanted.split)
        and row.parallel_id not in usage
        and row.id not in ids
    ]
    if not rows:
        raise DataError(
            f"The case {case.name} has an empty pool: no row of {wanted.file} with split "
            f"{wanted.split or 'any'} in {wanted.languages} is left.",
            code="E51",
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
