"""Does an encoder put a text beside its translation? Measured on the parallel rows of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError

MIN_PARALLEL_ROWS = 30
"""Language pairs that share fewer translations than this say nothing about the encoder."""


def parallel_retrieval(
    parallel_keys: NDArray[np.uint64],
    languages: NDArray[Any],
    vectors: Any,
    *,
    first: str,
    max_pairs: int = 6,
    max_rows: int = 500,
) -> dict[str, float] | None:
    """Measure how well translations find each other, over the language pairs that have most.

    Pairs with the language `first` go before pairs of others. Of each pair at most `max_rows` rows
    are compared, those of the smallest keys.

    Args:
        parallel_keys: (N,) equal for translations of one item, 0 for rows without any.
        languages: (N,) language of each row.
        vectors: (N, d) unit norm; an array or anything that takes row numbers.
        first: the target language.
        max_pairs: language pairs looked at.
        max_rows: translations per pair.

    Returns:
        Means over the pairs of `translation_retrieval`, with ``n_candidates`` and ``n_pairs``; None
        where no two languages share `MIN_PARALLEL_ROWS` rows.
    """
    rows = np.flatnonzero(parallel_keys)
    if not len(rows):
        return None
    names, codes = np.unique(np.asarray(languages)[rows], return_inverse=True)
    keys = parallel_keys[rows]
    by_language: dict[str, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
    for code, name in enumerate(names.tolist()):
        own = np.flatnonzero(codes == code)
        distinct, at = np.unique(keys[own], return_index=True)
        by_language[name] = distinct, rows[own[at]]
    pairs = _largest_pairs(by_language, first, max_pairs)
    measured = []
    for left, right in pairs:
        _, at_left, at_right = np.intersect1d(
            by_language[left][0], by_language[right][0], assume_unique=True, return_indices=True
        )
        found = translation_retrieval(
            vectors[by_language[left][1][at_left[:max_rows]]],
            vectors[by_language[right][1][at_right[:max_rows]]],
        )
        measured.append(found | {"n_candidates": float(min(len(at_left), max_rows))})
    if not measured:
        return None
    means = {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
    return means | {"n_pairs": float(len(measured))}


def _largest_pairs(
    by_language: dict[str, tuple[NDArray[np.uint64], NDArray[np.int64]]], first: str, n_pairs: int
) -> list[tuple[str, str]]:
    """Return the language pairs to compare: with `first` where it has rows, else the largest."""
    largest = sorted(by_language, key=lambda name: (-len(by_language[name][0]), name))
    largest = [name for name in largest if name != first][: max(n_pairs, 8)]
    candidates = [(first, name) for name in largest] if first in by_language else []
    candidates += [(a, b) for i, a in enumerate(largest) for b in largest[i + 1 :]]
    chosen: list[tuple[str, str]] = []
    for left, right in candidates:
        shared = np.intersect1d(by_language[left][0], by_language[right][0], assume_unique=True)
        if len(shared) >= MIN_PARALLEL_ROWS:
            chosen.append((left, right))
        if len(chosen) == n_pairs:
            break
    return chosen


def translation_retrieval(
    vectors_a: NDArray[np.floating[Any]], vectors_b: NDArray[np.floating[Any]]
) -> dict[str, float]:
    """Return how well row i of one language finds its translation, row i of the other.

    Args:
        vectors_a: (N, d) unit norm.
        vectors_b: (N, d) unit norm, translations in the same order.

    Returns:
        ``retrieval_at_1`` (mean of both directions, in [0, 1]) and ``matched_minus_random`` (mean
        cosine of translations minus mean cosine of all other pairs).

    Raises:
        DataError: the shapes differ or there is no row.
    """
    if vectors_a.shape != vectors_b.shape or len(vectors_a) == 0:
        raise DataError(
            f"Translations must come in pairs; got shapes {vectors_a.shape}, {vectors_b.shape}."
        )
    scores = np.asarray(vectors_a, dtype=np.float32) @ np.asarray(vectors_b, dtype=np.float32).T
    rows = np.arange(len(scores))
    hits = (scores.argmax(axis=1) == rows).mean() + (scores.argmax(axis=0) == rows).mean()
    matched = float(np.diagonal(scores).mean())
    n = len(scores)
    others = (float(scores.sum(dtype=np.float64)) - matched * n) / max(n * (n - 1), 1)
    return {"retrieval_at_1": float(hits / 2), "matched_minus_random": matched - others}
