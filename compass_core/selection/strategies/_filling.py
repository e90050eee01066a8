"""What several strategies do: draw from some rows, or fill the budget language by language."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compass_core.errors import InsufficientPoolError
from compass_core.selection.drawing import Rows, random_priorities
from compass_core.selection.problem import Selection, SelectionProblem


def draw_from(problem: SelectionProblem, rows: Rows, wanted: int, rng: np.random.Generator) -> Rows:
    """Return `wanted` of `rows` (all, if there are fewer), uniformly, ascending."""
    priorities = random_priorities(problem.pool_keys, rng)[rows]
    return np.sort(rows[np.argsort(priorities, kind="stable")[:wanted]])


def require_candidates(problem: SelectionProblem, budget: int, how: str) -> Rows:
    """Return the candidates, ascending, where there are at least `budget`.

    Raises:
        InsufficientPoolError: there are fewer; the message names the largest budget that fits.
    """
    rows = np.flatnonzero(problem.candidates)
    if len(rows) < budget:
        raise InsufficientPoolError(
            f"Cannot select {budget} examples {how}: only {len(rows)} of "
            f"{len(problem.allowed)} pool examples may be used. "
            f"Lower `selection.budget` to {len(rows)} or add data to the pool."
        )
    return rows


def fill_from_languages(
    problem: SelectionProblem,
    scores: Mapping[str, float],
    budget: int,
    rng: np.random.Generator,
    *,
    measure: str,
) -> Selection:
    """Draw `budget` candidates uniformly from the languages of the highest scores.

    Starts with ``problem.similar_languages`` of them; as long as they hold fewer than `budget`
    examples, the next one joins, and a note says so. Ties go by language code.

    Args:
        problem: pool and target.
        scores: language → score; languages without one are not used.
        budget: examples wanted; all there are, with a note, where the languages hold fewer.
        rng: source of chance.
        measure: how people read the order, for example ``similar by URIEL``.
    """
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    used: list[str] = []
    held = 0
    for name in ranked:
        if len(used) >= problem.similar_languages and held >= budget:
            break
        used.append(name)
        held += problem.sources.get(name, 0)
    indices = draw_from(problem, problem.rows_of(used), budget, rng)
    shown = ", ".join(f"{name} {scores[name]:.2f}" for name in used)
    notes = [f"Languages most {measure} for {problem.language}: {shown}."]
    if len(used) > problem.similar_languages:
        notes.append(
            f"The first {problem.similar_languages} hold fewer than {budget} examples; "
            f"{len(used) - problem.similar_languages} more were added."
        )
    if held < budget:
        notes.append(f"All these languages together hold only {held} of the {budget} asked for.")
    by_language = {name: f"{name}, {measure} {scores[name]:.2f}" for name in used}
    reasons = [by_language[str(name)] for name in problem.pool_languages[indices]]
    details = {"scores": {name: float(scores[name]) for name in ranked}, "languages": used}
    return Selection(indices, reasons, problem.count_by_cluster(indices), tuple(notes), details)
