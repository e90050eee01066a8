"""How well a selection serves usage that no strategy has seen.

A `Yardstick` holds reference clusters and held-out usage. Its clusters are fitted on rows that are
neither the usage shown to a strategy nor rows a strategy may take: judged in the clusters it was
made in, a selection that allocates over clusters would look better than it is. What is judged is
the training mix (coverage and selection together), and the selection alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.seeding import derive_rng, derive_seed
from compass_core.selection.assignment import assign_clusters
from compass_core.selection.clustering import fit_clusters
from compass_core.selection.gap import count_clusters, js_divergence, kl_divergence

Vectors = NDArray[np.float32]

SMOOTHING = 0.5
"""Pseudo-count per cluster under the second argument of KL, so that it is finite."""

MMD_ROWS = 4_000
"""More rows than this are sampled for the MMD, whose cost grows with their square."""

_BANDWIDTH_ROWS = 1_000
_BLOCK = 1_024


@dataclass(frozen=True)
class Yardstick:
    """Held-out usage, and the clusters in which selections are compared with it.

    Attributes:
        centroids: (K, d) reference clusters, unit norm.
        usage: (U, d) held-out usage, unit norm.
        usage_count: (K,) held-out usage per reference cluster.
        bandwidth: σ of the MMD's kernel.
        seed: Of the samples that the MMD takes of many rows.
    """

    centroids: Vectors
    usage: Vectors
    usage_count: NDArray[np.int64]
    bandwidth: float
    seed: int

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.centroids)


@dataclass(frozen=True, slots=True)
class Match:
    """How far some rows are from held-out usage; NaN throughout where there are no rows.

    Attributes:
        js: Jensen-Shannon divergence of the cluster shares, bits, in [0, 1].
        kl: KL(held-out usage ‖ rows) in bits, the rows' counts smoothed by `SMOOTHING`.
        mmd: Unbiased squared MMD, see `squared_mmd`; NaN with fewer than two rows.
    """

    js: float
    kl: float
    mmd: float


@dataclass(frozen=True, slots=True)
class Quality:
    """One selection, measured.

    Attributes:
        n_selected: Rows selected.
        mix: Coverage and selection together against held-out usage.
        selection: The selection alone.
        language_entropy: Entropy of its source languages, bits; NaN without rows.
        largest_language: Share of its most frequent source language; NaN without rows.
    """

    n_selected: int
    mix: Match
    selection: Match
    language_entropy: float
    largest_language: float

    def to_dict(self) -> dict[str, Any]:
        """Return flat plain values, parts of a match as ``mix_js`` and so on."""
        values = asdict(self)
        for part in ("mix", "selection"):
            values |= {f"{part}_{name}": value for name, value in values.pop(part).items()}
        return values


def make_yardstick(reference: Vectors, usage: Vectors, *, n_clusters: int, seed: int) -> Yardstick:
    """Fit reference clusters and place held-out usage in them.

    Args:
        reference: (R, d) unit norm; neither usage that was shown to a strategy nor selectable.
        usage: (U, d) unit norm, held-out usage; U >= 1.
        n_clusters: K; about a tenth of U keeps the noise of the shares small.
        seed: Of the clusters and of the MMD's samples.

    Raises:
        DataError: no usage, or rows that are not unit vectors of one dimension.
    """
    if len(usage) == 0:
        raise DataError("Quality needs held-out usage, and there are 0 rows. Hold some back.")
    clusters = fit_clusters(
        reference, n_clusters=(n_clusters,), seed=derive_seed(seed, "yardstick") % 2**31
    )
    ids, _ = assign_clusters(usage, clusters.centroids)
    return Yardstick(
        centroids=clusters.centroids,
        usage=usage,
        usage_count=count_clusters(ids, clusters.n_clusters),
        bandwidth=median_distance(_sample(reference, _BANDWIDTH_ROWS, seed)),
        seed=seed,
    )


def measure_quality(
    yardstick: Yardstick, selected: Vectors, languages: NDArray[Any], coverage: Vectors
) -> Quality:
    """Compare a selection with held-out usage.

    Args:
        yardstick: From `make_yardstick`.
        selected: (B, d) vectors of the selected rows; B may be 0.
        languages: (B,) their languages.
        coverage: (D, d) vectors of what is covered already; D may be 0.

    Raises:
        DataError: B differs between `selected` and `languages`, or rows are not unit vectors.
    """
    if len(selected) != len(languages):
        raise DataError(
            f"{len(selected)} selected rows have {len(languages)} languages. Pass one for each."
        )
    entropy, largest = language_mix(languages)
    return Quality(
        n_selected=len(selected),
        mix=match_usage(yardstick, np.concatenate([coverage, selected])),
        selection=match_usage(yardstick, selected),
        language_entropy=entropy,
        largest_language=largest,
    )


def match_usage(yardstick: Yardstick, rows: Vectors) -> Match:
    """Return how far `rows`, (N, d) unit norm, are from held-out usage."""
    if len(rows) == 0:
        return Match(float("nan"), float("nan"), float("nan"))
    ids, _ = assign_clusters(rows, yardstick.centroids)
    counts = count_clusters(ids, yardstick.n_clusters)
    usage = yardstick.usage_count
    sample = _sample(rows, MMD_ROWS, yardstick.seed)
    return Match(
        js=js_divergence(usage, counts),
        kl=kl_divergence(usage, counts + SMOOTHING),
        mmd=squared_mmd(sample, yardstick.usage, yardstick.bandwidth),
    )


def squared_mmd(first: Vectors, second: Vectors, bandwidth: float) -> float:
    """Return the unbiased estimate of MMD² with the kernel exp(−‖x − y‖² / 2σ²).

    The mean kernel over pairs of different rows inside each sample, added, less twice the mean over
    pairs across: zero in expectation where both are drawn alike, and then as often below zero.
    Source: Gretton et al. 2012, equation (3).

    Args:
        first: (N, d) unit norm.
        second: (M, d) unit norm.
        bandwidth: σ > 0.

    Returns:
        MMD², at most 2; NaN where a sample has fewer than two rows.

    Examples:
        >>> x, y = np.eye(2, dtype="f4")[[0, 0]], np.eye(2, dtype="f4")[[1, 1]]
        >>> round(squared_mmd(x, y, 1.0), 4)  # 1 + 1 - 2/e
        1.2642
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    # A row and itself contribute exactly 1.
    inside = (_kernel_sum(first, first, bandwidth) - n) / (n * (n - 1))
    other = (_kernel_sum(second, second, bandwidth) - m) / (m * (m - 1))
    return inside + other - 2 * _kernel_sum(first, second, bandwidth) / (n * m)


