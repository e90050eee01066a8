"""Where usage exceeds coverage: the gap, and divergences between shares.

Equations (3) and (5) of the method notes. All logarithms are base 2: divergences are in bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from compass_core.errors import DataError
from compass_core.selection.shrinkage import Shares, ShrinkageRule, smoothed_shares, usage_shares

__all__ = [
    "Counts",
    "GapTable",
    "Shares",
    "count_clusters",
    "js_divergence",
    "kl_divergence",
    "measure_gap",
    "smoothed_shares",
]

Counts = NDArray[np.int64]


def measure_gap(usage_share: Shares, coverage_share: Shares) -> Shares:
    """Return how far coverage falls short of usage, equation (3): max(0, p_k − q_k).

    Examples:
        >>> measure_gap(np.array([0.75, 0.25]), np.array([0.5, 0.5]))
        array([0.25, 0.  ])
    """
    gap: Shares = np.maximum(0.0, np.asarray(usage_share) - np.asarray(coverage_share))
    return gap


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p ‖ q) in bits; infinite where q is 0 and p is not. Inputs are normalised to 1.

    Examples:
        >>> kl_divergence([1, 0], [0.5, 0.5])
        1.0
        >>> kl_divergence([0.5, 0.5], [1, 0])
        inf
    """
    first, second = _distributions(p, q)
    inside = first > 0
    if (second[inside] == 0).any():
        return float("inf")
    ratio = first[inside] / second[inside]
    return max(0.0, float(np.sum(first[inside] * np.log2(ratio))))


def js_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return the Jensen-Shannon divergence in bits, in [0, 1], equation (5).

    Examples:
        >>> js_divergence([1, 0], [0, 1])
        1.0
        >>> js_divergence([2, 2], [5, 5])
        0.0
    """
    first, second = _distributions(p, q)
    middle = (first + second) / 2
    return min(1.0, (kl_divergence(first, middle) + kl_divergence(second, middle)) / 2)


def _distributions(p: ArrayLike, q: ArrayLike) -> tuple[Shares, Shares]:
    first, second = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(
            "A divergence needs two vectors over the same clusters; "
            f"got shapes {first.shape} and {second.shape}."
        )
    if min(first.min(), second.min()) < 0 or not min(first.sum(), second.sum()) > 0:
        raise DataError("A divergence needs non-negative shares that do not all vanish.")
    return first / first.sum(), second / second.sum()


@dataclass(frozen=True)
class GapTable:
    """Usage against coverage, one entry per cluster (all arrays (K,)).

    Attributes:
        usage_count: Usage prompts e_k.
        coverage_count: Existing training examples n_k.
        usage_share: Estimated p_k: equation (1), or as `shrinkage` says.
        coverage_share: Smoothed q_k, equation (2).
        gap: max(0, p_k − q_k), equation (3).
        capacity: Pool examples c_k that may be taken.
    """

    usage_count: Counts
    coverage_count: Counts
    usage_share: Shares
    coverage_share: Shares
    gap: Shares
    capacity: Counts

    @classmethod
    def from_assignments(
        cls,
        usage_cluster_ids: NDArray[np.integer[Any]],
        coverage_cluster_ids: NDArray[np.integer[Any]],
        pool_cluster_ids: NDArray[np.integer[Any]],
        n_clusters: int,
        *,
        available: NDArray[np.bool_] | None = None,
        smoothing: float = 0.5,
        shrinkage: ShrinkageRule = "additive",
    ) -> GapTable:
        """Count the assignments and measure the gap.

        Args:
            usage_cluster_ids: (|E|,) cluster of each usage prompt.
            coverage_cluster_ids: (|D|,) cluster of each training example; may be empty.
            pool_cluster_ids: (|A|,) cluster of each pool example.
            n_clusters: K.
            available: (|A|,) which pool examples may be taken; all if None.
            smoothing: α of equations (1) and (2).
            shrinkage: how the usage shares are estimated, see `usage_shares`.

        Raises:
            DataError: there is no usage, or an id lies outside [0, K).
        """
        if len(usage_cluster_ids) == 0:
            raise DataError(
                "There are no usage prompts, so there is nothing to aim at. "
                "Point `data.usage` to a sample of what users ask."
            )
        pool = pool_cluster_ids if available is None else pool_cluster_ids[available]
        usage_count = count_clusters(usage_cluster_ids, n_clusters)
        coverage_count = count_clusters(coverage_cluster_ids, n_clusters)
        usage_share = usage_shares(usage_count, smoothing=smoothing, shrinkage=shrinkage)
        coverage_share = smoothed_shares(coverage_count, smoothing)
        return cls(
            usage_count=usage_count,
            coverage_count=coverage_count,
            usage_share=usage_share,
            coverage_share=coverage_share,
            gap=measure_gap(usage_share, coverage_share),
            capacity=count_clusters(pool, n_clusters),
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> GapTable:
        """Rebuild a gap table from `to_table`."""
        columns = table.sort_by("cluster")
        return cls(**{name: columns[name].to_numpy().copy() for name in cls.__dataclass_fields__})

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.usage_count)

    def to_table(self) -> pa.Table:
        """Return one row per cluster, ready for the manifest."""
        return pa.table(
            {
                "cluster": pa.array(np.arange(self.n_clusters), pa.int32()),
                "usage_count": pa.array(self.usage_count, pa.int64()),
                "coverage_count": pa.array(self.coverage_count, pa.int64()),
                "usage_share": pa.array(self.usage_share, pa.float64()),
                "coverage_share": pa.array(self.coverage_share, pa.float64()),
                "gap": pa.array(self.gap, pa.float64()),
                "capacity": pa.array(self.capacity, pa.int64()),
            }
        )


def count_clusters(cluster_ids: NDArray[np.integer[Any]], n_clusters: int) -> Counts:
    """Return (K,) how many of `cluster_ids` fall into each cluster.

    Raises:
        DataError: an id lies outside [0, K).
    """
    if len(cluster_ids) == 0:
        return np.zeros(n_clusters, dtype=np.int64)
    low, high = int(cluster_ids.min()), int(cluster_ids.max())
    if low < 0 or high >= n_clusters:
        raise DataError(
            f"Cluster ids run from {low} to {high}, but there are {n_clusters} clusters "
            "(0-based). The assignments come from other clusters than the table."
        )
    return np.bincount(cluster_ids, minlength=n_clusters).astype(np.int64)
