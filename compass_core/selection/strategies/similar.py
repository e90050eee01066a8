"""Similar-languages baseline: the same budget, from the languages most like the target.

The similarity is whatever ``problem.language_similarity`` holds; by default the data-based one of
``selection.similarity``, which is not URIEL.
"""

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies.random_draw import draw_from


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly from the most similar languages.

    Starts with ``problem.similar_languages`` of them; as long as they hold fewer than `budget`
    examples, the next most similar one joins, and a note says so. Ties go by language code;
    languages without a similarity come last.
    """
    names, counts = np.unique(problem.pool_languages[problem.candidates], return_counts=True)
    similarity = problem.language_similarity
    ranked = sorted(
        zip(names.tolist(), counts.tolist(), strict=True),
        key=lambda entry: (-similarity.get(entry[0], -1.0), entry[0]),
    )
    used: list[str] = []
    held = 0
    for name, count in ranked:
        if len(used) >= problem.similar_languages and held >= budget:
            break
        used.append(name)
        held += count
    rows = np.flatnonzero(problem.candidates & np.isin(problem.pool_languages, used))
    indices = draw_from(problem, rows, budget, rng)
    shown = ", ".join(f"{name} {similarity.get(name, 0.0):.2f}" for name in used)
    notes = [f"Most similar to {problem.language}: {shown}."]
    if len(used) > problem.similar_languages:
        notes.append(
            f"The first {problem.similar_languages} hold fewer than {budget} examples; "
            f"{len(used) - problem.similar_languages} more were added."
        )
    if held < budget:
        notes.append(f"All languages together hold only {held} of the {budget} asked for.")
    reasons = [f"similar language {name}" for name in problem.pool_languages[indices]]
    return Selection(indices, reasons, problem.count_by_cluster(indices), tuple(notes))
