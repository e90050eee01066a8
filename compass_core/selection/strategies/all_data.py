"""All-data baseline: every pool example that may be used at all."""

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Select every candidate; the budget does not apply."""
    del budget, rng
    indices = np.flatnonzero(problem.candidates)
    return Selection(
        indices,
        ["everything allowed"] * len(indices),
        problem.count_by_cluster(indices),
        (f"All {len(indices)} allowed examples; the budget does not apply.",),
    )
