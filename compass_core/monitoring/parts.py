"""Observations of one space on the disk: append-only Parquet parts named by the arrivals they hold.

``000000000000-000000004095.parquet`` holds arrivals 0 to 4095. Parts are published by one rename.
Merged parts replace the ones whose arrivals they hold, so a kill between the two leaves both, and
the smaller ones are not looked at. All writers hold the language's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import StoreError
from compass_core.monitoring.privacy import KEY_BYTES
from compass_core.monitoring.windows import OBSERVATION_SCHEMA, key_array
from compass_core.storage import ROW_GROUP_ROWS, write_bytes

MAX_PARTS: Final = 48
"""More small parts than this are merged."""

MERGED_ROWS: Final = 500_000
"""A part of this size is left alone."""

_SUFFIX: Final = ".parquet"
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One file: the first and the last arrival it was made for, some of which may be forgotten."""

    first: int
    last: int
    path: Path


class Parts:
    """The parts of one space."""

    def __init__(self, folder: Path) -> None:
        """Take `folder`; it is made with the first part."""
        self.folder = folder

    def all(self) -> list[Part]:
        """Return the parts that count, in the order of arrival."""
        return _outermost(self._files())

    def next_arrival(self) -> int:
        """Return the number of the next observation."""
        return max((part.last for part in self._files()), default=-1) + 1

    def write(self, table: pa.Table) -> None:
        """Append `table` (of ``OBSERVATION_SCHEMA``, arrivals in a row); durable on return."""
        arrivals = table["arrival"]
        self._publish(table, arrivals[0].as_py(), arrivals[-1].as_py())

    def columns(self, names: list[str], above: int = -1) -> Iterator[pa.Table]:
        """Yield columns of each part, of arrivals above `above`; a part at a time in memory."""
        for part in self.all():
            if part.last > above:
                table = self._read(part, [*names, "arrival"])
                yield table.filter(pc.field("arrival") > above) if part.first <= above else table

    def select(self, keep: pc.Expression, *, first: int = 0, last: int | None = None) -> pa.Table:
        """Return the observations that `keep` holds for, of arrivals from `first` to `last`."""
        tables = [
            self._read(part, None).filter(keep).cast(OBSERVATION_SCHEMA)
            for part in self.all()
            if part.last >= first and (last is None or part.first <= last)
        ]
        return pa.concat_tables([OBSERVATION_SCHEMA.empty_table(), *tables])

    def compact(self) -> None:
        """Merge neighbours of small parts when there are many; remove what is left of others."""
        parts = self.all()
        if len(parts) > MAX_PARTS:
            for group in _groups(parts):
                tables = [self._read(part, None) for part in group]
                self._publish(pa.concat_tables(tables), group[0].first, group[-1].last)
        self.tidy()

    def tidy(self) -> None:
        """Remove merged parts' pieces and what a kill left half-written."""
        current = {part.path for part in self.all()}
        for part in self._files():
            if part.path not in current:
                part.path.unlink(missing_ok=True)
        for torn in self.folder.glob(f".*{_SUFFIX}.*.tmp"):
            torn.unlink(missing_ok=True)

    def remove(self, keys: frozenset[bytes]) -> int:
        """Remove the observations of these record keys from every file; return how many."""
        self.tidy()
        wanted = pa.array(sorted(keys), pa.binary(KEY_BYTES))
        removed = 0
        for part in self.all():
            table = self._read(part, None)
            hit = pc.is_in(table["record_key"], value_set=wanted)
            count = pc.sum(hit).as_py() or 0
            if count:
                removed += count
                self._publish(table.filter(pc.invert(hit)), part.first, part.last)
        return removed

    def count(self, keys: frozenset[bytes]) -> int:
        """Return how many observations have one of these record keys."""
        wanted = pa.array(sorted(keys), pa.binary(KEY_BYTES))
        tables = self.columns(["record_key"])
        hits = (pc.sum(pc.is_in(t["record_key"], value_set=wanted)).as_py() or 0 for t in tables)
        return sum(hits)

    def _files(self) -> list[Part]:
        found = []
        for path in self.folder.glob(f"[0-9]*{_SUFFIX}"):
            first, _, last = path.stem.partition("-")
            found.append(Part(int(first), int(last), path))
        return found

    def _publish(self, table: pa.Table, first: int, last: int) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(
            table.cast(OBSERVATION_SCHEMA), sink, compression="zstd", row_group_size=ROW_GROUP_ROWS
        )
        name = f"{first:0{_DIGITS}d}-{last:0{_DIGITS}d}{_SUFFIX}"
        write_bytes(self.folder / name, sink.getvalue().to_pybytes())

    def _read(self, part: Part, columns: list[str] | None) -> pa.Table:
        try:
            return pq.ParquetFile(part.path).read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"The observations {part.path} cannot be read: {' '.join(str(error).split())[:120]}"
                ". Restore the file from a back-up, or delete it: the logs that are still there "
                "are not read again by themselves."
            ) from error


def _outermost(parts: Iterable[Part]) -> list[Part]:
    """Return the parts that no other one holds, by arrival."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.first, -part.last)):
        if not kept or part.last > kept[-1].last:
            kept.append(part)
    return kept


def _groups(parts: list[Part]) -> list[list[Part]]:
    """Return runs of neighbours to merge, each of about `MERGED_ROWS` rows at most."""
    groups: list[list[Part]] = []
    rows = MERGED_ROWS
    for part in parts:
        size = part.last - part.first + 1
        if rows + size > MERGED_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(part)
        rows += size
    return [group for group in groups if len(group) > 1]


class KnownRecords:
    """What was observed before: 16 bytes a record, sorted by the first half of its keyed hash.

    Two of ten million records share that half with probability 3 in a million; the second of such a
    pair would be taken for the first.
    """

    def __init__(self, parts: Parts) -> None:
        """Start with nothing; `refresh` reads."""
        self._parts = parts
        self._newest = -1
        self._keys: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._contents: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    def refresh(self) -> None:
        """Take in what came since, from whatever process."""
        for table in self._parts.columns(["record_key", "text_key", "time"], above=self._newest):
            if table.num_rows:
                self._add(halves(table["record_key"]), contents(table))
                self._newest = max(self._newest, pc.max(table["arrival"]).as_py())

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """Return (n,) which `keys` are known, and the content that each came with."""
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.bool_), np.zeros(len(keys), dtype=np.uint64)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[places] == keys, self._contents[places]

    def _add(self, keys: NDArray[np.uint64], found: NDArray[np.uint64]) -> None:
        together = np.concatenate([self._keys, keys])
        order = np.argsort(together, kind="stable")
        self._keys = together[order]
        self._contents = np.concatenate([self._contents, found])[order]


def halves(keys: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return (n,) the first halves of a column of keyed hashes."""
    both = key_array(keys).view("<u8")
    return np.ascontiguousarray(both[:: KEY_BYTES // 8])


def contents(rows: pa.Table) -> NDArray[np.uint64]:
    """Return (n,) what tells records of one id apart: prompt and time."""
    times = np.asarray(rows["time"].cast(pa.int64()))
    return halves(rows["text_key"]) ^ times.view(np.uint64)
