"""What every selection strategy is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.allocation import AllocationRule
from compass_core.selection.drawing import DrawMethod, Keys, example_keys
from compass_core.selection.gap import Counts, GapTable, count_clusters


@dataclass(frozen=True)
class SelectionProblem:
    """One target language, one pool, and how to choose.

    Attributes:
        language: Target language, canonical code, for example ``swh_Latn``.
        pool_ids: (N,) ids, unique.
        pool_languages: (N,) canonical codes.
        pool_cluster_ids: (N,) cluster of each pool example.
        pool_distances: (N,) distance of each pool example to its cluster's usage or centroid.
        available: (N,) within its cluster's relevance radius.
        allowed: (N,) neither a duplicate nor a translation of usage or test rows, licence accepted.
            Every strategy respects it.
        gap: Counts, shares and gap per cluster.
        language_similarity: Similarity of the target to each pool language, in [0, 1].
        rule: How `compass` splits the budget.
        draw: How `compass` draws inside a cluster.
        language_balance: 0 (languages as they come) to 1 (every language equally often).
        similar_languages: How many source languages `similar` uses.
        smoothing: α of equations (1) and (2).
        pool_vectors: (N, d) unit norm, needed by ``draw="diverse"``; may be memory-mapped.
        pool_keys: (N,) `example_keys` of the ids, where they are known already.
    """

    language: str
    pool_ids: Sequence[str] | NDArray[np.str_]
    pool_languages: NDArray[Any]
    pool_cluster_ids: NDArray[np.integer[Any]]
    pool_distances: NDArray[np.floating[Any]]
    available: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    gap: GapTable
    language_similarity: Mapping[str, float] = field(default_factory=dict)
    rule: AllocationRule = "waterfill"
    draw: DrawMethod = "uniform"
    language_balance: float = 0.0
    similar_languages: int = 3
    smoothing: float = 0.5
    pool_vectors: NDArray[np.floating[Any]] | None = None
    pool_keys: Keys | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same pool.

        Raises:
            DataError: two arrays differ in length.
        """
        lengths = {
            name: len(getattr(self, name))
            for name in (
                "pool_ids",
                "pool_languages",
                "pool_cluster_ids",
                "pool_distances",
                "available",
                "allowed",
            )
        }
        if len(set(lengths.values())) > 1:
            raise DataError(f"The pool's arrays differ in length: {lengths}.")

    @cached_property
    def candidates(self) -> NDArray[np.bool_]:
        """(N,) what any strategy may take: allowed, and not in the target language."""
        mask: NDArray[np.bool_] = self.allowed & (self.pool_languages != self.language)
        return mask

    @cached_property
    def relevant(self) -> NDArray[np.bool_]:
        """(N,) candidates within their cluster's relevance radius."""
        mask: NDArray[np.bool_] = self.candidates & self.available
        return mask

    @cached_property
    def keys(self) -> Keys:
        """(N,) 64-bit keys of the ids."""
        return example_keys(self.pool_ids) if self.pool_keys is None else self.pool_keys

    def count_by_cluster(self, rows: NDArray[Any]) -> Counts:
        """Return (K,) how many of `rows` (numbers or mask) lie in each cluster."""
        return count_clusters(self.pool_cluster_ids[rows], self.gap.n_clusters)


@dataclass(frozen=True)
class Selection:
    """What a strategy chose.

    Attributes:
        indices: (B,) rows of the pool, ascending.
        reasons: One short reason per index, for people.
        allocation: (K,) examples taken from each cluster.
        notes: What a reader should know about the whole selection.
    """

    indices: NDArray[np.int64]
    reasons: list[str]
    allocation: Counts
    notes: tuple[str, ...] = ()
