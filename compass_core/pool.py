"""A pool on disk: shards of rows and vectors that are never in memory as a whole.

A shard is one row file and the artefacts made of it. Rows are numbered through the shards in their
order. Vectors stay memory-mapped; texts are read a batch or a row group at a time; only columns of
few values (language, source) are held, as codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.storage import read_array

Codes = NDArray[np.int32]
Floats = NDArray[np.float32]
Rows = NDArray[np.integer[Any]]

_BATCH_ROWS = 8_192


class VectorSource(Protocol):
    """What selection needs of vectors: an array, memory-mapped, in parts, or centred on the fly."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Floats: ...


@dataclass(frozen=True, slots=True)
class PoolShard:
    """The files of one shard.

    Attributes:
        rows: Parquet file of `EXAMPLE_SCHEMA`.
        vectors: ``.npy`` file, (N, d) unit norm, in the order of the rows.
        sketch: Folder of `selection.sketches`.
    """

    rows: Path
    vectors: Path | None = None
    sketch: Path | None = None


class Pool:
    """Shards seen as one pool."""

    def __init__(self, shards: Sequence[PoolShard]) -> None:
        """Open the shards; only their footers are read.

        Raises:
            DataError: there is no shard.
        """
        if not shards:
            raise DataError("A pool needs at least one shard of rows.", code="E51")
        self.shards = tuple(shards)
        counts = [pq.ParquetFile(shard.rows).metadata.num_rows for shard in shards]
        self.bounds: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def n_rows(self) -> int:
        """N."""
        return int(self.bounds[-1])

    def codes(self, column: str) -> tuple[Codes, list[str]]:
        """Return (N,) codes and the values they stand for, of a column of few values."""
        names: dict[str, int] = {}
        parts: list[Codes] = []
        for shard in self.shards:
            for batch in pq.ParquetFile(shard.rows).iter_batches(columns=[column]):
                encoded = batch.column(0).fill_null("").dictionary_encode()
                values = encoded.dictionary.to_pylist()
                place = np.array([names.setdefault(v, len(names)) for v in values], dtype=np.int32)
                parts.append(place[encoded.indices.to_numpy(zero_copy_only=False)])
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), list(names)

    def column(self, name: str) -> NDArray[np.str_]:
        """Return (N,) values of a column of few and short values."""
        codes, names = self.codes(name)
        values: NDArray[np.str_] = np.asarray(names, dtype=np.str_)[codes]
        return values

    @cached_property
    def languages(self) -> NDArray[np.str_]:
        """(N,) canonical code of each row's language."""
        return self.column("language")

    @cached_property
    def vectors(self) -> ShardedVectors:
        """(N, d) vectors of all shards, memory-mapped.

        Raises:
            DataError: a shard has no vectors, not one per row, or those of another encoder.
        """
        parts = []
        for shard, size in zip(self.shards, np.diff(self.bounds), strict=True):
            if shard.vectors is None:
                raise DataError(f"The shard {shard.rows} has not been embedded.")
            part = read_array(shard.vectors, mmap=True)
            if len(part) != size:
                raise DataError(
                    f"{shard.vectors} holds {len(part)} vectors for {size} rows. Delete the "
                    "folder and run the same command again; it will be made anew.",
                    code="E30",
                )
            if size:
                parts.append(part)
        return ShardedVectors(parts)

    def take(self, rows: Rows, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of the given numbers, in their order; a row group is read at a time."""
        wanted = np.asarray(rows, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        parts: list[pa.Table] = []
        for number, shard in enumerate(self.shards):
            low, high = np.searchsorted(ascending, self.bounds[number : number + 2])
            inside = ascending[low:high] - self.bounds[number]
            parts += list(_take_by_group(shard.rows, inside, columns))
        if not parts:
            return (
                pq.ParquetFile(self.shards[0].rows)
                .schema_arrow.empty_table()
                .select(columns or pq.ParquetFile(self.shards[0].rows).schema_arrow.names)
            )
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(place)

    def iter_texts(self, batch_rows: int = _BATCH_ROWS) -> Iterator[list[str]]:
        """Yield what is embedded of each row (the prompt, or the response without one), batched."""
        for shard in self.shards:
            file = pq.ParquetFile(shard.rows)
            for batch in file.iter_batches(batch_rows, columns=["prompt", "response"]):
                yield texts_of(batch)


class ShardedVectors:
    """Memory-mapped parts that look like one array of vectors."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        """Put `parts`, (n_i, d) each, one after the other.

        Raises:
            DataError: the parts differ in dimension: they come from different encoders.
        """
        dimensions = {part.shape[1] for part in parts}
        if len(dimensions) > 1:
            raise DataError(
                f"The pool's shards hold vectors of dimensions {sorted(dimensions)}: they come "
                "from different encoders. Embed all of them with one.",
                code="E50",
            )
        self.parts = tuple(parts)
        self.bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(int)
        self.shape = (int(self.bounds[-1]), dimensions.pop() if dimensions else 0)
        self.dtype = np.dtype(np.float32)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Floats:
        if isinstance(rows, slice):
            return self._slice(*rows.indices(len(self)))
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        shard = np.searchsorted(self.bounds, wanted, side="right") - 1
        for number in np.unique(shard):
            inside = np.flatnonzero(shard == number)
            found[inside] = self.parts[number][wanted[inside] - self.bounds[number]]
        return found

    def _slice(self, start: int, stop: int, step: int) -> Floats:
        if step != 1:
            return self[np.arange(start, stop, step)]
        parts = [
            part[max(start - low, 0) : stop - low]
            for part, low in zip(self.parts, self.bounds, strict=False)
            if low < stop and start < low + len(part)
        ]
        if len(parts) == 1:
            return np.asarray(parts[0], dtype=np.float32)
        empty = [np.zeros((0, self.shape[1]), dtype=np.float32)]
        return np.concatenate([*empty, *parts]).astype(np.float32, copy=False)


def texts_of(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """Return what is embedded of each row: the prompt, or the response where there is none."""
    columns = rows.select(["prompt", "response"]).to_pydict()
    return [p or r for p, r in zip(columns["prompt"], columns["response"], strict=True)]


def _take_by_group(
    path: Path, ascending: NDArray[np.int64], columns: list[str] | None
) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    start = 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        low, high = np.searchsorted(ascending, [start, stop])
        if high > low:
            yield file.read_row_group(group, columns=columns).take(ascending[low:high] - start)
        start = stop
