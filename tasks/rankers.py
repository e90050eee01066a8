"""LangRank's model on a person's own data: measure gains, train on them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compass_core.config import AdaptConfig, CorpusConfig, StarterData
from compass_core.config_files import load_config
from compass_core.errors import DataError
from compass_core.langrank_fitting import LanguageTexts, fit_langrank, read_gains
from compass_core.langrank_gains import GainSettings, measure_gains
from compass_core.languages import canonical_language
from compass_core.pool import texts_of
from compass_core.reading import read_corpus
from compass_core.reading.corpus import CorpusReader
from compass_core.reading.overlap import overlapping_rows
from compass_core.selection.drawing import example_keys
from compass_core.selection.problem import TEXTS_PER_LANGUAGE
from tasks.ingestion import model_path
from tasks.settings import is_forgotten

_BATCH_ROWS = 8_192


def fit_from_gains(gains_path: Path, config_path: Path, out: Path, *, seed: int) -> dict[str, Any]:
    """Train a model on a file of gains and the texts of a configuration's data.

    Args:
        gains_path: CSV with target, source and gain.
        config_path: Configuration whose ``data`` holds the texts of all these languages.
        out: Folder to write.
        seed: Of the training.

    Raises:
        DataError: the gains or the data cannot be used, or lack a language.
        ConfigError: the configuration cannot be used, or LightGBM is not installed.
    """
    gains = read_gains(gains_path)
    config = load_config(config_path, [], AdaptConfig)
    targets, sources = set(gains.targets.tolist()), set(gains.sources.tolist())
    folder = config_path.resolve().parent
    if isinstance(config.data, StarterData):
        from compass_core.starter.langrank_gains import starter_texts

        own, pool = starter_texts(targets, sources, seed=config.seed)
    else:
        pool = _pool_texts(config.data.pool, folder)
        own = {
            target: _own_texts(target, [config.data.coverage, config.data.usage], folder)
            for target in sorted(targets)
        }
    return fit_langrank(gains, own, pool, out, trained_on=gains_path.name, seed=seed)


def measure_from_config(
    config_path: Path, out: Path, *, sources: Sequence[str], n_rows: int
) -> int:
    """Measure the gains of a configuration's pool languages for its target languages.

    Args:
        config_path: Configuration: ``data.pool`` holds the sources, ``data.test`` the items of
            ``languages``; base, training and evaluation are its own.
        out: CSV file to write; an unfinished one of the same configuration is continued.
        sources: Languages of the pool to train on; empty: all.
        n_rows: Rows trained on of each source.

    Returns:
        The number of gains.

    Raises:
        DataError: a target has no test items, or a source no rows (E51), or `out` holds gains of
            something else (E44).
        ConfigError: the configuration cannot be used.
    """
    config = load_config(config_path, [], AdaptConfig)
    folder = config_path.resolve().parent
    if isinstance(config.data, StarterData):
        raise DataError(
            "The gains of the starter corpus are shipped. Measure those of your own files: a "
            "configuration whose `data` names a pool and a test set.",
            code="E15",
        )
    targets = {
        name: read_corpus(
            config.data.test,
            language=name,
            role="test",
            base_folder=folder,
            forgotten=is_forgotten(),
        )[0]
        for name in config.languages
    }
    reader = CorpusReader(config.data.pool, None, "pool", folder, "", is_forgotten())
    everything = pa.concat_tables(targets.values())
    pool = sample_rows(
        (rows.filter(~overlapping_rows(rows, everything)) for rows in reader.tables(_BATCH_ROWS)),
        n_rows,
    )
    wanted = [canonical_language(name) for name in sources] or sorted(pool)
    empty = [n for n in wanted if n not in pool] + [n for n in targets if not targets[n].num_rows]
    if empty:
        raise DataError(
            f"No rows of {', '.join(empty)}: a source needs rows in data.pool (besides "
            "those that repeat test items), a target needs items in data.test.",
            code="E51",
        )
    base = config.base.model_copy(update={"model": model_path(config.base.model, folder)})
    settings = GainSettings(base, config.training, config.evaluation, config.seed)
    return measure_gains(out, {name: pool[name] for name in wanted}, targets, settings)


def sample_rows(tables: Iterable[pa.Table], n_rows: int) -> dict[str, pa.Table]:
    """Return up to `n_rows` rows of each language, those of the smallest keys, by key."""
    kept: dict[str, pa.Table] = {}
    for table in tables:
        for name in pc.unique(table["language"]).to_pylist():
            own = table.filter(pc.equal(table["language"], name))
            both = pa.concat_tables([kept[name], own]) if name in kept else own
            order = np.argsort(example_keys(both["id"].to_pylist()), kind="stable")[:n_rows]
            kept[name] = both.take(order)
    return dict(sorted(kept.items()))


def _own_texts(target: str, corpora: list[CorpusConfig | None], folder: Path) -> LanguageTexts:
    """Return the texts of a target, its coverage first, and the number of coverage rows."""
    coverage, usage = (
        [] if corpus is None else _texts(corpus, target, role, folder)
        for corpus, role in zip(corpora, ("coverage", "usage"), strict=True)
    )
    return LanguageTexts([*coverage, *usage][:TEXTS_PER_LANGUAGE], len(coverage))


def _texts(corpus: CorpusConfig, target: str, role: Any, folder: Path) -> list[str]:
    rows, _notes = read_corpus(
        corpus, language=target, role=role, base_folder=folder, forgotten=is_forgotten()
    )
    return texts_of(rows)


def _pool_texts(corpus: CorpusConfig, folder: Path) -> dict[str, LanguageTexts]:
    """Return the texts of smallest keys of every language, as a selection sees them."""
    reader = CorpusReader(corpus, None, "pool", folder, "", is_forgotten())
    return sample_by_language(reader.tables(_BATCH_ROWS))


def sample_by_language(tables: Iterable[pa.Table]) -> dict[str, LanguageTexts]:
    """Return each language's rows in number and up to 1,000 of its texts, by smallest keys."""
    kept: dict[str, list[tuple[int, str]]] = {}
    counts: dict[str, int] = {}
    for table in tables:
        keys = example_keys(table["id"].to_pylist()).tolist()
        for name, key, text in zip(
            table["language"].to_pylist(), keys, texts_of(table), strict=True
        ):
            counts[name] = counts.get(name, 0) + 1
            heap = kept.setdefault(name, [])
            push = heapq.heappush if len(heap) < TEXTS_PER_LANGUAGE else heapq.heappushpop
            push(heap, (-key, text))
    return {
        name: LanguageTexts([text for _, text in sorted(heap, reverse=True)], counts[name])
        for name, heap in kept.items()
    }
