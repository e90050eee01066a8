"""How many pool examples each cluster gets: exact water-filling and two simpler rules.

All three rules are one computation. With weights w and existing counts n,

    b_k(t) = clip(w_k · t − n_k, 0, c_k)                                                (4)

is non-decreasing and piecewise linear in the level t. The level at which Σ b_k = B lies between two
of its 2K sorted break points; which two a binary search says, and between them t solves a linear
equation: O(K log K), no tolerance, no running sums that could cancel. `waterfill` uses
w = p and the coverage counts n; `gap` and `importance` are the same with n = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from compass_core.errors import DataError, InsufficientPoolError
from compass_core.selection.gap import Counts, measure_gap
from compass_core.selection.shrinkage import Shares, smoothed_shares

AllocationRule = Literal["waterfill", "gap", "importance"]
_NEGLIGIBLE = 1e-200
"""Weights below this part of the largest count as 0; their levels would overflow."""
_REMAINDER_DIGITS = 9
"""Remainders closer than this are ties, so that rounding noise cannot decide between clusters."""


@dataclass(frozen=True)
class Allocation:
    """A budget split over clusters.

    Attributes:
        counts: (K,) whole examples, summing to the budget.
        ideal: (K,) the same before rounding.
        notes: What a reader should know (for example that no cluster had a gap).
    """

    counts: Counts
    ideal: Shares
    notes: tuple[str, ...] = ()


def allocate_budget(
    usage_share: ArrayLike,
    coverage_count: ArrayLike,
    capacity: ArrayLike,
    budget: int,
    *,
    rule: AllocationRule = "waterfill",
    smoothing: float = 0.5,
) -> Counts:
    """Return only the counts of `plan_allocation`.

    Examples:
        >>> allocate_budget([0.5, 0.3, 0.2], [10, 0, 0], [100, 100, 3], budget=12)
        array([2, 7, 3])
    """
    return plan_allocation(
        usage_share, coverage_count, capacity, budget, rule=rule, smoothing=smoothing
    ).counts


def plan_allocation(
    usage_share: ArrayLike,
    coverage_count: ArrayLike,
    capacity: ArrayLike,
    budget: int,
    *,
    rule: AllocationRule = "waterfill",
    smoothing: float = 0.5,
) -> Allocation:
    """Split `budget` over clusters, never above `capacity`.

    ``waterfill`` minimises KL(p ‖ (n+b)/(N+B)) exactly, equation (4). ``gap`` gives in proportion
    to max(0, p − q), ``importance`` in proportion to p/q; what a full cluster cannot take is shared
    again among the open ones in the same proportion. Where all clusters with a positive weight are
    full, the rest goes in proportion to p, then in proportion to what is left. Fractions are
    settled by largest remainder, ties to the lower cluster id.

    Args:
        usage_share: (K,) target p, >= 0, at least one > 0.
        coverage_count: (K,) existing training examples n, >= 0.
        capacity: (K,) pool examples that may be taken c, >= 0.
        budget: examples to allocate B, >= 0.
        rule: which of the three rules.
        smoothing: α with which ``gap`` and ``importance`` turn `coverage_count` into q.

    Raises:
        InsufficientPoolError: the clusters together hold fewer than `budget`.
        DataError: the arrays do not fit together.
    """
    p, n, c = _checked(usage_share, coverage_count, capacity, budget)
    q = smoothed_shares(n, smoothing)
    notes: list[str] = []
    gap = measure_gap(p / p.sum(), q)
    # p and q both sum to 1, so "no positive gap" means that they are equal up to rounding.
    has_gap = bool(gap.max() > 1e-12)
    if not has_gap:
        notes.append(
            "Coverage already follows usage: no cluster has a gap. "
            "The budget is split in proportion to usage."
        )
    if rule == "waterfill":
        weights, level = p, n
    elif rule == "gap":
        weights, level = (gap if has_gap else p), np.zeros_like(n)
    elif rule == "importance":
        weights, level = p / q, np.zeros_like(n)
    else:
        raise DataError(
            f"selection.rule must be waterfill, gap or importance, got {rule!r}.", code="E42"
        )
    ideal = _fill_in_turn(
        [(weights, level), (p, np.zeros_like(n)), (c, np.zeros_like(n))], c, budget
    )
    reach = float(c[weights > 0].sum())
    if reach < budget:
        notes.append(
            f"The clusters that rule `{rule}` prefers hold only {reach:.0f} examples; "
            f"{budget - reach:.0f} of {budget} come from other clusters."
        )
    return Allocation(round_to_counts(ideal, c, budget), ideal, tuple(notes))


def water_level(
    weights: Shares, existing: Shares, capacity: Shares, budget: float
) -> tuple[float, Shares]:
    """Return the level t with Σ_k clip(w_k·t − n_k, 0, c_k) = B and its allocation b, eq. (4).

    Clusters of weight 0 get nothing. `budget` must not exceed Σ c_k over positive weights.

    Args:
        weights: (K,) w, >= 0.
        existing: (K,) n, >= 0.
        capacity: (K,) c, >= 0.
        budget: B, >= 0.
    """
    allocation = np.zeros(len(weights))
    active = (weights > _NEGLIGIBLE * weights.max(initial=0.0)) & (capacity > 0)
    w, n, c = weights[active], existing[active], capacity[active]
    if budget <= 0 or len(w) == 0:
        return 0.0, allocation
    starts, ends = n / w, (n + c) / w
    breaks = np.sort(np.concatenate([starts, ends]))
    low, high = 0, len(breaks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if np.clip(w * breaks[middle] - n, 0.0, c).sum() < budget:
            low = middle
        else:
            high = middle
    is_full = ends <= breaks[low]
    is_open = (starts <= breaks[low]) & ~is_full
    if is_open.any():
        level = (budget - c[is_full].sum() + n[is_open].sum()) / w[is_open].sum()
    else:
        level = breaks[high]
    values = np.clip(w * level - n, 0.0, c)
    allocation[active] = _absorb_rounding(values, c, budget)
    return float(level), allocation


def round_to_counts(ideal: Shares, capacity: ArrayLike, budget: int) -> Counts:
    """Round `ideal` to whole examples that sum to `budget`, by largest remainder within `capacity`.

    Ties go to the lower index.

    Examples:
        >>> round_to_counts(np.array([1.5, 1.5, 1.0]), [5, 5, 5], 4)
        array([2, 1, 1])
    """
    limit = np.asarray(capacity, dtype=np.int64)
    near = np.rint(ideal)
    ideal = np.where(
        np.abs(ideal - near) < 10.0**-_REMAINDER_DIGITS * np.maximum(near, 1), near, ideal
    )
    counts = np.minimum(np.floor(ideal).astype(np.int64), limit)
    remainder = np.round(ideal - counts, _REMAINDER_DIGITS)
    by_remainder = np.argsort(-remainder, kind="stable")
    missing = budget - int(counts.sum())
    while missing > 0:
        open_clusters = by_remainder[counts[by_remainder] < limit[by_remainder]][:missing]
        if len(open_clusters) == 0:
            raise DataError(f"{budget} examples do not fit into {int(limit.sum())} places.")
        counts[open_clusters] += 1
        missing -= len(open_clusters)
    while missing < 0:
        # Only reachable when an ideal above its own sum was passed: take back the smallest part.
        taken = by_remainder[::-1][counts[by_remainder[::-1]] > 0][:-missing]
        counts[taken] -= 1
        missing += len(taken)
    return counts


def _fill_in_turn(stages: list[tuple[Shares, Shares]], capacity: Shares, budget: float) -> Shares:
    """Fill by the first (weights, existing) pair; what does not fit goes to the next pair."""
    total = np.zeros_like(capacity)
    rest = float(budget)
    for weights, existing in stages:
        room = capacity - total
        part = min(rest, float(room[weights > 0].sum()))
        total += water_level(weights, existing, room, part)[1]
        rest = budget - float(total.sum())
        if rest <= 1e-9 * max(budget, 1):
            break
    return np.minimum(total, capacity)


def _absorb_rounding(values: Shares, capacity: Shares, budget: float) -> Shares:
    """Spread the float error of Σ values over the entries that are neither empty nor full."""
    error = budget - values.sum()
    inside = (values > 0) & (values < capacity)
    if error and inside.any():
        values[inside] += error * values[inside] / values[inside].sum()
    clipped: Shares = np.clip(values, 0.0, capacity)
    return clipped


def _checked(
    usage_share: ArrayLike, coverage_count: ArrayLike, capacity: ArrayLike, budget: int
) -> tuple[Shares, Shares, Shares]:
    p = np.asarray(usage_share, dtype=np.float64)
    n = np.asarray(coverage_count, dtype=np.float64)
    c = np.asarray(capacity, dtype=np.float64)
    if p.ndim != 1 or not p.shape == n.shape == c.shape or len(p) == 0:
        raise DataError(
            "Allocation needs one usage share, one coverage count and one capacity per cluster; "
            f"got shapes {p.shape}, {n.shape}, {c.shape}."
        )
    for name, values in (("usage_share", p), ("coverage_count", n), ("capacity", c)):
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"{name} must be finite and >= 0 in every cluster.")
    if not p.sum() > 0:
        raise DataError("usage_share is 0 in every cluster: there is nothing to aim at.")
    if budget < 0:
        raise DataError(f"selection.budget must be >= 0, got {budget}.", code="E42")
    largest = int(c.sum())
    if budget > largest:
        raise InsufficientPoolError(
            f"Cannot select {budget} examples: the {len(c)} clusters hold only {largest} that may "
            f"be taken. Lower `selection.budget` to {largest}, add data to the pool, or widen "
            "`clustering.relevance_quantile` (0 switches the relevance radius off)."
        )
    return np.where(p > _NEGLIGIBLE * p.max(), p, 0.0), n, c
