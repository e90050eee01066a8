"""Fit an offline encoder on a person's own parallel rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compass_core.config import ColumnMapping, CorpusConfig
from compass_core.errors import DataError
from compass_core.ngram_encoder import NgramRecipe, fit_ngram_encoder
from compass_core.reading import read_corpus
from tasks.settings import is_forgotten


def fit_from_file(
    path: Path, output: Path, *, text: str, split: str, dimension: int, seed: int
) -> dict[str, Any]:
    """Fit an encoder on rows that share a ``parallel_id`` and write it to `output`.

    Args:
        path: Any corpus file with a language, a text and a parallel id per row.
        output: Folder to write; `embedding.encoder` takes it.
        text: Column with the text.
        split: Rows whose ``split`` column says so; empty: all rows.
        dimension: Length of an embedding.
        seed: Seed of the fit.

    Raises:
        DataError: rows without a parallel id, or no text in two languages.
    """
    corpus = CorpusConfig(path=str(path), split=split, columns=ColumnMapping(prompt=text))
    rows, _notes = read_corpus(
        corpus, language=None, role="usage", base_folder=Path.cwd(), forgotten=is_forgotten()
    )
    parallel: dict[str, dict[str, str]] = {}
    for row in rows.select(["parallel_id", "language", "prompt"]).to_pylist():
        if row["parallel_id"]:
            parallel.setdefault(row["parallel_id"], {})[row["language"]] = row["prompt"]
    shared = {key: texts for key, texts in parallel.items() if len(texts) > 1}
    if not shared:
        raise DataError(
            f"{path} has no parallel rows: an encoder is fitted on rows of different languages "
            "with the same `parallel_id`. Found "
            f"{len(parallel)} ids, each in one language only."
        )
    fit_ngram_encoder(shared, output, recipe=NgramRecipe(dim=dimension), seed=seed)
    languages = {language for texts in shared.values() for language in texts}
    return {"n_rows": len(shared), "n_languages": len(languages)}
