"""Names for clusters that a person can read: characteristic terms and nearest examples.

A term scores f_k · log(f_k / f) · log(1 / f): f_k is the share of the cluster's texts that hold it,
f the share of all texts. The first logarithm asks for what is special here, the second keeps the
frequent words of any language away without a stop-word list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.words import terms

_MAX_TEXTS = 200
"""Texts per cluster that are read: the nearest to its centroid, where distances are known."""
_MAX_CHARACTERS = 2_000


def label_clusters(
    cluster_ids: NDArray[np.integer[Any]],
    texts: Sequence[str],
    distances: NDArray[np.floating[Any]] | None = None,
    *,
    n_clusters: int | None = None,
    n_terms: int = 4,
) -> list[str]:
    """Return a readable label per cluster, for example ``rain · storm · weather · cloud``.

    A term counts once per text. Terms that occur in a single text are used only where a cluster
    has nothing better; of equal terms the longer one goes first, and a term that is part
    of one already chosen is skipped.

    Args:
        cluster_ids: (N,) cluster of each text.
        texts: (N,) texts.
        distances: (N,) distance to the centroid; the nearest texts speak for the cluster.
        n_clusters: K; by default the largest id + 1.
        n_terms: terms per label.

    Returns:
        (K,) labels; ``cluster 7`` where a cluster has no text with a term.
    """
    if len(cluster_ids) != len(texts):
        raise DataError(f"{len(texts)} texts came with {len(cluster_ids)} cluster ids.")
    k = n_clusters if n_clusters is not None else int(np.max(cluster_ids, initial=-1)) + 1
    members = nearest_examples(cluster_ids, distances, n_clusters=k, n_examples=_MAX_TEXTS)
    counts = [
        Counter(term for row in rows for term in set(terms(texts[row][:_MAX_CHARACTERS])))
        for rows in members
    ]
    totals: Counter[str] = Counter()
    for count in counts:
        totals.update(count)
    n_texts = sum(len(rows) for rows in members)
    return [
        " · ".join(_characteristic(count, len(rows), totals, n_texts, n_terms))
        or f"cluster {cluster}"
        for cluster, (count, rows) in enumerate(zip(counts, members, strict=True))
    ]


def nearest_examples(
    cluster_ids: NDArray[np.integer[Any]],
    distances: NDArray[np.floating[Any]] | None,
    *,
    n_clusters: int,
    n_examples: int = 3,
) -> list[list[int]]:
    """Return per cluster the rows nearest to its centroid, nearest first (first rows without)."""
    near = np.zeros(len(cluster_ids)) if distances is None else np.asarray(distances)
    order = np.lexsort((near, cluster_ids))
    bounds = np.searchsorted(np.asarray(cluster_ids)[order], np.arange(n_clusters + 1))
    return [
        order[bounds[k] : min(bounds[k + 1], bounds[k] + n_examples)].tolist()
        for k in range(n_clusters)
    ]


def _characteristic(
    count: Counter[str], n_own: int, totals: Counter[str], n_texts: int, n_terms: int
) -> list[str]:
    def rank(term: str) -> tuple[bool, float, int, str]:
        share = count[term] / n_own
        idf = math.log(n_texts / totals[term])
        score = share * (math.log(share) + idf) * idf
        return count[term] < 2, -score, -len(term), term

    chosen: list[str] = []
    for term in sorted(count, key=rank):
        if not any(term in other or other in term for other in chosen):
            chosen.append(term)
        if len(chosen) == n_terms:
            break
    return chosen
