"""Comparisons that carry their uncertainty: intervals, exact paired tests, corrected p-values.

Items within a language are paired (the same items before and after); languages are the unit across
languages. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_EXACT_SIGNS = 1 << 14
"""All 2^n sign patterns are enumerated up to this many; beyond, they are sampled."""


def bootstrap_interval(
    correct: NDArray[np.bool_] | NDArray[np.float64],
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `correct` over items.

    Args:
        correct: (N,) per-item outcomes or differences, N >= 1.
        level: Coverage in (0, 1), for example 0.95.
        n_resamples: Resamples.
        rng: Source of the resamples.

    Raises:
        ValueError: no items.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.size == 0:
        raise ValueError("an interval needs at least one item")
    support, counts = np.unique(values, return_counts=True)
    # Resampling N items is a multinomial draw over the distinct outcomes: 0/1 data costs nothing.
    draws = rng.multinomial(values.size, counts / values.size, size=n_resamples)
    means = draws @ support / values.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_test_one_sided(wins: int, losses: int) -> float:
    """Return the exact p-value of "wins are no likelier than losses"; ties do not count.

    P(X >= wins) for X ~ Binomial(wins + losses, ½); 1 without any win or loss.

    Examples:
        >>> sign_test_one_sided(5, 0)
        0.03125
        >>> sign_test_one_sided(0, 0)
        1.0
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must be >= 0, got wins={wins}, losses={losses}")
    from scipy import stats  # a second to import, which a run that finds its decisions is spared

    return float(stats.binom.sf(wins - 1, wins + losses, 0.5)) if wins else 1.0


def paired_difference(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N,) after − before per item, in {−1, 0, 1}; both over the same items in one order."""
    if before.shape != after.shape:
        raise ValueError(f"paired outcomes differ in shape: {before.shape} and {after.shape}")
    return after.astype(np.float64) - before.astype(np.float64)


def sign_flip_test(
    differences: NDArray[np.float64],
    n_permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return the two-sided p-value of "the differences are symmetric around 0".

    Each difference (one per language) keeps its size and gets a random sign. Sampled:
    p = (1 + #{|d*| >= |d|}) / (1 + n) with d the mean. When there are at most `MAX_EXACT_SIGNS`
    sign patterns all are enumerated and p is their share, the observed one included.

    Args:
        differences: (L,) differences, one per language, L >= 1.
        n_permutations: Random sign patterns where enumeration is too large.
        rng: Source of the signs.

    References:
        Method notes, section 6.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a sign-flip test needs at least one difference")
    exact = 2**values.size <= MAX_EXACT_SIGNS
    if exact:
        patterns = np.arange(2**values.size)[:, None] >> np.arange(values.size)
        signs = 1.0 - 2.0 * (patterns & 1)
    else:
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(n_permutations, values.size))
    observed = abs(values.sum())
    # Sums of the same numbers in another order differ in the last bits: those are ties.
    tolerance = 1e-12 * np.abs(values).sum()
    extreme = int(np.count_nonzero(np.abs(signs @ values) >= observed - tolerance))
    return extreme / len(signs) if exact else (1 + extreme) / (1 + len(signs))


def cohens_d(differences: NDArray[np.float64]) -> float:
    """Return mean / standard deviation (n − 1) of paired differences; nan where undefined.

    Examples:
        >>> import numpy as np
        >>> cohens_d(np.array([1.0, 2.0, 3.0]))
        2.0
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return float("nan")
    deviation = float(values.std(ddof=1))
    return float(values.mean()) / deviation if deviation > 0 else float("nan")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values, in the order given.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return [float(value) for value in result]
