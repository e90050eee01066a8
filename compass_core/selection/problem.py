"""What every selection strategy is given, and what it returns."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.allocation import AllocationRule
from compass_core.selection.drawing import DrawMethod, Keys, Rows, VectorSource
from compass_core.selection.gap import Counts, GapTable, count_clusters

Texts: TypeAlias = Callable[[], Iterable[Sequence[str]]]

TEXTS_PER_LANGUAGE = 1_000
"""Texts of a language that are read where a strategy compares languages."""


@dataclass(frozen=True)
class SelectionProblem:
    """One target language, one pool, and how to choose.

    What grows with the pool and is not needed by every strategy (vectors, texts) is read only when
    a strategy asks for it.

    Attributes:
        language: Target language, canonical code, for example ``swh_Latn``.
        pool_keys: (N,) `example_keys` of the pool's ids.
        pool_languages: (N,) canonical codes.
        pool_cluster_ids: (N,) cluster of each pool example.
        pool_distances: (N,) distance of each pool example to its cluster's usage or centroid.
        available: (N,) within its cluster's relevance radius.
        allowed: (N,) neither a duplicate nor a translation of usage or test rows, licence accepted.
            Every strategy respects it.
        gap: Counts, shares and gap per cluster.
        rule: How `compass` splits the budget.
        draw: How `compass` draws inside a cluster.
        language_balance: 0 (languages as they come) to 1 (every language equally often).
        similar_languages: How many source languages `similar`, `langsim` and `langrank` use.
        smoothing: α of equations (1) and (2).
        usage_texts: (|E|,) what users ask.
        coverage_texts: (|D|,) existing training data in the target language; may be empty.
        pool_texts: Call it for an iterator over the pool's texts in row order, in batches.
        usage_vectors: (|E|, d) unit norm.
        pool_vectors: (N, d) unit norm; may be memory-mapped.
        dsir_target: Which texts `dsir` wants the selection to look like.
        langrank_model: Folder of the ranker of `langrank`; None is the shipped one.
    """

    language: str
    pool_keys: Keys
    pool_languages: NDArray[Any]
    pool_cluster_ids: NDArray[np.integer[Any]]
    pool_distances: NDArray[np.floating[Any]]
    available: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    gap: GapTable
    rule: AllocationRule = "waterfill"
    draw: DrawMethod = "uniform"
    language_balance: float = 0.0
    similar_languages: int = 3
    smoothing: float = 0.5
    usage_texts: Sequence[str] = ()
    coverage_texts: Sequence[str] = ()
    pool_texts: Texts | None = None
    usage_vectors: VectorSource | None = None
    pool_vectors: VectorSource | None = None
    dsir_target: Literal["usage", "usage+coverage"] = "usage"
    langrank_model: Path | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same pool.

        Raises:
            DataError: two arrays differ in length.
        """
        names = (
            "pool_keys",
            "pool_languages",
            "pool_cluster_ids",
            "pool_distances",
            "available",
            "allowed",
            "pool_vectors",
        )
        values = {name: getattr(self, name) for name in names}
        lengths = {name: len(value) for name, value in values.items() if value is not None}
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
    def sources(self) -> dict[str, int]:
        """Candidates per source language, by code."""
        # A hash table: sorting a million codes takes longer than the whole draw.
        counts = pc.value_counts(pa.array(self.pool_languages[self.candidates]))
        found = {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
        return dict(sorted(found.items()))

    def rows_of(self, languages: Iterable[str]) -> Rows:
        """Return the candidates in any of `languages`, ascending."""
        wanted = pa.array(list(languages), pa.string())
        inside = pc.is_in(pa.array(self.pool_languages).cast(pa.string()), value_set=wanted)
        return np.flatnonzero(self.candidates & inside.to_numpy(zero_copy_only=False))

    def texts_by_language(self, limit: int = TEXTS_PER_LANGUAGE) -> dict[str, list[str]]:
        """Return up to `limit` texts of each source language: the candidates of smallest keys.

        The choice and its order depend on the ids alone. One pass over the pool's texts.

        Raises:
            DataError: the problem has no texts.
        """
        kept: dict[str, list[tuple[int, str]]] = {name: [] for name in self.sources}
        for rows, texts in self.iter_candidates():
            for row, text in zip(rows.tolist(), texts, strict=True):
                heap = kept[str(self.pool_languages[row])]
                entry = (-int(self.pool_keys[row]), text)
                if len(heap) < limit:
                    heapq.heappush(heap, entry)
                elif entry > heap[0]:
                    heapq.heapreplace(heap, entry)
        return {name: [text for _, text in sorted(h, reverse=True)] for name, h in kept.items()}

    def iter_candidates(self) -> Iterable[tuple[Rows, list[str]]]:
        """Yield batches of candidates: their row numbers, ascending, and their texts.

        Raises:
            DataError: the problem has no texts, or not one per row.
        """
        if self.pool_texts is None:
            raise DataError("This strategy reads the pool's texts, which were not passed.")
        start = 0
        for batch in self.pool_texts():
            rows = start + np.flatnonzero(self.candidates[start : start + len(batch)])
            start += len(batch)
            yield rows, [batch[row - start + len(batch)] for row in rows.tolist()]
        if start != len(self.pool_keys):
            raise DataError(f"The pool has {len(self.pool_keys)} rows but {start} texts.")

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
        details: Numbers behind the choice (plain JSON), for the manifest.
    """

    indices: Rows
    reasons: list[str]
    allocation: Counts
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
