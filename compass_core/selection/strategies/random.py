"""Random baseline: the same budget, drawn from the whole pool without looking at meaning."""  # noqa: A005 - the file's name is the strategy's

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies._filling import draw_from, require_candidates


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly.

    Raises:
        InsufficientPoolError: fewer candidates than `budget`.
    """
    candidates = require_candidates(problem, budget, "at random")
    indices = draw_from(problem, candidates, budget, rng)
    reasons = ["drawn at random"] * len(indices)
    return Selection(indices, reasons, problem.count_by_cluster(indices))
