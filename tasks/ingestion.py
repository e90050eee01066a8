"""From whatever the user has to rows of one schema: one artefact per corpus and language.

The pool is one artefact per file; a file that is added is read alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from compass_core import starter
from compass_core.adaptation.bases import base_fingerprint, check_base
from compass_core.config import CorpusConfig, Recipe, StarterData, StudyConfig
from compass_core.embedding import encoder_fingerprint
from compass_core.errors import DataError
from compass_core.faults import fault_point
from compass_core.forgotten import Forgotten
from compass_core.languages import language_name
from compass_core.reading import (
    OVERLAP_COLUMNS,
    KnownContents,
    Role,
    check_ids,
    check_overlap,
    corpus_fingerprint,
    count_rows,
    pool_shards,
    write_corpus,
)
from compass_core.records import EXAMPLE_SCHEMA, ArtifactRef, examples_to_table
from compass_core.selection.exclusion import contaminated_rows
from compass_core.selection.identity import strategy_identity
from compass_core.selection.langrank import load_ranker
from compass_core.starter.paths import langrank_path
from compass_core.storage import (
    Draft,
    fingerprint,
    read_json,
    read_table,
    sha256_file,
    write_json,
    write_table,
)
from tasks.caching import ModelRef, part, stage, stage_of_parts
from tasks.pools import open_sketch
from tasks.preflight import check_training
from tasks.settings import compass_home, is_forgotten, open_store

STARTER = "starter"
ROLES: tuple[Role, ...] = ("usage", "coverage", "test")
"""Corpora of one language; the pool belongs to all."""

RETENTION = "retention"
"""Test items that an update must not answer worse; they belong to no target language."""

ENGLISH = "eng_Latn"
_MAX_KNOWN = 10_000
"""Files whose content is remembered."""


@dataclass(frozen=True, slots=True)
class PoolSource:
    """One shard of the pool before it is read; the fields are parameters of `ingest`.

    Attributes:
        corpus: The file, and how to read it.
        content: The folder that relative paths start from and the file's content.
        label: What the file is called among the pool's; empty when the pool is one shard.
    """

    corpus: CorpusConfig | StarterData
    content: ModelRef
    label: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run is made from, by place and by content.

    Attributes:
        corpora: By role, the folder that relative paths start from and the corpus's content.
        pool: The same of every shard of the pool.
        encoder: The multilingual encoder.
        base: The frozen language model.
        strategies: By strategy that takes part: the folder of its model, and what identifies the
            packages and models behind it.
    """

    corpora: Mapping[str, ModelRef]
    pool: tuple[PoolSource, ...]
    encoder: ModelRef
    base: ModelRef
    strategies: Mapping[str, ModelRef]


@task(name="check-sources", cache_policy=NO_CACHE)
def check_sources(recipe: Recipe, base_folder: str) -> Sources:
    """Check models and corpora before anything expensive starts, and fingerprint them.

    Raises:
        InputError: a model or corpus cannot be used.
    """
    folder = Path(base_folder)
    encoder, base = models_of(recipe, base_folder)
    check_training(recipe, base.path)
    with _known_contents() as known:
        corpora = {
            role: ModelRef(base_folder, _content(corpus_config(recipe, role), folder, known))
            for role in (*ROLES, RETENTION)
        }
        pool = tuple(
            PoolSource(corpus, ModelRef(base_folder, _content(corpus, folder, known)), label)
            for corpus, label in _pool_corpora(recipe, folder)
        )
    return Sources(
        corpora=corpora,
        pool=pool,
        encoder=encoder,
        base=base,
        strategies=_strategies(recipe, folder),
    )


def models_of(recipe: Recipe, base_folder: str) -> tuple[ModelRef, ModelRef]:
    """Return encoder and base, by place and by content.

    Raises:
        ModelError: one of them cannot be used.
    """
    base_path = model_path(recipe.base.model, Path(base_folder))
    check_base(base_path)
    encoder_path = model_path(recipe.embedding.encoder, Path(base_folder), encoder=True)
    encoder = encoder_fingerprint(encoder_path, recipe.embedding.revision)
    return (
        ModelRef(encoder_path, encoder),
        ModelRef(base_path, base_fingerprint(base_path, recipe.base.revision)),
    )


def _strategies(recipe: Recipe, base_folder: Path) -> dict[str, ModelRef]:
    """Return what every strategy of a run or study depends on; a missing or wrong one is told now.

    Raises:
        ConfigError: a strategy needs an optional package that is not installed (E66).
        ModelError: the model of `langrank` cannot be used.
    """
    others = recipe.strategies if isinstance(recipe, StudyConfig) else recipe.baselines
    found = {}
    for name in sorted({recipe.selection.strategy, *others}):
        model = None
        if name == "langrank":
            given = recipe.selection.langrank_model
            own = base_folder / Path(given).expanduser()
            model = langrank_path() if given == STARTER else own
            load_ranker(model)
        found[name] = ModelRef(str(model or ""), strategy_identity(name, model))
    return found


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


def retention_language(recipe: Recipe) -> str:
    """Return the language to read the retention set for; empty reads all of it."""
    return ENGLISH if isinstance(recipe.data, StarterData) else ""


def _pool_corpora(
    recipe: Recipe, base_folder: Path
) -> list[tuple[CorpusConfig | StarterData, str]]:
    if isinstance(recipe.data, StarterData):
        return [(recipe.data, "")]
    return [(shard.config, shard.label) for shard in pool_shards(recipe.data.pool, base_folder)]


def _content(
    corpus: CorpusConfig | StarterData | None, base_folder: Path, known: KnownContents
) -> str:
    if corpus is None:
        return "none"
    if isinstance(corpus, StarterData):
        return fingerprint("cldr", version("babel"), sha256_file(Path(starter.corpus.__file__)))
    return corpus_fingerprint(corpus, base_folder, known)


