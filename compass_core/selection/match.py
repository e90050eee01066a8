"""How near the training data comes to the usage, before and after the selection."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from compass_core.selection.gap import GapTable, js_divergence


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
