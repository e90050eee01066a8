"""Taking rows out of files: finding them, files without them, text with a mark in their place.

Ids are compared as whole values in tables. In free text an id counts where it stands by itself, and
a text of the row where its first characters stand; short texts ("yes") are left alone, because they
say nothing about the row and stand in every file. So are numbers: an id such as ``4000`` counts in
free text only where it is a whole quoted value, because a count of 4000 rows is not that row.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.storage import ROW_GROUP_ROWS, write_bytes

MARK: Final = b"[removed]"
TEXT_SUFFIXES: Final = frozenset({".json", ".jsonl", ".html", ".md", ".txt", ".csv", ".yaml", ""})
SHORTEST_TEXT: Final = 16
"""Characters from which a text of a row is looked for in free text …"""

_TELLING: Final = 40
"""… by its first characters, so that it is found where it was cut."""

_SHORT_ID: Final = 4
"""Shorter ids count in free text only where they are a whole quoted value or element."""

_QUOTE: Final = rb"(?:[\"']|&quot;|&#x27;)"
_OPENED: Final = rb"(?:(?<=[\"'])|(?<=&quot;)|(?<=&#x27;))"
_CLOSED: Final = rb"(?=\\?" + _QUOTE + rb")"
_NO_KEY: Final = rb"(?!\\?" + _QUOTE + rb"\s*:)"
"""Keys of a mapping are numbers of clusters and windows, never ids."""

_CONSTANTS: Final = frozenset({"true", "false", "null", "none", "yes", "no", "on", "off"})

_TEXTS: Final = ("prompt", "response", "text")
_MAX_TEXT_FILE: Final = 256 * 2**20
_SQLITE_MAGIC: Final = b"SQLite format 3\0"


class Needles:
    """What to look for: ids, and the texts of their rows."""

    def __init__(self, ids: Iterable[str], texts: Iterable[str] = ()) -> None:
        """Take ids, and texts of which the short ones are dropped."""
        self.ids = sorted(set(ids))
        self.texts = sorted({text for text in texts if len(text) >= SHORTEST_TEXT})
        self._values = pa.array(self.ids, pa.string())
        patterns = [pattern for text in self.ids for pattern in _id_patterns(text)]
        patterns += [pattern for text in self.texts for pattern in _text_patterns(text)]
        self._pattern = re.compile(b"|".join(dict.fromkeys(patterns)) or b"(?!)")

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return (n,) which rows of `table` carry one of the ids."""
        found = np.zeros(table.num_rows, dtype=np.bool_)
        for name in id_columns(table.schema):
            hit = pc.is_in(table[name].cast(pa.string()), value_set=self._values)
            found |= np.asarray(hit.fill_null(False))
        return found

    def in_bytes(self, data: bytes) -> bool:
        """Tell whether free text holds any of it."""
        return self._pattern.search(data) is not None

    def redact(self, data: bytes) -> bytes:
        """Return free text with a mark in place of any of it."""
        return self._pattern.sub(MARK, data)

    def in_parquet(self, path: Path) -> bool:
        """Tell whether a Parquet file has a row with one of the ids."""
        return any(mask.any() for mask in self._masks(path))

    def mask_of(self, path: Path) -> NDArray[np.bool_]:
        """Return (n,) which rows of a Parquet file carry one of the ids."""
        return np.concatenate([np.zeros(0, dtype=np.bool_), *self._masks(path)])

    def texts_in(self, path: Path) -> set[str]:
        """Return the texts of the rows with one of the ids."""
        if not self.in_parquet(path):
            return set()
        table = read_rows(path)
        rows = table.filter(pa.array(self.mask(table)))
        names = [name for name in _TEXTS if name in rows.column_names]
        return {text for name in names for text in rows[name].to_pylist() if text}

    def _masks(self, path: Path) -> Iterator[NDArray[np.bool_]]:
        with pq.ParquetFile(path) as file:
            names = id_columns(file.schema_arrow)
            for batch in file.iter_batches(columns=names) if names else ():
                yield self.mask(pa.Table.from_batches([batch]))


