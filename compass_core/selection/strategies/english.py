"""English-only baseline: the same budget, from English alone."""

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies._filling import draw_from

ENGLISH = "eng_Latn"


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` English candidates uniformly; all of them, with a note, if there are fewer."""
    rows = np.flatnonzero(problem.candidates & (problem.pool_languages == ENGLISH))
    indices = draw_from(problem, rows, budget, rng)
    notes: tuple[str, ...] = ()
    if len(rows) < budget:
        notes = (f"The pool holds only {len(rows)} English examples of the {budget} asked for.",)
    reasons = ["English"] * len(indices)
    return Selection(indices, reasons, problem.count_by_cluster(indices), notes)
