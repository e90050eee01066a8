"""From whatever the user has to rows of one schema: one artefact per corpus and language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from compass_core import starter
from compass_core.adaptation.bases import base_fingerprint, check_base
from compass_core.config import CorpusConfig, Recipe, StarterData
from compass_core.embedding import encoder_fingerprint
from compass_core.errors import DataError
from compass_core.languages import language_name
from compass_core.reading import Role, check_overlap, corpus_fingerprint, read_corpus
from compass_core.records import EXAMPLE_SCHEMA, ArtifactRef, examples_to_table
from compass_core.storage import (
    Draft,
    fingerprint,
    read_table,
    sha256_file,
    write_json,
    write_table,
)
from tasks.caching import ModelRef, stage
from tasks.preflight import check_training
from tasks.settings import open_store

STARTER = "starter"
ROLES = ("usage", "coverage", "pool", "test")


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run is made from, by place and by content.

    Attributes:
        corpora: By role, the folder that relative paths start from and the corpus's content.
        encoder: The multilingual encoder.
        base: The frozen language model.
    """

    corpora: Mapping[str, ModelRef]
    encoder: ModelRef
    base: ModelRef


@task(name="check-sources", cache_policy=NO_CACHE)
def check_sources(recipe: Recipe, base_folder: str) -> Sources:
    """Check models and corpora before anything expensive starts, and fingerprint them.

    Raises:
        InputError: a model or corpus cannot be used.
    """
    folder = Path(base_folder)
    base_path = model_path(recipe.base.model, folder)
    check_base(base_path)
    check_training(recipe, base_path)
    encoder_path = model_path(recipe.embedding.encoder, folder, encoder=True)
    return Sources(
        corpora={
            role: ModelRef(base_folder, _content(corpus_config(recipe, role), folder))
            for role in ROLES
        },
        encoder=ModelRef(
            encoder_path, encoder_fingerprint(encoder_path, recipe.embedding.revision)
        ),
        base=ModelRef(base_path, base_fingerprint(base_path, recipe.base.revision)),
    )


def model_path(name: str, base_folder: Path, *, encoder: bool = False) -> str:
    """Return a local folder or a hub id for a model's name in the configuration."""
    if name == STARTER:
        return str(starter.encoder_path() if encoder else starter.base_path())
    local = base_folder / Path(name).expanduser()
    return str(local.resolve()) if local.exists() else name


def corpus_config(recipe: Recipe, role: str) -> CorpusConfig | StarterData | None:
    """Return the configuration of one corpus; None where the user has none."""
    if isinstance(recipe.data, StarterData):
        return recipe.data
    found: CorpusConfig | None = getattr(recipe.data, role)
    return found


def _content(corpus: CorpusConfig | StarterData | None, base_folder: Path) -> str:
    if corpus is None:
        return "none"
    if isinstance(corpus, StarterData):
        return fingerprint("cldr", version("babel"), sha256_file(Path(starter.corpus.__file__)))
    return corpus_fingerprint(corpus, base_folder)


@stage("ingest", 1)
def ingest(
    draft: Draft,
    language: str,
    role: Role,
    corpus: CorpusConfig | StarterData | None,
    content: ModelRef,
    seed: int,
) -> None:
    """Read one corpus: ``rows.parquet`` and ``notes.json``; the pool is for all languages."""
    notes: list[str] = []
    if corpus is None:
        rows = EXAMPLE_SCHEMA.empty_table()
    elif isinstance(corpus, StarterData):
        rows = _starter_rows(language, role, corpus, seed)
    else:
        rows, notes = read_corpus(
            corpus, language=language or None, role=role, base_folder=Path(content.path)
        )
    if rows.num_rows == 0 and role != "coverage":
        assert isinstance(corpus, CorpusConfig)
        name = f" for {language_name(language)} ({language})" if language else ""
        raise DataError(
            f"{corpus.path} has no {role} rows{name}. Check `language`, `split` and `where` of "
            f"`data.{role}`, or take the language out of `languages`.",
            code="E51",
        )
    draft.rows = rows.num_rows
    write_table(draft.folder / "rows.parquet", rows)
    write_json(draft.folder / "notes.json", notes)


def _starter_rows(language: str, role: str, data: StarterData, seed: int) -> pa.Table:
    if role == "pool":
        return examples_to_table(starter.build_pool())
    if language not in starter.STARTER_LANGUAGES:
        near = ", ".join(language_name(code) for code in starter.STARTER_LANGUAGES[:8])
        raise DataError(
            f"The starter's corpus has no {language_name(language)} ({language}). It has "
            f"{len(starter.STARTER_LANGUAGES)} languages ({near}, …). Choose one of them, or bring "
            "your own data with `data.kind: files`.",
            code="E51",
        )
    split = starter.build_language(
        language,
        seed=seed,
        n_coverage=data.n_coverage,
        n_usage=data.n_usage,
        n_test=data.n_test,
        n_missing_topics=data.n_missing_topics,
    )
    return examples_to_table(getattr(split, role))


@stage("check-corpora", 1)
def check_corpora(
    draft: Draft,
    language: str,
    usage: ArtifactRef,
    coverage: ArtifactRef,
    test: ArtifactRef,
    pool: ArtifactRef,
) -> None:
    """Check the corpora against each other: ``notes.json``.

    Raises:
        DataError: usage overlaps the test set, or the pool has no other language.
    """
    store = open_store()
    tables = [read_table(store.folder(r) / "rows.parquet") for r in (usage, coverage, test)]
    pool_languages = read_table(store.folder(pool) / "rows.parquet", ["language"])["language"]
    others = sorted(set(pool_languages.unique().to_pylist()) - {language})
    if not others:
        raise DataError(
            f"The pool for {language_name(language)} has no other language (found only "
            f"{language}). Add data of other languages to `data.pool`.",
            code="E51",
        )
    # Pool rows that repeat a test item are taken out before the draw (see `gap_score`), so they
    # need no complaint here; in the user's own coverage they would be trained on.
    notes = check_overlap(usage=tables[0], coverage=tables[1], test=tables[2])
    draft.rows = len(notes)
    write_json(draft.folder / "notes.json", notes)
