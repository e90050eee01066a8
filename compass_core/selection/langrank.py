"""Ranking source languages by a model that learnt from measured gains (LangRank).

Features of a pair (target, source) after Lin et al. 2019, "Choosing Transfer Languages for
Cross-Lingual Learning": URIEL's six distances, shared words, sizes, their ratio, and type-token
ratios. The model is LightGBM's LambdaRank; ``langrank_fitting`` trains it.

A model is a folder: ``model.txt`` (LightGBM's text format, no pickle), ``gains.csv`` (what it
learnt from) and ``LANGRANK.json`` with the sha256 of both, the features and the measured quality.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import ConfigError, ModelError
from compass_core.selection.language_distances import KINDS
from compass_core.selection.words import terms
from compass_core.storage import read_json, sha256_file

FEATURES = (
    "target_rows",
    "source_rows",
    "rows_ratio",
    "target_ttr",
    "source_ttr",
    "ttr_distance",
    "word_overlap",
    *KINDS,
)
"""Columns of the model, in order."""

MODEL_NAME = "model.txt"
GAINS_NAME = "gains.csv"
FACTS_NAME = "LANGRANK.json"
FORMAT = 1

_MAX_CHARACTERS = 2_000
"""Characters read of a text."""

KindDistances = Mapping[str, float | None]


@dataclass(frozen=True)
class LanguageProfile:
    """What the features need to know of a language's texts.

    Attributes:
        n_rows: Rows the language has (not only those that were read).
        words: Different words.
        type_token_ratio: Different words / words, in [0, 1]; 0 without words.
    """

    n_rows: int
    words: frozenset[str]
    type_token_ratio: float

    @classmethod
    def of(cls, texts: Iterable[str], n_rows: int) -> LanguageProfile:
        """Profile a language by some of its texts; use equally many for all languages."""
        words = [word for text in texts for word in terms(text[:_MAX_CHARACTERS])]
        types = frozenset(words)
        return cls(n_rows, types, len(types) / len(words) if words else 0.0)


def pair_features(
    target: LanguageProfile, source: LanguageProfile, distances: KindDistances | None
) -> list[float]:
    """Return the `FEATURES` of one pair; NaN where something is unknown.

    Args:
        target: the language to adapt to.
        source: the language whose data may be added.
        distances: URIEL's distances by kind; None where they are not to be had.

    Examples:
        >>> swahili = LanguageProfile.of(["habari ya asubuhi"], 100)
        >>> zulu = LanguageProfile.of(["habari yebo habari"], 50)
        >>> pair_features(swahili, zulu, None)[:3]
        [100.0, 50.0, 0.5]
        >>> round(pair_features(swahili, zulu, None)[6], 3)
        0.2
    """
    n_words = len(target.words) + len(source.words)
    target_ttr, source_ttr = target.type_token_ratio, source.type_token_ratio
    known = distances or {}
    return [
        float(target.n_rows),
        float(source.n_rows),
        source.n_rows / target.n_rows if target.n_rows else np.nan,
        target_ttr,
        source_ttr,
        (1 - source_ttr / target_ttr) ** 2 if target_ttr else np.nan,
        len(target.words & source.words) / n_words if n_words else np.nan,
        *(_number(known.get(kind)) for kind in KINDS),
    ]


def feature_table(
    target: LanguageProfile,
    sources: Mapping[str, LanguageProfile],
    distances: Mapping[str, KindDistances] | None,
) -> NDArray[np.float64]:
    """Return the (S, F) features of `target` with each of `sources`, in their order."""
    known = distances or {}
    rows = [pair_features(target, profile, known.get(n)) for n, profile in sources.items()]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(FEATURES))


def _number(distance: float | None) -> float:
    return np.nan if distance is None else float(distance)


# --------------------------------------------------------------------------- the model
@dataclass(frozen=True)
class Ranker:
    """A loaded model.

    Attributes:
        booster: LightGBM's model.
        facts: What ``LANGRANK.json`` says.
    """

    booster: Any
    facts: dict[str, Any]

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (S,) scores of (S, F) features; larger is better, the scale means nothing."""
        found = self.booster.predict(features, num_threads=1, predict_disable_shape_check=False)
        return np.asarray(found, dtype=np.float64)


def load_ranker(folder: Path) -> Ranker:
    """Load a model that `langrank_fitting.write_model` wrote.

    Raises:
        ConfigError: LightGBM is not installed (E66).
        ModelError: the folder is not a model (E26), or is damaged (E29).
    """
    lightgbm = import_lightgbm()
    facts = read_facts(folder)
    path = folder / MODEL_NAME
    found = sha256_file(path) if path.is_file() else "missing"
    if found != facts["model_sha256"]:
        raise ModelError(
            f"{path} is damaged: its sha256 is {found[:12]}, {FACTS_NAME} says "
            f"{facts['model_sha256'][:12]}. Fit it again with `compass fit-langrank`.",
            code="E29",
        )
    booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    return Ranker(booster, facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what is known of a model.

    Raises:
        ModelError: the folder is not a model of this version (E26).
    """
    try:
        facts = read_json(folder / FACTS_NAME)
        made_for = (facts["format"], tuple(facts["features"]))
        whole = isinstance(facts["model_sha256"], str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"selection.langrank_model={folder} is not a model of `compass fit-langrank`: "
            f"{FACTS_NAME} cannot be read ({type(error).__name__}). "
            "Name a folder that command wrote, or `starter`."
        ) from error
    if not whole or made_for != (FORMAT, FEATURES):
        raise ModelError(
            f"selection.langrank_model={folder} was fitted by another version of COMPASS (format "
            f"{made_for[0]}). Fit it again with `compass fit-langrank`."
        )
    return dict(facts)


def import_lightgbm() -> Any:
    """Return the module `lightgbm`.

    Raises:
        ConfigError: it is not installed (E66).
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ConfigError(
            "LangRank (selection.strategy=langrank) needs LightGBM, which is not installed: "
            "pip install 'compass-adapt[langrank]'. `selection.strategy: similar` works without.",
            code="E66",
        )
    import lightgbm

    return lightgbm
