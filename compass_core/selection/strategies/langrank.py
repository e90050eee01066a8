"""LangRank baseline: the same budget, from the languages a ranker expects to help most.

The ranker learnt from measured gains; see ``selection.langrank``. The shipped one was trained on
the starter and knows nothing of other data: ``compass fit-langrank`` trains one from your own
gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compass_core.errors import LanguageError
from compass_core.selection.langrank import (
    FEATURES,
    KindDistances,
    LanguageProfile,
    feature_table,
    load_ranker,
)
from compass_core.selection.language_distances import has_uriel, uriel_distances
from compass_core.selection.problem import TEXTS_PER_LANGUAGE, Selection, SelectionProblem
from compass_core.selection.strategies._filling import fill_from_languages
from compass_core.starter.paths import langrank_path


def select(problem: SelectionProblem, budget: int, rng: np.random.Generator) -> Selection:
    """Draw `budget` candidates uniformly from the languages the ranker puts first.

    Raises:
        ConfigError: LightGBM is not installed (E66).
        ModelError: the model's folder is not one (E26), or is damaged (E29).
        DataError: the pool's texts were not passed.
    """
    ranker = load_ranker(problem.langrank_model or langrank_path())
    own = [*problem.coverage_texts, *problem.usage_texts][:TEXTS_PER_LANGUAGE]
    target = LanguageProfile.of(own, len(problem.coverage_texts))
    sources = {
        name: LanguageProfile.of(texts, problem.sources[name])
        for name, texts in problem.texts_by_language().items()
    }
    distances, note = _distances(problem)
    features = feature_table(target, sources, distances)
    scores = dict(zip(sources, ranker.scores(features).tolist(), strict=True)) if sources else {}
    chosen = fill_from_languages(problem, scores, budget, rng, measure="promising by LangRank")
    details = chosen.details | {
        "features": {
            name: dict(zip(FEATURES, [_plain(v) for v in row], strict=True))
            for name, row in zip(sources, features.tolist(), strict=True)
        },
        "model_sha256": ranker.facts["model_sha256"],
        "trained_on": ranker.facts.get("trained_on", ""),
    }
    return replace(chosen, notes=(*chosen.notes, *note), details=details)


def _distances(
    problem: SelectionProblem,
) -> tuple[Mapping[str, KindDistances] | None, tuple[str, ...]]:
    if not has_uriel():
        missing = "URIEL is not installed (pip install 'compass-adapt[uriel]')"
        return None, (f"LangRank ranked without language distances: {missing}.",)
    try:
        found = uriel_distances(problem.language, problem.sources)
    except LanguageError:
        return None, (
            f"LangRank ranked without language distances: URIEL does not know {problem.language}.",
        )
    if found.unknown:
        return found.by_language, (f"URIEL does not know {', '.join(found.unknown)}.",)
    return found.by_language, ()


def _plain(value: float) -> float | None:
    """Return `value` as JSON can hold it."""
    return None if np.isnan(value) else round(value, 6)
