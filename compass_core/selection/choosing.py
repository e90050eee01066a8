"""How well clusters predict usage that they have not seen: two criteria for their number.

Drawing uniformly inside clusters reproduces, within a cluster, the mix of the rows drawn from. So
clusters stand for one statement about usage: its density at x is that of the reference rows (the
pool, or the rest of the fit) times p_k / r_k, the cluster's share of usage over its share of the
reference. The reference density does not depend on K; what does can be measured on usage that was
left out of the fit, for any K and without a density in hundreds of dimensions:

- `likelihood`: the mean of log2(p_k / r_k) over held-out usage, in bits per prompt. It grows while
  finer clusters tell usage from the reference and falls when p_k is noise.
- `js`: the divergence of held-out usage from the reference reweighted by p_k / r_k, both counted
  over the cells of one partition of the reference that is the same for every K, so that no K is
  preferred for its size; less the divergence that a sample of the held-out size has from its own
  distribution, again the same for every K.

Silhouette looks at the shape of the clusters alone and knows neither usage nor its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.assignment import ClusterIds, Vectors, assign_clusters
from compass_core.selection.gap import js_divergence
from compass_core.selection.kmeans import kmeans_plus_plus, lloyd
from compass_core.selection.shrinkage import Shares, adaptive_shares, smoothed_shares

ChooseBy = Literal["silhouette", "likelihood", "js"]

MIN_USAGE = 20
"""With less usage nothing is held out."""
MIN_REFERENCE = 20
_N_FOLDS = 5
_N_CELLS, _ROWS_PER_CELL = 200, 10
_N_NULL_DRAWS = 200


class HeldOut(NamedTuple):
    """What held-out usage says about one number of clusters.

    Attributes:
        likelihood: Mean log2(p_k / r_k), bits per prompt; higher is better.
        js: Divergence in bits beyond what chance gives; lower is better.
    """

    likelihood: float
    js: float


def held_out_scores(
    usage: Vectors,
    others: Vectors,
    reference: Vectors,
    candidates: Sequence[int],
    rng: np.random.Generator,
) -> list[HeldOut]:
    """Score numbers of clusters by 5-fold cross-validation over usage.

    In every fold the clusters are fitted to the other folds' usage and to `others`, as the final
    ones are to all of it; the candidates of one fold share their seeds.

    Args:
        usage: (U, d) unit norm, U >= `MIN_USAGE`.
        others: (M, d) the rest of the fit; M may be 0.
        reference: (R, d) rows as those that will be drawn from, R >= `MIN_REFERENCE`.
        candidates: numbers of clusters, ascending.
        rng: of folds, seeds and the null draws.

    Returns:
        One entry per candidate.
    """
    cells = _fit_cells(usage, reference, rng)
    fold = rng.permutation(np.arange(len(usage)) % _N_FOLDS)
    log_ratios = np.zeros((len(candidates), len(usage)))
    divergences = np.zeros((len(candidates), _N_FOLDS))
    for held in range(_N_FOLDS):
        out = fold == held
        rows = np.concatenate([usage[~out], others])
        seeds = kmeans_plus_plus(rows, max(candidates), rng)
        for i, k in enumerate(candidates):
            centroids = lloyd(rows, rows[seeds[:k]]).centroids
            usage_ids = assign_clusters(usage, centroids)[0]
            reference_ids = assign_clusters(reference, centroids)[0]
            ratio = _density_ratio(usage_ids[~out], reference_ids, len(centroids))
            log_ratios[i, out] = np.log2(ratio[usage_ids[out]])
            divergences[i, held] = cells.divergence(out, ratio[reference_ids])
    floor = cells.divergence_by_chance(len(usage) // _N_FOLDS, rng)
    return [
        HeldOut(float(ratios.mean()), float(distances.mean()) - floor)
        for ratios, distances in zip(log_ratios, divergences, strict=True)
    ]


class _Cells(NamedTuple):
    """One partition that all numbers of clusters are compared over."""

    of_usage: ClusterIds
    of_reference: ClusterIds
    n_cells: int

    def divergence(self, held_out: NDArray[np.bool_], weights: Shares) -> float:
        """Return the JS between held-out usage and the weighted reference."""
        observed = np.bincount(self.of_usage[held_out], minlength=self.n_cells)
        implied = np.bincount(self.of_reference, weights=weights, minlength=self.n_cells)
        return js_divergence(observed, implied)

    def divergence_by_chance(self, size: int, rng: np.random.Generator) -> float:
        """Return the mean JS between usage's distribution and samples of it."""
        shares = adaptive_shares(np.bincount(self.of_usage, minlength=self.n_cells))
        samples = rng.multinomial(size, shares, size=_N_NULL_DRAWS)
        return float(np.mean([js_divergence(sample, shares) for sample in samples]))


def _fit_cells(usage: Vectors, reference: Vectors, rng: np.random.Generator) -> _Cells:
    n_cells = min(_N_CELLS, len(reference) // _ROWS_PER_CELL)
    seeds = kmeans_plus_plus(reference, n_cells, rng)
    centroids = lloyd(reference, reference[seeds]).centroids
    of_usage, of_reference = (assign_clusters(x, centroids)[0] for x in (usage, reference))
    return _Cells(of_usage, of_reference, len(centroids))


def _density_ratio(usage_ids: ClusterIds, reference_ids: ClusterIds, n_clusters: int) -> Shares:
    """Return (K,) p_k / r_k."""
    usage_share = adaptive_shares(np.bincount(usage_ids, minlength=n_clusters))
    ratio: Shares = usage_share / smoothed_shares(np.bincount(reference_ids, minlength=n_clusters))
    return ratio
