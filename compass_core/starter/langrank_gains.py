"""Gains between starter languages: what the shipped LangRank model learns from.

No test item, and no translation of one, is ever trained on: the corpus splits its keys once for
all languages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compass_core.config import BaseConfig, EvaluationConfig, StarterData, TrainingConfig
from compass_core.langrank_fitting import LanguageTexts
from compass_core.langrank_gains import GainSettings, measure_gains
from compass_core.records import Example, examples_to_table
from compass_core.seeding import derive_rng
from compass_core.selection.problem import TEXTS_PER_LANGUAGE
from compass_core.starter.corpus import (
    STARTER_LANGUAGES,
    StarterSplit,
    build_language,
    language_rows,
)
from compass_core.starter.paths import base_path

TARGETS = (
    "swh_Latn", "zul_Latn", "yor_Latn", "som_Latn", "tur_Latn", "ind_Latn", "fin_Latn", "por_Latn",
    "ukr_Cyrl", "bel_Cyrl", "kaz_Cyrl", "urd_Arab", "pes_Arab", "mar_Deva", "npi_Deva", "asm_Beng",
)  # fmt: skip
"""Languages whose gains are measured."""

_LEFT_OUT = (
    "isl_Latn", "dan_Latn", "slv_Latn", "eus_Latn", "cym_Latn", "gle_Latn", "hun_Latn",
    "ita_Latn", "lit_Latn", "mkd_Cyrl", "bul_Cyrl", "ces_Latn", "nld_Latn", "spa_Latn",
)  # fmt: skip
SOURCES = tuple(name for name in STARTER_LANGUAGES if name not in _LEFT_OUT)
"""Languages trained on: forty, so that measuring takes ten minutes on a quiet core."""

N_ROWS = 300
N_STEPS = 60
N_ITEMS = 300


def measure_starter_gains(path: Path, *, seed: int = 0) -> int:
    """Measure the gains of `SOURCES` for `TARGETS` and write them to `path`."""
    settings = GainSettings(
        base=BaseConfig(model=str(base_path()), dtype="float32", device="cpu"),
        training=TrainingConfig(
            lora_rank=8,
            lora_alpha=16.0,
            lora_dropout=0.0,
            learning_rate=3e-3,
            batch_size=16,
            min_steps=N_STEPS,
            max_steps=N_STEPS,
            max_length=128,
        ),
        evaluation=EvaluationConfig(),
        seed=seed,
    )
    sources = {name: examples_to_table(_rows(name, seed)) for name in SOURCES}
    targets = {name: examples_to_table(_split(name, seed).test) for name in TARGETS}
    return measure_gains(path, sources, targets, settings)


def starter_texts(
    targets: Iterable[str], sources: Iterable[str], *, seed: int = 0
) -> tuple[dict[str, LanguageTexts], dict[str, LanguageTexts]]:
    """Return what `fit_langrank` reads of the starter corpus: texts of targets and of sources."""
    own = {}
    for target in targets:
        split = _split(target, seed)
        texts = [row.prompt for row in [*split.coverage, *split.usage]]
        own[target] = LanguageTexts(texts, len(split.coverage))
    pool = {}
    for source in sources:
        rows = [row.prompt for row in language_rows(source, "train")]
        pool[source] = LanguageTexts(rows[:TEXTS_PER_LANGUAGE], len(rows))
    return own, pool


def _rows(source: str, seed: int) -> list[Example]:
    rows = language_rows(source, "train")
    order = derive_rng(seed, "langrank", source).permutation(len(rows))[:N_ROWS]
    return [rows[i] for i in sorted(order.tolist())]


def _split(target: str, seed: int) -> StarterSplit:
    data = StarterData()
    return build_language(
        target,
        seed=seed,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=N_ITEMS,
        n_missing_topics=data.n_missing_topics,
    )
