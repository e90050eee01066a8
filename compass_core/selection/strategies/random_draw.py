"""Random baseline: the same budget, drawn from the whole pool without looking at meaning."""

from __future__ import annotations

import numpy as np

from compass_core.errors import InsufficientPoolError
from compass_core.selection.drawing import Rows, random_priorities
from compass_core.selection.problem import Selection, SelectionProblem


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly.

    Raises:
        InsufficientPoolError: fewer candidates than `budget`.
    """
    candidates = np.flatnonzero(problem.candidates)
    if len(candidates) < budget:
        raise InsufficientPoolError(
            f"Cannot select {budget} examples at random: only {len(candidates)} of "
            f"{len(problem.allowed)} pool examples may be used. "
            f"Lower `selection.budget` to {len(candidates)} or add data to the pool."
        )
    indices = draw_from(problem, candidates, budget, rng)
    reasons = ["drawn at random"] * len(indices)
    return Selection(indices, reasons, problem.count_by_cluster(indices))


def draw_from(problem: SelectionProblem, rows: Rows, wanted: int, rng: np.random.Generator) -> Rows:
    """Return `wanted` of `rows` (all, if there are fewer), uniformly, ascending."""
    priorities = random_priorities(problem.keys, rng)[rows]
    return np.sort(rows[np.argsort(priorities, kind="stable")[:wanted]])
