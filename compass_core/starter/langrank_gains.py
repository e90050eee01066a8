"""Measured gains between starter languages: what the shipped LangRank model learns from.

For every source one adapter is trained on its rows alone; its gain for a target is the accuracy on
the target's test items with that adapter minus the accuracy without any. No test item, and no
translation of one, is ever trained on (the corpus splits its keys once for all languages).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from compass_core.adaptation.jobs import ADAPTER_FOLDER, evaluate_job, train_job
from compass_core.config import StarterData
from compass_core.langrank_fitting import LanguageTexts
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
from compass_core.storage import write_table, write_text

logger = logging.getLogger(__name__)

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
"""Languages trained on: forty, so that measuring takes ten minutes."""

N_ROWS = 300
N_STEPS = 60
N_ITEMS = 300

_TRAINING = {
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
    "learning_rate": 3e-3,
    "batch_size": 16,
    "min_steps": N_STEPS,
    "max_steps": N_STEPS,
    "max_length": 128,
}


def measure_gains(
    path: Path,
    *,
    targets: Sequence[str] = TARGETS,
    sources: Sequence[str] = SOURCES,
    seed: int = 0,
) -> int:
    """Train one adapter per source, score it on every target, and write the gains as CSV.

    Args:
        path: File to write: target, source, gain.
        targets: Languages to score.
        sources: Languages to train on; a target is no source of its own.
        seed: Of rows, items and training.

    Returns:
        The number of gains.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = {t: _write(folder / f"test-{t}.parquet", _items(t, seed)) for t in targets}
        before = {t: _accuracy(rows, None, folder) for t, rows in items.items()}
        lines = ["target,source,gain"]
        for source in sources:
            adapter = _train(_write(folder / "rows.parquet", _rows(source, seed)), folder, seed)
            for target in targets:
                if target != source:
                    gain = _accuracy(items[target], adapter, folder) - before[target]
                    lines.append(f"{target},{source},{gain:.6f}")
            logger.info("%s measured: %d gains", source, len(lines) - 1)
    write_text(path, "\n".join(lines) + "\n")
    return len(lines) - 1


def _rows(source: str, seed: int) -> list[Example]:
    rows = language_rows(source, "train")
    order = derive_rng(seed, "langrank", source).permutation(len(rows))[:N_ROWS]
    return [rows[i] for i in sorted(order.tolist())]


def _items(target: str, seed: int) -> list[Example]:
    return _split(target, N_ITEMS, seed).test


def _split(target: str, n_test: int, seed: int) -> StarterSplit:
    data = StarterData()
    return build_language(
        target,
        seed=seed,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=n_test,
        n_missing_topics=data.n_missing_topics,
    )


def starter_texts(
    targets: Iterable[str], sources: Iterable[str], *, seed: int = 0
) -> tuple[dict[str, LanguageTexts], dict[str, LanguageTexts]]:
    """Return what `fit_langrank` reads of the starter corpus: texts of targets and of sources."""
    own = {}
    for target in targets:
        split = _split(target, N_ITEMS, seed)
        texts = [row.prompt for row in [*split.coverage, *split.usage]]
        own[target] = LanguageTexts(texts, len(split.coverage))
    pool = {}
    for source in sources:
        rows = [row.prompt for row in language_rows(source, "train")]
        pool[source] = LanguageTexts(rows[:TEXTS_PER_LANGUAGE], len(rows))
    return own, pool


def _write(path: Path, rows: Sequence[Example]) -> str:
    write_table(path, examples_to_table(rows))
    return str(path)


def _base() -> dict[str, str]:
    return {"model": str(base_path()), "dtype": "float32", "device": "cpu"}


def _train(rows: str, folder: Path, seed: int) -> str:
    out = folder / "trained"
    train_job(
        {
            "rows": [rows],
            "base": _base(),
            "training": _TRAINING,
            "seed": seed,
            "out_folder": str(out),
            "checkpoint_folder": None,
        }
    )
    return str(out / ADAPTER_FOLDER)


def _accuracy(rows: str, adapter: str | None, folder: Path) -> float:
    found = evaluate_job(
        {
            "rows": [rows],
            "base": _base(),
            "evaluation": {},
            "adapter_folder": adapter,
            "out_folder": str(folder / "scored"),
        }
    )
    return float(found["accuracy"])