def median_distance(rows: Vectors) -> float:
    """Return the median Euclidean distance between different rows of (N, d) unit vectors.

    Examples:
        >>> round(median_distance(np.eye(3, dtype="f4")), 6)
        1.414214
    """
    upper = np.triu_indices(len(rows), 1)
    cosines = np.asarray(rows @ rows.T, dtype=np.float64)[upper]
    distance = float(np.sqrt(np.maximum(2 - 2 * np.median(cosines), 0))) if len(cosines) else 0.0
    return distance or 1.0


def language_mix(languages: NDArray[Any]) -> tuple[float, float]:
    """Return the entropy of languages in bits, and the share of the most frequent one.

    NaN for both where there are no rows.

    Examples:
        >>> language_mix(np.array(["swh_Latn", "swh_Latn", "hau_Latn", "yor_Latn"]))
        (1.5, 0.5)
    """
    if len(languages) == 0:
        return float("nan"), float("nan")
    counts = np.unique(languages, return_counts=True)[1]
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum())), float(shares.max())


def topic_lifts(topics: NDArray[np.str_], selected: NDArray[np.int64]) -> dict[str, float]:
    """Return per topic its share among the selected rows over its share in the pool.

    Rows without a topic count as rows, but are no topic. 0 throughout where nothing is selected.

    Args:
        topics: (A,) topic of each pool row.
        selected: (B,) rows of the pool.

    Examples:
        >>> topic_lifts(np.array(["a", "a", "b", "b"]), np.array([0, 1]))
        {'a': 2.0, 'b': 0.0}
    """
    names, codes = np.unique(topics, return_inverse=True)
    named = names != ""
    pool = np.bincount(codes, minlength=len(names)).astype(np.float64)
    taken = np.bincount(codes[selected], minlength=len(names)).astype(np.float64)
    lifts = (taken / max(taken.sum(), 1)) / (pool / pool.sum())
    return {str(n): float(x) for n, x, keep in zip(names, lifts, named, strict=True) if keep}


def _kernel_sum(first: Vectors, second: Vectors, bandwidth: float) -> float:
    """Return the sum of the kernel over all pairs; of unit vectors, ‖x − y‖² = 2 − 2 x·y."""
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        cosines = first[start : start + _BLOCK] @ second.T
        total += float(np.exp((cosines - 1) / np.float32(bandwidth**2)).sum(dtype=np.float64))
    return total


def _sample(rows: Vectors, limit: int, seed: int) -> Vectors:
    if len(rows) <= limit:
        return rows
    chosen = derive_rng(seed, "quality-rows").choice(len(rows), limit, replace=False)
    return rows[np.sort(chosen)]
