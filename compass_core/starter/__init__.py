"""Embedded default: a real corpus, an encoder and a base model that need no network.

The corpus comes from the Unicode CLDR at run time; encoder and base are shipped under `weights/`
and rebuilt by ``python -m compass_core.starter.build``.  It is a demonstration, not evidence about
any benchmark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compass_core.starter.corpus import (
    DEMO_LANGUAGES,
    STARTER_LANGUAGES,
    TARGET_LANGUAGES,
    TOPICS,
    StarterSplit,
    build_language,
    build_pool,
)
from compass_core.starter.paths import base_path, encoder_path

if TYPE_CHECKING:
    from collections.abc import Mapping

RECOMMENDED: Mapping[str, Any] = {
    "n_coverage": 300,
    "n_usage": 220,
    "n_test": 450,
    "n_missing_topics": 3,
    "budget": 60,
    "n_clusters": 24,
    "fit_on": "usage+coverage+pool",
    "pool_fit_sample": 3000,
    "relevance_quantile": 0.95,
    "centre_languages": False,
    "smoothing": 0.2,
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "learning_rate": 3e-3,
    "batch_size": 16,
    "n_steps": 200,
}
"""Settings the evidence was measured with; `configs/starter.yaml` repeats them."""

__all__ = [
    "DEMO_LANGUAGES",
    "RECOMMENDED",
    "STARTER_LANGUAGES",
    "TARGET_LANGUAGES",
    "TOPICS",
    "StarterSplit",
    "base_path",
    "build_language",
    "build_pool",
    "encoder_path",
]
