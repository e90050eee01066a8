"""How near the training data comes to the usage, before and after the selection."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from compass_core.selection.gap import GapTable, js_divergence

_SAME_BITS = 1e-3
"""Divergences nearer than this count as equal."""


def measure_match(gap: GapTable, selected: ArrayLike, candidates: ArrayLike) -> dict[str, float]:
    """Return Jensen-Shannon divergences to the usage shares in bits, equation (5).

    Measured on the clusters and the usage that the selection was made with, so ``js_after`` is what
    the method aims at, not a test of it.

    Args:
        gap: Shares and counts per cluster.
        selected: (K,) selected examples per cluster.
        candidates: (K,) pool examples that might have been selected, whatever their distance.

    Returns:
        ``js_before`` (coverage alone; 1 where there is none), ``js_after`` (with the selection) and
        ``js_random`` (with as many examples in proportion to the candidates).
    """
    taken = np.asarray(selected, dtype=np.float64)
    pool = np.asarray(candidates, dtype=np.float64)
    chance = taken.sum() * pool / max(pool.sum(), 1.0)
    mixes = {
        "js_before": gap.coverage_count.astype(np.float64),
        "js_after": gap.coverage_count + taken,
        "js_random": gap.coverage_count + chance,
    }
    return {
        name: js_divergence(gap.usage_share, mix) if mix.sum() > 0 else 1.0
        for name, mix in mixes.items()
    }


def notes_on_match(match: Mapping[str, float]) -> list[str]:
    """Say so where a selection leaves the training data no nearer to the usage than it was.

    Args:
        match: from `measure_match`.
    """
    if match["js_after"] <= match["js_before"] + _SAME_BITS:
        return []
    return [
        f"The selection moves the training data away from the usage: {match['js_before']:.3f} bits "
        f"before, {match['js_after']:.3f} after. The pool holds too little of what is missing: "
        "lower `selection.budget`, widen `clustering.relevance_quantile`, or add data."
    ]
