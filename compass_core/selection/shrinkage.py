"""Usage shares from few prompts: the additive rule, and one that learns its prior from the counts.

Minimising the expected KL of equation (4) over what the true shares may be needs nothing but their
posterior mean, so a better p can only come from a better prior. `adaptive_shares` learns one per
set of counts: the counts e_k are taken as Poisson with rates from a mixture of Gamma distributions.
Its first component is the Dirichlet of greatest marginal likelihood, the others, narrow and spread
over the range of the counts, take over as far as the counts contradict it (groups of equally
frequent clusters, power laws, clusters that nobody asks about).

With K = 100, 285 prompts and shares from Dirichlet(.4) the additive rule is nearly best already:
the best possible allocation, which knows that prior, closes 7 % of the distance to knowing p.
The gain lies where α = .5 is wrong. `benchmarks/shrinkage.py` prints both.

The counts are taken as multinomial. Clusters that the same usage helped to fit hold it more evenly
than that, and `adaptive_shares` then shrinks a little too far: `benchmarks/choice_of_k.py` prints
that on real sentences it is no better than the additive rule, which therefore is the default.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_core.errors import DataError

Shares = NDArray[np.float64]
ShrinkageRule = Literal["additive", "adaptive"]

_NARROW_SHAPE = 10.0
"""Shape of the spread components: a relative standard deviation of .32."""
_STEP = 0.35
"""Distance of neighbouring components in log rate, near their standard deviation."""
_LOWEST_RATE = 0.02
_DIRICHLET_STRENGTH = 5.0
"""Clusters' worth of trust in the Dirichlet component."""
_N_ITERATIONS = 50
_LOG_ALPHAS = np.linspace(np.log(1e-3), np.log(1e3), 241)
_LOG_ALPHA_SPREAD = 1.5
"""Standard deviation of log α around the configured smoothing; matters for a handful of prompts."""


def usage_shares(
    counts: ArrayLike, *, smoothing: float = 0.5, shrinkage: ShrinkageRule = "additive"
) -> Shares:
    """Return the estimated shares of usage over clusters, by either rule.

    Args:
        counts: (K,) usage prompts per cluster, >= 0.
        smoothing: α of equation (1); with ``adaptive`` only where the search for α is centred.
        shrinkage: ``additive``, equation (1), or ``adaptive``.

    Returns:
        (K,) shares, all > 0, summing to 1.

    Raises:
        DataError: counts, smoothing or rule are not usable.
    """
    if shrinkage == "additive":
        return smoothed_shares(counts, smoothing)
    if shrinkage == "adaptive":
        return adaptive_shares(counts, smoothing)
    raise DataError(
        f"selection.shrinkage must be additive or adaptive, got {shrinkage!r}.", code="E42"
    )


def smoothed_shares(counts: ArrayLike, smoothing: float = 0.5) -> Shares:
    """Return additively smoothed shares, equations (1) and (2): (c_k + α) / (Σ c + αK).

    With no examples at all the shares are uniform, which is what an empty coverage means.

    Args:
        counts: (K,) examples per cluster, >= 0.
        smoothing: pseudo-count α per cluster, > 0.

    Returns:
        (K,) shares, all > 0, summing to 1.

    Raises:
        DataError: `counts` is not a vector of non-negative numbers, or `smoothing` is not positive.

    Examples:
        >>> smoothed_shares([3, 0], smoothing=0.5)
        array([0.875, 0.125])
        >>> smoothed_shares([0, 0])
        array([0.5, 0.5])
    """
    values = checked_counts(counts, smoothing)
    shares: Shares = (values + smoothing) / (values.sum() + smoothing * len(values))
    return shares


def checked_counts(counts: ArrayLike, smoothing: float) -> Shares:
    """Return `counts` as a float vector; refuse what no shares can be made of."""
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all() or values.min() < 0:
        raise DataError(
            "Shares need one finite, non-negative count per cluster; "
            f"got an array of shape {values.shape}."
        )
    if not (smoothing > 0 and np.isfinite(smoothing)):
        raise DataError(f"selection.smoothing must be > 0, got {smoothing}.", code="E42")
    return values


