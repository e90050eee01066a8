"""Similar-languages baseline: the same budget, from the languages whose texts look most alike.

The similarity is that of ``selection.similarity``: scripts and character trigrams of the data at
hand, which needs nothing installed. `langsim` is the same with the distances of URIEL.
"""

from __future__ import annotations

import numpy as np

from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.similarity import lexical_similarity
from compass_core.selection.strategies._filling import fill_from_languages


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly from the most similar languages.

    Raises:
        DataError: the pool's texts were not passed.
    """
    own = [*problem.usage_texts, *problem.coverage_texts]
    similarity = lexical_similarity(own, problem.texts_by_language())
    return fill_from_languages(problem, similarity, budget, rng, measure="similar in writing")
