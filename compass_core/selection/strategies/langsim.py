"""Language-similarity baseline: the same budget, from the languages nearest by URIEL.

Similarity is 1 − the mean of URIEL's six distances (genetic, geographic, syntactic, phonological,
inventory, featural). Needs the optional package that holds them; see
``selection.language_distances``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compass_core.errors import LanguageError
from compass_core.selection.language_distances import uriel_distances, uriel_similarity
from compass_core.selection.problem import Selection, SelectionProblem
from compass_core.selection.strategies._filling import fill_from_languages


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly from the languages most similar by URIEL.

    Languages URIEL does not know are left out, and a note names them.

    Raises:
        ConfigError: the package with the distances is not installed (E66).
        LanguageError: URIEL knows neither the target nor any language of the pool (E67).
    """
    found = uriel_distances(problem.language, problem.sources)
    similarity = uriel_similarity(found.by_language)
    if problem.sources and not similarity:
        raise LanguageError(
            f"URIEL knows none of the pool's languages ({', '.join(found.unknown)}). "
            "Use `selection.strategy: similar`, which compares texts.",
            code="E67",
        )
    chosen = fill_from_languages(problem, similarity, budget, rng, measure="similar by URIEL")
    notes = chosen.notes
    if found.unknown:
        notes += (f"URIEL does not know {', '.join(found.unknown)}: left out.",)
    details = chosen.details | {
        "distances": found.by_language,
        "unknown_to_uriel": list(found.unknown),
        "urielplus": found.version,
    }
    return replace(chosen, notes=notes, details=details)
