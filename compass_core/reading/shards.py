"""A pool of many files as shards: each file is a corpus of its own, so new ones touch no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.config import CorpusConfig
from compass_core.errors import DataError
from compass_core.reading.keys import id_key
from compass_core.reading.problems import show
from compass_core.reading.sources import find_source

_ID_BATCH: Final = 65_536


@dataclass(frozen=True, slots=True)
class Shard:
    """A corpus that is read on its own.

    Attributes:
        config: The corpus; of a file among many, that file alone.
        label: What the file is called among the others, in ids and messages; empty for a corpus
            that is one shard.
    """

    config: CorpusConfig
    label: str = ""


def pool_shards(corpus: CorpusConfig, base_folder: Path) -> list[Shard]:
    """Return the shards of a pool: one per file of a folder, pattern or list, by name.

    A single file, a hub id and a `datasets` folder are one shard, and so is a corpus with a `limit`
    (which counts over all its files). A shard depends on its own file alone: its rows' ids and
    sources, and the settings in its key, stay what they are when files come or go.

    Raises:
        DataError: the corpus cannot be found.
    """
    if corpus.limit:
        return [Shard(corpus)]
    source = find_source(corpus, base_folder)
    if not source.many:
        return [Shard(corpus)]
    split = "" if source.split_done else corpus.split
    return [
        Shard(
            corpus.model_copy(
                update={
                    "path": str(file.path.absolute()),
                    "name": "",
                    "split": split,
                    "source": corpus.source or file.origin,
                }
            ),
            file.label,
        )
        for file in sorted(source.files, key=lambda file: file.label)
    ]


def count_rows(rows: Sequence[Path], columns: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Count the rows of Parquet files by their values in `columns`, a batch in memory at a time."""
    counts: Counter[tuple[str, ...]] = Counter()
    for path in rows:
        with pq.ParquetFile(path, read_dictionary=list(columns)) as file:
            for batch in file.iter_batches(columns=list(columns)):
                counts.update(zip(*batch.to_pydict().values(), strict=True))
    return counts


def check_ids(shards: Sequence[tuple[str, Path]]) -> None:
    """Check that no id occurs in two shards, by 64-bit keys (8 bytes of memory a row).

    Args:
        shards: Label and row file of each; ids within one are unique already.

    Raises:
        DataError: an id is in two shards (E17); names the id and both.
    """
    keys = [_keys(path) for _, path in shards]
    together = np.sort(np.concatenate([np.zeros(0, dtype=np.uint64), *keys]))
    repeated = together[1:][together[1:] == together[:-1]]
    if not len(repeated):
        return
    wanted = int(repeated[0])
    labels = [label for (label, _), own in zip(shards, keys, strict=True) if (own == wanted).any()]
    place = next(path for (_, path), own in zip(shards, keys, strict=True) if (own == wanted).any())
    example = next(text for batch in _ids(place) for text in batch if id_key(text) == wanted)
    raise DataError(
        f"duplicate ids: {len(np.unique(repeated))} ids are in more than one file of the pool, for "
        f"example {show(example)} in {labels[0]} and {labels[-1]} - make ids unique, map "
        "another column as `id`, or leave a copy of a file out",
        code="E17",
    )


def _keys(rows: Path) -> NDArray[np.uint64]:
    parts = [np.fromiter(map(id_key, batch), dtype=np.uint64) for batch in _ids(rows)]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])


def _ids(rows: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(rows) as file:
        for batch in file.iter_batches(_ID_BATCH, columns=["id"]):
            yield batch.column(0).to_pylist()
