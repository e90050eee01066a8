"""Target-only baseline: train on what the language already has, add nothing."""

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Select nothing, whatever the budget."""
    del budget, rng
    nothing = np.empty(0, dtype=np.int64)
    return Selection(nothing, [], problem.count_by_cluster(nothing))
