"""What two groups of prompts would look like if nothing but chance told them apart.

The units of both groups (prompts, or users with all their prompts) are pooled and split anew at
random, each group keeping its number of units. `split_statistics` measures a split; its law over
random splits is the null hypothesis of the drift test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.gap import Counts, count_clusters

Floats = NDArray[np.float64]

MAX_DRAWN = 4_000_000
"""Units drawn at a time; bounds the memory of the splits."""

MAX_SPLITS = 1_000
"""Splits measured at a time; bounds the memory of their counts."""

COUNT_METHOD_DRAWS = 7
"""Shuffling so many prompts costs about as much as one cluster's hypergeometric number."""

DIGITS = 12
"""Decimals that are compared: equal splits must tie whatever order their terms were added in."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Prompts of the current group in R splits.

    Attributes:
        counts: (R, K) prompts in each cluster.
        novel: (R,) prompts outside every radius.
    """

    counts: Counts
    novel: Counts


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Measures of R splits.

    Attributes:
        score: (R,) Jensen-Shannon divergence of the groups' shares in bits, equation (5).
        change: (R, K) standardised change of each cluster's share.
        novelty: (R,) standardised change of the share outside every radius.
        largest: (R,) largest absolute value of `change` and `novelty`.
    """

    score: Floats
    change: Floats
    novelty: Floats
    largest: Floats


class Pool(Protocol):
    """Both groups together, and how they can be split.

    Attributes:
        total: (K,) prompts in each cluster.
        total_novel: Prompts outside every radius.
        spread: (K + 1,) standard deviation of each cluster's (and the novel) deviation from its
            pooled share under random splits, in prompts.
    """

    @property
    def total(self) -> Counts: ...  # noqa: D102
    @property
    def total_novel(self) -> int: ...  # noqa: D102
    @property
    def spread(self) -> Floats: ...  # noqa: D102
    def observed(self) -> Splits: ...  # noqa: D102
    def split(self, rng: np.random.Generator, n_splits: int) -> Splits: ...  # noqa: D102
    @property
    def splits_at_a_time(self) -> int: ...  # noqa: D102


def split_statistics(pool: Pool, splits: Splits) -> SplitStatistics:
    """Measure splits of a pool.

    With a_k prompts of the current group in cluster k, a = Σ a_k, and c_k of c prompts in the pool,
    the change of cluster k is (a_k − a·c_k/c) / sd_k, where sd_k is exact over all splits: the
    variance of a sum of n of U units drawn without replacement, n(U−n)/(U(U−1))·Σ_u e_u², with
    e_u = x_uk − s_u·c_k/c for a unit with s_u prompts. The novel share is one more such column.
    """
    total, spread = pool.total, pool.spread
    size = splits.counts.sum(axis=1, dtype=np.float64)
    share = np.append(total, pool.total_novel) / total.sum()
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    change = splits.counts.astype(np.float64)
    change -= np.outer(size, share[:-1])
    change *= scale[:-1]
    novelty = np.round((splits.novel - size * share[-1]) * scale[-1], DIGITS)
    largest = np.maximum(change.max(axis=1), -change.min(axis=1))
    return SplitStatistics(
        score=js_of_splits(splits.counts, total),
        change=change,
        novelty=novelty,
        largest=np.maximum(np.round(largest, DIGITS), np.abs(novelty)),
    )


def js_of_splits(counts: Counts, total: Counts) -> Floats:
    """Return (R,) the Jensen-Shannon divergence in bits, equation (5), of splits of `total`.

    With p and q the shares of the groups, s = p + q and h the binary entropy in bits, it is
    1 − ½ Σ_k s_k h(p_k/s_k): two logarithms for each cluster instead of three.

    Args:
        counts: (R, K) prompts of one group.
        total: (K,) prompts of both.

    Examples:
        >>> js_of_splits(np.array([[2, 0], [1, 1]]), np.array([2, 2]))
        array([1., 0.])
    """
    size = counts.sum(axis=1, dtype=np.float64)
    n_cells = int(total.sum()) + len(total)
    if n_cells < counts.size and (size == size[0]).all():
        # Every value that a cluster's part can take, once: cheaper than every split's own.
        cluster = np.repeat(np.arange(len(total)), total + 1)
        first_cell = np.cumsum(total + 1) - (total + 1)
        values = np.arange(n_cells) - first_cell[cluster]
        parts = _js_parts(values, total[cluster], size[0], total.sum())
        score = parts[counts + first_cell].sum(axis=1)
    else:
        score = _js_parts(counts, total, size[:, None], total.sum()).sum(axis=1)
    bounded: Floats = np.clip(np.round(1.0 + score / 2, DIGITS), 0.0, 1.0)
    return bounded


def _js_parts(counts: Counts, total: Counts, size: Any, n_prompts: int) -> Floats:
    """Return −s·h(p/s) of each cluster and split; 0 for an empty cluster."""
    first = counts / size
    both = (total - counts) / (n_prompts - size)
    both += first
    first /= np.where(both > 0, both, 1.0)
    entropy = _times_log2(first)
    entropy += _times_log2(1.0 - first)
    entropy *= both
    return entropy


def _times_log2(values: Floats) -> Floats:
    """Return x·log2(x), 0 at 0."""
    logs = np.log2(np.maximum(values, np.finfo(np.float64).tiny))
    logs *= values
    return logs


def split_in_blocks(
    pool: Pool, rng: np.random.Generator, n_splits: int
) -> Iterator[SplitStatistics]:
    """Yield the statistics of `n_splits` random splits, a bounded number at a time."""
    done = 0
    while done < n_splits:
        block = min(pool.splits_at_a_time, n_splits - done)
        yield split_statistics(pool, pool.split(rng, block))
        done += block


@dataclass(frozen=True)
class PooledPrompts:
    """Prompts that are units of their own: only counts matter, and they are drawn directly.

    Attributes:
        current_inside: (K,) prompts of the current group inside their cluster's radius.
        current_outside: (K,) the same outside every radius.
        inside: (K,) prompts of both groups inside their cluster's radius.
        outside: (K,) the same outside every radius.
    """

    current_inside: Counts
    current_outside: Counts
    inside: Counts
    outside: Counts

    @property
    def total(self) -> Counts:
        """(K,) prompts in each cluster."""
        return self.inside + self.outside

    @property
    def total_novel(self) -> int:
        """Prompts outside every radius."""
        return int(self.outside.sum())

    @property
    def n_current(self) -> int:
        """Prompts of the current group."""
        return int(self.current_inside.sum() + self.current_outside.sum())

    @property
    def spread(self) -> Floats:
        """(K + 1,) standard deviations of the hypergeometric law."""
        columns = np.append(self.total, self.total_novel)
        size = int(self.total.sum())
        squares = columns * (1.0 - columns / size)
        return _deviation(squares, self.n_current, size)

    @property
    def splits_at_a_time(self) -> int:
        """Splits whose counts are held at a time."""
        return MAX_SPLITS

    def observed(self) -> Splits:
        """Return the split as it is."""
        counts = self.current_inside + self.current_outside
        return Splits(counts[None, :], np.array([self.current_outside.sum()]))

    def split(self, rng: np.random.Generator, n_splits: int) -> Splits:
        """Draw splits: first how many prompts outside every radius, then the clusters of each."""
        size, n_current = int(self.total.sum()), self.n_current
        n_drawn = min(n_current, size - n_current)
        novel = np.sort(
            rng.hypergeometric(self.total_novel, size - self.total_novel, n_drawn, n_splits)
        )
        values, repeats = np.unique(novel, return_counts=True)
        order = np.argsort(-self.total, kind="stable")  # large clusters first: fewer rejections
        inside, outside = self.inside[order], self.outside[order]
        counts = np.concatenate(
            [
                _draw_counts(inside, n_drawn - value, n, rng) + _draw_counts(outside, value, n, rng)
                for value, n in zip(values.tolist(), repeats.tolist(), strict=True)
            ]
        )[:, np.argsort(order)]
        if n_drawn != n_current:
            return Splits(self.total - counts, self.total_novel - novel)
        return Splits(counts, novel)


def _draw_counts(colours: Counts, n_drawn: int, n_splits: int, rng: np.random.Generator) -> Counts:
    """Draw from the multivariate hypergeometric law, by whichever method costs less."""
    few = n_drawn <= COUNT_METHOD_DRAWS * np.count_nonzero(colours)
    method: Any = "count" if few else "marginals"
    counts: Counts = rng.multivariate_hypergeometric(colours, n_drawn, n_splits, method=method)
    return counts


@dataclass(frozen=True)
class PooledUnits:
    """Users (or sessions) with all their prompts; whole units change sides.

    Attributes:
        prompts: (U, K + 1) prompts of each unit in each cluster, and outside every radius; the
            current group's units come first.
        n_current: Units of the current group.
    """

    prompts: NDArray[np.float32] = field(repr=False)
    n_current: int

    @property
    def total(self) -> Counts:
        """(K,) prompts in each cluster."""
        total: Counts = self.prompts[:, :-1].sum(axis=0, dtype=np.int64)
        return total

    @property
    def total_novel(self) -> int:
        """Prompts outside every radius."""
        return int(self.prompts[:, -1].sum(dtype=np.int64))

    @property
    def spread(self) -> Floats:
        """(K + 1,) standard deviations of sums over units drawn without replacement."""
        share = np.append(self.total, self.total_novel) / self.total.sum()
        sizes = self.prompts[:, :-1].sum(axis=1, dtype=np.float64)
        own = np.einsum("uk,uk->k", self.prompts, self.prompts, dtype=np.float64)
        squares = own - 2 * share * (sizes @ self.prompts) + share**2 * (sizes @ sizes)
        return _deviation(np.maximum(squares, 0.0), self.n_current, len(self.prompts))

    @property
    def splits_at_a_time(self) -> int:
        """Splits whose units are held at a time."""
        return max(1, min(MAX_SPLITS, MAX_DRAWN // max(self._n_drawn, 1)))

    @property
    def _n_drawn(self) -> int:
        """Units of the smaller group: the other one is what is left."""
        return min(self.n_current, len(self.prompts) - self.n_current)

    def observed(self) -> Splits:
        """Return the split as it is."""
        own: Counts = self.prompts[: self.n_current].sum(axis=0, dtype=np.int64)
        return Splits(own[None, :-1], own[-1:])

    def split(self, rng: np.random.Generator, n_splits: int) -> Splits:
        """Draw the units of the smaller group and add up their prompts."""
        from scipy.sparse import csr_matrix

        n_units, n_drawn = len(self.prompts), self._n_drawn
        drawn = np.concatenate(
            [rng.choice(n_units, n_drawn, replace=False, shuffle=False) for _ in range(n_splits)]
        )
        rows = np.arange(n_splits + 1) * n_drawn
        members = csr_matrix(
            (np.ones(len(drawn), np.float32), drawn, rows), shape=(n_splits, n_units)
        )
        # Sums of whole numbers below 2^24 are exact in float32, in whatever order they are added.
        counts: Counts = np.asarray(members @ self.prompts).astype(np.int64)
        if n_drawn != self.n_current:
            counts = np.append(self.total, self.total_novel) - counts
        return Splits(counts[:, :-1], counts[:, -1])


def pool_prompts(
    reference: tuple[NDArray[Any], NDArray[np.bool_]],
    current: tuple[NDArray[Any], NDArray[np.bool_]],
    n_clusters: int,
) -> PooledPrompts:
    """Pool two groups of prompts, each given as cluster ids (n,) and outside (n,).

    Raises:
        DataError: a cluster id is outside [0, n_clusters).
    """
    (own_in, own_out), (other_in, other_out) = (
        (count_clusters(ids[~outside], n_clusters), count_clusters(ids[outside], n_clusters))
        for ids, outside in (current, reference)
    )
    return PooledPrompts(own_in, own_out, own_in + other_in, own_out + other_out)


def unit_counts(
    cluster_ids: NDArray[Any], outside: NDArray[np.bool_], units: NDArray[Any], n_clusters: int
) -> NDArray[np.float32]:
    """Return (U, K + 1) prompts of each unit in each cluster and outside, by ascending unit.

    Examples:
        >>> ids, outside = np.array([0, 1, 1]), np.array([False, True, False])
        >>> unit_counts(ids, outside, np.array([7, 7, 3]), 2)
        array([[0., 1., 0.],
               [1., 1., 1.]], dtype=float32)
    """
    count_clusters(cluster_ids, n_clusters)
    found, row = np.unique(units, return_inverse=True)
    width = n_clusters + 1
    cells = np.concatenate([row * width + cluster_ids, row[outside] * width + n_clusters])
    counts = np.bincount(cells, minlength=len(found) * width)
    return counts.reshape(len(found), width).astype(np.float32)


def _deviation(squares: Floats, n_drawn: int, n_units: int) -> Floats:
    """Return the standard deviation of a sum of `n_drawn` of `n_units` centred numbers."""
    if n_units < 2:
        return np.zeros_like(squares)
    factor = n_drawn * (n_units - n_drawn) / (n_units * (n_units - 1.0))
    deviation: Floats = np.sqrt(squares * factor)
    return deviation
