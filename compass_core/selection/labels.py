"""Names for clusters that a person can read: characteristic terms and nearest examples.

A term scores f_k · log(f_k / f) · log(1 / f): f_k is the share of the cluster's texts that hold it,
f the share of all texts. The first logarithm asks for what is special here, the second keeps the
frequent words of any language away without a stop-word list. Where a cluster mixes scripts each of
them has its own terms, compared with texts of the same script alone: otherwise a script that is
rare elsewhere would make all of its words look special.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.words import normalise, terms

_MAX_TEXTS = 200
"""Texts per cluster that are read: the nearest to its centroid, where distances are known."""
_MAX_CHARACTERS = 2_000
_MIN_SCRIPT_SHARE = 0.1
"""Scripts with less than this share of a cluster's texts are not described."""
_EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class ClusterDescription:
    """What a person sees of one cluster.

    Attributes:
        label: Characteristic terms, scripts apart: ``rain · storm | 雨 · 台風``.
        terms: Script → its terms, the most frequent script first; "" without languages.
        examples: Texts nearest to the centroid, cut to one line.
        example_rows: Their row numbers.
        n_texts: Texts in the cluster.
    """

    label: str
    terms: dict[str, list[str]]
    examples: list[str]
    example_rows: list[int]
    n_texts: int


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
    described = describe_clusters(
        cluster_ids, texts, distances, n_clusters=n_clusters, n_terms=n_terms, n_examples=0
    )
    return [description.label for description in described]


def describe_clusters(
    cluster_ids: NDArray[np.integer[Any]],
    texts: Sequence[str],
    distances: NDArray[np.floating[Any]] | None = None,
    languages: Sequence[str] | NDArray[np.str_] | None = None,
    *,
    n_clusters: int | None = None,
    n_terms: int = 4,
    n_examples: int = 3,
) -> list[ClusterDescription]:
    """Return label, terms per script and nearest examples of every cluster.

    Args:
        cluster_ids: (N,) cluster of each text.
        texts: (N,) texts.
        distances: (N,) distance to the centroid; the nearest texts speak for the cluster.
        languages: (N,) codes with a script (``jpn_Jpan``); without them all texts are one script.
        n_clusters: K; by default the largest id + 1.
        n_terms: terms per label; scripts share them, at least two each.
        n_examples: examples at most; equal texts count once.

    Returns:
        (K,) descriptions; the label is ``cluster 7`` where a cluster has no text with a term.

    Raises:
        DataError: the arguments have different lengths.
    """
    if len(cluster_ids) != len(texts):
        raise DataError(f"{len(texts)} texts came with {len(cluster_ids)} cluster ids.")
    if languages is not None and len(languages) != len(texts):
        raise DataError(f"{len(texts)} texts came with {len(languages)} languages.")
    k = n_clusters if n_clusters is not None else int(np.max(cluster_ids, initial=-1)) + 1
    members = nearest_examples(cluster_ids, distances, n_clusters=k, n_examples=_MAX_TEXTS)
    scripts = None if languages is None else [str(code).rpartition("_")[2] for code in languages]
    found = _terms_per_script(members, texts, scripts, n_terms)
    sizes = np.bincount(cluster_ids, minlength=k)
    return [
        _describe(cluster, found[cluster], members[cluster], texts, n_examples, int(sizes[cluster]))
        for cluster in range(k)
    ]


def _describe(
    cluster: int,
    found: dict[str, list[str]],
    rows: list[int],
    texts: Sequence[str],
    n_examples: int,
    n_texts: int,
) -> ClusterDescription:
    label = " | ".join(" · ".join(words) for words in found.values())
    examples = _different(rows, texts, n_examples)
    return ClusterDescription(
        label=label or f"cluster {cluster}",
        terms=found,
        examples=[_one_line(texts[row]) for row in examples],
        example_rows=examples,
        n_texts=n_texts,
    )


def _terms_per_script(
    members: list[list[int]], texts: Sequence[str], scripts: Sequence[str] | None, n_terms: int
) -> list[dict[str, list[str]]]:
    """Return per cluster script → terms, the script with most texts first."""
    sizes: list[Counter[str]] = []
    counts: list[dict[str, Counter[str]]] = []
    totals: dict[str, Counter[str]] = {}
    n_texts: Counter[str] = Counter()
    for rows in members:
        own: dict[str, Counter[str]] = {}
        for row in rows:
            words = set(terms(texts[row][:_MAX_CHARACTERS]))
            own.setdefault(scripts[row] if scripts else "", Counter()).update(words)
        sizes.append(Counter(scripts[row] if scripts else "" for row in rows))
        counts.append(own)
        n_texts.update(sizes[-1])
        for script, count in own.items():
            totals.setdefault(script, Counter()).update(count)
    found = []
    for own, size in zip(counts, sizes, strict=True):
        shown = [s for s in sorted(size, key=lambda s: (-size[s], s)) if own[s]]
        shown = [s for s in shown if size[s] >= _MIN_SCRIPT_SHARE * size.total()] or shown[:1]
        each = n_terms if len(shown) < 2 else max(2, n_terms // len(shown))
        found.append(
            {s: _characteristic(own[s], size[s], totals[s], n_texts[s], each) for s in shown}
        )
    return found


def _different(rows: list[int], texts: Sequence[str], most: int) -> list[int]:
    """Return the first `most` rows whose texts differ."""
    chosen: dict[str, int] = {}
    for row in rows:
        if len(chosen) >= most:
            break
        text = normalise(texts[row])
        if text:
            chosen.setdefault(text, row)
    return list(chosen.values())


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _EXAMPLE_CHARACTERS:
        return line
    return line[: _EXAMPLE_CHARACTERS - 1].rstrip() + "…"


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
