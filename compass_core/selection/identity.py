"""What a selection depends on besides its inputs and its settings, for cache keys."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from compass_core.selection.langrank import import_lightgbm, read_facts
from compass_core.selection.language_distances import find_uriel, uriel_version
from compass_core.selection.registry import strategy_version
from compass_core.starter.paths import langrank_path


def strategy_identity(name: str, langrank_model: Path | None = None) -> str:
    """Return the data, model and packages behind one strategy, "" where there are none.

    It also tells, before anything expensive starts, that a strategy lacks what it needs.

    Args:
        name: the strategy.
        langrank_model: folder of its model; None is the shipped one.

    Raises:
        ConfigError: an optional package that the strategy needs is not installed (E66).
        ModelError: the model's folder is not one (E26).
    """
    if name == "langsim":
        find_uriel()
        return f"urielplus {uriel_version()}"
    if name == "langrank":
        import_lightgbm()
        model = read_facts(langrank_model or langrank_path())["model_sha256"]
        lightgbm = importlib.metadata.version("lightgbm")
        return f"model {model} lightgbm {lightgbm} urielplus {uriel_version()}"
    if name == "dsir":
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    return strategy_version(name)