def adaptive_shares(counts: ArrayLike, smoothing: float = 0.5) -> Shares:
    """Return posterior mean shares under a prior that is learnt from the counts themselves.

    A cluster's share depends on its own count and on how often each count occurs, so equal counts
    get equal shares and the order of the clusters does not matter.

    Args:
        counts: (K,) prompts per cluster, >= 0.
        smoothing: where the search for the Dirichlet's α is centred, > 0.

    Returns:
        (K,) shares, all > 0, summing to 1. Uniform without any prompt.

    Examples:
        >>> adaptive_shares([0, 0, 0, 0]).tolist()
        [0.25, 0.25, 0.25, 0.25]
        >>> adaptive_shares([20, 20, 0, 0, 0]).round(3).tolist()
        [0.495, 0.495, 0.004, 0.004, 0.004]
    """
    values = checked_counts(counts, smoothing)
    n_clusters, total = len(values), float(values.sum())
    if total == 0 or n_clusters == 1:
        return np.full(n_clusters, 1.0 / n_clusters)
    distinct, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    shapes, means = _components(distinct, total / n_clusters, best_alpha(values, smoothing))
    rates = shapes / means
    likelihood = _count_likelihood(distinct, shapes, rates)
    weights = np.full(len(shapes), 0.5 / (len(shapes) - 1))
    weights[0] = 0.5
    for _ in range(_N_ITERATIONS):
        weights = repeats @ _normalised(likelihood * weights)
        weights[0] += _DIRICHLET_STRENGTH
        weights /= n_clusters + _DIRICHLET_STRENGTH
    posterior = _normalised(likelihood * weights)
    expected = (posterior * (shapes + distinct[:, None]) / (rates + 1.0)).sum(axis=1)
    shares: Shares = expected[place] / expected[place].sum()
    return shares


def best_alpha(counts: ArrayLike, smoothing: float = 0.5) -> float:
    """Return the α of the symmetric Dirichlet that explains the counts best, in [.001, 1000].

    Marginal likelihood of the counts, times a wide log-normal prior around `smoothing`, which
    decides where there is next to no usage. Uneven counts give small values, even ones large.
    """
    from scipy.special import gammaln

    values = checked_counts(counts, smoothing)
    distinct, repeats = np.unique(values, return_counts=True)
    alphas = np.exp(_LOG_ALPHAS)
    k, total = len(values), values.sum()
    each = gammaln(distinct[:, None] + alphas) - gammaln(alphas)
    score = gammaln(k * alphas) - gammaln(k * alphas + total) + repeats @ each
    score -= ((_LOG_ALPHAS - np.log(smoothing)) / _LOG_ALPHA_SPREAD) ** 2 / 2
    return float(alphas[score.argmax()])


def _components(distinct: Shares, mean: float, alpha: float) -> tuple[Shares, Shares]:
    """Return shapes and means of the Gamma components; the Dirichlet's own comes first."""
    low, top = min(_LOWEST_RATE, mean), float(distinct[-1]) + 1.0
    n_spread = int(np.ceil(np.log(top / low) / _STEP)) + 1
    spread = np.geomspace(low, top, n_spread)
    return (
        np.concatenate([[alpha], np.full(n_spread, _NARROW_SHAPE)]),
        np.concatenate([[mean], spread]),
    )


def _count_likelihood(distinct: Shares, shapes: Shares, rates: Shares) -> NDArray[np.float64]:
    """Return (distinct, components) Poisson-Gamma likelihoods, each row scaled to a maximum of 1.

    The factorial, equal in a row, is left out.
    """
    from scipy.special import gammaln

    count = distinct[:, None]
    logs = gammaln(count + shapes) - gammaln(shapes)
    logs = logs - shapes * np.log1p(1.0 / rates) - count * np.log1p(rates)
    likelihood: NDArray[np.float64] = np.exp(logs - logs.max(axis=1, keepdims=True))
    return likelihood


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return result