def id_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that name a row; `parallel_id` names a group."""
    return [
        field.name
        for field in schema
        if (field.name == "id" or field.name.endswith("_id"))
        and field.name != "parallel_id"
        and _is_text(field.type)
    ]


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def read_rows(path: Path) -> pa.Table:
    """Read a Parquet file whole."""
    return pq.ParquetFile(path).read()


def folder_holds(folder: Path, needles: Needles) -> bool:
    """Tell whether any file below `folder` holds one of the ids or texts."""
    return any(file_holds(path, needles) for path in sorted(folder.rglob("*")) if path.is_file())


def file_holds(path: Path, needles: Needles) -> bool:
    """Tell whether one file does; arrays hold numbers alone."""
    if path.suffix == ".parquet":
        with contextlib.suppress(pa.ArrowException):
            return needles.in_parquet(path)
        return False
    if path.suffix not in TEXT_SUFFIXES or path.stat().st_size > _MAX_TEXT_FILE:
        return False
    return needles.in_bytes(path.read_bytes())


def copy_without(source: Path, target: Path, needles: Needles) -> NDArray[np.int64]:
    """Write the files of an artefact without the rows; return the positions that were left out.

    The main table is ``rows.parquet``. Arrays with one entry per row lose the same entries, other
    tables lose the rows that carry an id, text gets a mark.
    """
    main = source / "rows.parquet"
    table = read_rows(main) if main.is_file() else None
    gone = np.flatnonzero(needles.mask(table)) if table is not None else np.zeros(0, np.int64)
    n_rows = table.num_rows if table is not None else -1
    for path in sorted(source.rglob("*")):
        out = target / path.relative_to(source)
        if path.is_dir():
            out.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".parquet":
            rows = read_rows(path)
            write_rows(out, rows.filter(pa.array(~needles.mask(rows))))
        elif path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            aligned = array.ndim > 0 and len(array) == n_rows
            np.save(out, np.delete(array, gone, axis=0) if aligned else array, allow_pickle=False)
        elif path.suffix in TEXT_SUFFIXES:
            out.write_bytes(needles.redact(path.read_bytes()))
        else:
            out.write_bytes(path.read_bytes())
    return gone.astype(np.int64)


def write_rows(path: Path, rows: pa.Table) -> None:
    """Write a Parquet file anew, atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    write_bytes(path, sink.getvalue().to_pybytes())


def redact_file(path: Path, needles: Needles) -> bool:
    """Take rows and text out of one file in its place; return whether it held any."""
    if not file_holds(path, needles):
        return False
    if path.suffix == ".parquet":
        rows = read_rows(path)
        write_rows(path, rows.filter(pa.array(~needles.mask(rows))))
    else:
        write_bytes(path, needles.redact(path.read_bytes()))
    return True


# --------------------------------------------------------------------------- SQLite
def is_sqlite(path: Path) -> bool:
    """Tell whether a file is an SQLite database."""
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


def sqlite_cells(path: Path, needles: Needles) -> int:
    """Return how many cells of a database hold one of the ids or texts."""
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        return sum(1 for _ in _cells(connection, needles))


def redact_sqlite(path: Path, needles: Needles) -> int:
    """Put the mark into the cells of a database, and drop what SQLite keeps of the old ones.

    Raises:
        sqlite3.OperationalError: another process holds the database.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        cells = list(_cells(connection, needles))
        with connection:
            for table, column, row, value in cells:
                connection.execute(
                    f"UPDATE {_name(table)} SET {_name(column)} = ? WHERE rowid = ?", [value, row]
                )
        if cells:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return len(cells)


def _cells(
    connection: sqlite3.Connection, needles: Needles
) -> Iterator[tuple[str, str, int, str | bytes]]:
    """Yield (table, column, row, what it would be without) of cells that hold something."""
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%' "
        "AND sql NOT LIKE 'CREATE VIRTUAL%'"
    ).fetchall()
    for (table,) in tables:
        columns = [r[1] for r in connection.execute(f"PRAGMA table_info({_name(table)})")]
        if not columns:
            continue
        names = ", ".join(_name(column) for column in columns)
        for row, *values in connection.execute(f"SELECT rowid, {names} FROM {_name(table)}"):
            for column, value in zip(columns, values, strict=True):
                data = value.encode() if isinstance(value, str) else value
                if isinstance(data, bytes) and needles.in_bytes(data):
                    clean = needles.redact(data)
                    yield table, column, row, clean.decode() if isinstance(value, str) else clean


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# --------------------------------------------------------------------------- patterns
def _written(text: str) -> Iterator[bytes]:
    """Yield `text` as files may hold it: plain, in JSON (two ways), in HTML."""
    yield text.encode("utf-8", "replace")
    for ascii_only in (False, True):
        written = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield written.encode("utf-8", "replace")
        yield html.escape(written).encode("utf-8", "replace")
    yield html.escape(text).encode("utf-8", "replace")


def _id_patterns(text: str) -> Iterator[bytes]:
    for written in _written(text):
        escaped = re.escape(written)
        if _is_plain_value(text):
            yield _OPENED + escaped + _CLOSED + _NO_KEY
        elif len(text) < _SHORT_ID:
            yield rb"(?<=[\"'>])" + escaped + rb"(?=[\"'<])"
        else:
            yield rb"(?<![0-9A-Za-z_-])" + escaped + rb"(?![0-9A-Za-z_-])"


def _is_plain_value(text: str) -> bool:
    """Tell whether an id could be a number, a date or a constant of a JSON or YAML file."""
    if not any(char.isalpha() for char in text) or text.lower() in _CONSTANTS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text_patterns(text: str) -> Iterator[bytes]:
    cut = len(text) > _TELLING
    for written in _written(text[:_TELLING]):
        yield re.escape(written) + (rb"(?:[^\"<\n\\]|\\.)*" if cut else b"")