@contextlib.contextmanager
def _known_contents() -> Iterator[KnownContents]:
    """Lend what is known of files hashed before, and keep what was learned.

    It is a shortcut only: without it, or with a torn one, every file is read and hashed.
    """
    path = compass_home() / "store" / "contents.json"
    try:
        before = {str(key): str(value) for key, value in read_json(path).items()}
    except (OSError, ValueError, AttributeError):
        before = {}
    known = dict(before)
    yield known
    if known != before:
        write_json(path, dict(list(known.items())[-_MAX_KNOWN:]))


@stage("ingest", 2)
def ingest(
    draft: Draft,
    language: str,
    role: Role,
    corpus: CorpusConfig | StarterData | None,
    content: ModelRef,
    seed: int,
    label: str = "",
) -> None:
    """Read one corpus, or the file `label` of the pool: ``rows.parquet`` and ``notes.json``.

    The pool is read for all languages at once. Rows go to the disk batch by batch.

    Raises:
        DataError: the corpus cannot be used, has no rows (a file among many may have none), or is
            not what it was when the run was checked (E21).
    """
    notes: list[str] = []
    out = draft.folder / "rows.parquet"
    if isinstance(corpus, CorpusConfig):
        draft.rows, notes = write_corpus(
            corpus,
            out,
            language=language or None,
            role=role,
            base_folder=Path(content.path),
            label=label,
            forgotten=is_forgotten(),
        )
        _check_unchanged(corpus, content, label)
        if not (draft.rows or label or role == "coverage"):
            raise _no_rows(corpus.place, role, language)
    else:
        starter_rows = _starter_rows(language, role, corpus, seed) if corpus else None
        rows = EXAMPLE_SCHEMA.empty_table() if starter_rows is None else starter_rows
        rows = Forgotten(compass_home()).without(rows)
        draft.rows = rows.num_rows
        write_table(out, rows)
    write_json(draft.folder / "notes.json", notes)


@stage_of_parts("ingest")
def ingest_corpora(
    language: str,
    corpora: Mapping[str, tuple[CorpusConfig | StarterData | None, ModelRef]],
    seed: int,
    pool: Sequence[ArtifactRef],
) -> Iterator[tuple[str, ArtifactRef]]:
    """Read the corpora of one language, by role, and check them against each other: see `ingest`.

    Yields:
        The rows of usage, coverage and test set by role, and the notes as ``check``.

    Raises:
        DataError: a corpus cannot be used, or they cannot be used together.
    """
    found = {}
    for role in ROLES:
        fault_point(f"{role}.start", language)
        corpus, content = corpora[role]
        found[role] = ingest.part(language, role, corpus, content, seed)
        yield role, found[role]
    fault_point("check.start", language)
    yield "check", check_corpora(language, **found, pool=pool)


def _check_unchanged(corpus: CorpusConfig, content: ModelRef, label: str) -> None:
    """Refuse rows of one content under the key of another; costs a look at the file's times."""
    with _known_contents() as known:
        found = _content(corpus, Path(content.path), known)
    if found != content.sha256:
        raise DataError(
            f"changed since the run began: {label or corpus.place} - let the writer finish, then "
            "run again",
            code="E21",
        )


def _no_rows(place: str, role: str, language: str) -> DataError:
    name = f" for {language_name(language)} ({language})" if language else ""
    return DataError(
        f"{place} has no {role} rows{name}. Check `language`, `split` and `where` of "
        f"`data.{role}`, or take the language out of `languages`.",
        code="E51",
    )


@stage("check-pool", 1)
def check_pool(draft: Draft, shards: dict[str, ArtifactRef]) -> None:
    """Check the shards of a pool, by label, against each other.

    Raises:
        DataError: none has any rows (E51), or an id is in two of them (E17).
    """
    if not any(rows.rows for rows in shards.values()):
        raise _no_rows("Every file of the pool", "pool", "")
    store = open_store()
    check_ids([(label, store.folder(rows) / "rows.parquet") for label, rows in shards.items()])
    draft.rows = sum(rows.rows for rows in shards.values())


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


@part("check-corpora", 2)
def check_corpora(
    draft: Draft,
    language: str,
    usage: ArtifactRef,
    coverage: ArtifactRef,
    test: ArtifactRef,
    pool: Sequence[ArtifactRef],
) -> None:
    """Check the corpora against each other: ``notes.json``.

    Raises:
        DataError: usage overlaps the test set, or the pool has no other language.
    """
    store = open_store()
    tables = [
        read_table(store.folder(rows) / "rows.parquet", list(OVERLAP_COLUMNS))
        for rows in (usage, coverage, test)
    ]
    files = [store.folder(rows) / "rows.parquet" for rows in pool]
    if not count_rows(files, ["language"]).keys() - {(language,)}:
        raise DataError(
            f"The pool for {language_name(language)} has no other language (found only "
            f"{language}). Add data of other languages to `data.pool`.",
            code="E51",
        )
    # Pool rows that repeat a test item are taken out before the draw (see `gap_score`), so they
    # need no complaint here; in the user's own coverage they would be trained on.
    notes = check_overlap(usage=tables[0], coverage=tables[1], test=tables[2])
    found = contaminated_rows(open_sketch(coverage), open_sketch(test)).removed
    if found.num_rows:
        ids = [f"{row['id']} ({row['reason']} {row['other_id']})" for row in found[:3].to_pylist()]
        notes.append(
            f"{found.num_rows} of {tables[1].num_rows} coverage examples resemble test items, and "
            f"coverage is trained on: {', '.join(ids)}. Take them out, or read the score with care."
        )
    draft.rows = len(notes)
    write_json(draft.folder / "notes.json", notes)
