"""Corpora as the stages see them: references to rows and vectors, and the parts made of them.

The pool is a list of shards. Each is read, embedded, sketched and assigned once, whatever comes
beside it later; the ``pool`` artefact only names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from compass_core.pool import Pool, PoolShard
from compass_core.records import ArtifactRef
from compass_core.selection.centring import LanguageSums, sum_by_language
from compass_core.selection.sketches import Sketch, read_sketch, write_sketch
from compass_core.storage import Draft, read_array, read_json, write_array, write_json
from tasks.caching import part, stage
from tasks.settings import open_store

ROWS_FILE, VECTORS_FILE, SHARDS_FILE = "rows.parquet", "vectors.npy", "shards.json"


class Corpus(TypedDict):
    """A corpus, or one shard of the pool: what was read, and its embedding."""

    rows: ArtifactRef
    vectors: ArtifactRef


@stage("pool", 1)
def gather_pool(draft: Draft, language: str, shards: list[Corpus]) -> None:
    """Name the shards of the pool, in order: ``shards.json``; sketch those that have none yet.

    Raises:
        DataError: the shards' vectors come from different encoders.
    """
    whole = open_corpora(shards)
    # Sketched here once, rather than by every language at the same time.
    parts = [ref for s in shards for ref in (s["rows"], s["vectors"], sketch(s["rows"]))]
    draft.rows = whole.n_rows
    draft.provenance |= {
        "language": language,
        "dimension": whole.vectors.shape[1],
        "parts": [ref.path for ref in parts],
    }
    named = [{"rows": s["rows"].to_dict(), "vectors": s["vectors"].to_dict()} for s in shards]
    write_json(draft.folder / SHARDS_FILE, named)


def pool_shards(pool: ArtifactRef) -> list[Corpus]:
    """Return the shards of a pool."""
    named = read_json(open_store().folder(pool) / SHARDS_FILE)
    return [
        Corpus(
            rows=ArtifactRef.from_dict(shard["rows"]),
            vectors=ArtifactRef.from_dict(shard["vectors"]),
        )
        for shard in named
    ]


def open_pool(pool: ArtifactRef) -> Pool:
    """Open a pool by its reference."""
    return open_corpora(pool_shards(pool))


def open_corpora(corpora: Sequence[Corpus]) -> Pool:
    """Open corpora one after the other, as if they were one."""
    store = open_store()
    return Pool(
        [
            PoolShard(
                rows=store.folder(corpus["rows"]) / ROWS_FILE,
                vectors=store.folder(corpus["vectors"]) / VECTORS_FILE,
            )
            for corpus in corpora
        ]
    )


@part("sketch", 1)
def sketch(draft: Draft, rows: ArtifactRef) -> None:
    """Sketch one corpus or shard: keys, MinHashes and character n-grams, whatever the language."""
    draft.rows = write_sketch(open_store().folder(rows) / ROWS_FILE, draft.folder)


def open_sketch(rows: ArtifactRef) -> Sketch:
    """Return the sketch of a corpus; it is made when it is first asked for."""
    return read_sketch(open_store().folder(sketch(rows)))


def open_sketches(corpora: Sequence[Corpus]) -> list[Sketch]:
    """Return the sketches of all corpora."""
    return [open_sketch(corpus["rows"]) for corpus in corpora]


@part("language-sums", 1)
def language_sums(draft: Draft, rows: ArtifactRef, vectors: ArtifactRef) -> None:
    """Add up the vectors of one corpus by language, for centring."""
    corpus = open_corpora([{"rows": rows, "vectors": vectors}])
    found = sum_by_language(corpus.vectors, corpus.languages)
    draft.rows = len(found.languages)
    write_json(draft.folder / "languages.json", list(found.languages))
    write_array(draft.folder / "sums.npy", found.sums)
    write_array(draft.folder / "counts.npy", found.counts)


def open_sums(corpus: Corpus) -> LanguageSums:
    """Return the sums of one corpus; they are made when they are first asked for."""
    folder = open_store().folder(language_sums(corpus["rows"], corpus["vectors"]))
    return LanguageSums(
        tuple(read_json(folder / "languages.json")),
        np.asarray(read_array(folder / "sums.npy"), dtype=np.float64),
        np.asarray(read_array(folder / "counts.npy"), dtype=np.int64),
    )
