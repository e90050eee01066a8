"""CSV, Parquet, Arrow and hub datasets as numbered rows."""

from __future__ import annotations

import csv
import os
import socket
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq

from compass_core.errors import DataError, TransientError
from compass_core.reading.files import DataFile, HubDataset
from compass_core.reading.jsonfiles import Numbered
from compass_core.reading.lines import (
    MAX_LINE_BYTES,
    check_not_html,
    expansion_limit,
    open_data,
    read_lines,
)
from compass_core.reading.problems import Problems, show

BATCH_ROWS: Final = 4096
"""Rows of a columnar file that are turned into Python values at once, at most …"""

BATCH_BYTES: Final = 16 * 2**20
"""… and their size, where rows are long."""

_DELIMITERS: Final = (",", "\t", ";")
_OFFLINE: Final = frozenset({"1", "ON", "YES", "TRUE"})


# --------------------------------------------------------------------------- CSV
def read_csv(file: DataFile, problems: Problems, notes: list[str]) -> Iterator[Numbered]:
    """Yield (line number, row) of a CSV file with a header; every value is text.

    The delimiter is the commonest of comma, tab and semicolon in the header.

    Raises:
        DataError: no header (E03), a column named twice (E09), UTF-16 (E05) or HTML (E18).
    """
    with open_data(file) as stream:
        lines = read_lines(file, stream, problems, notes)
        first = next(lines, None)
        if first is None:
            return
        check_not_html(file, first[2])
        delimiter = max(_DELIMITERS, key=first[2].count)
        csv.field_size_limit(MAX_LINE_BYTES)
        state = _Lines(first, lines)
        reader = csv.reader(state, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataError(f"not valid CSV: {file.label}:1: {error}", code="E04") from error
        _check_header(file, header)
        yield from _records(file, reader, state, header, problems)


class _Lines:
    """Feeds decoded lines to the csv module and remembers where it is."""

    def __init__(self, first: tuple[int, bytes, str], rest: Iterator[tuple[int, bytes, str]]):
        self._first: tuple[int, bytes, str] | None = first
        self._rest = rest
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._first is not None:
            self.number, _, text = self._first
            self._first = None
            return text
        self.number, _, text = next(self._rest)
        return text


def _check_header(file: DataFile, header: list[str]) -> None:
    if not any(name.strip() for name in header):
        raise DataError(f"no header: {file.label}:1 - name the columns in line 1", code="E03")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"column named twice: {file.label}:1 {', '.join(map(show, twice[:5]))} - rename one",
            code="E09",
        )


def _records(
    file: DataFile,
    reader: Iterator[list[str]],
    state: _Lines,
    header: list[str],
    problems: Problems,
) -> Iterator[Numbered]:
    while True:
        start = state.number + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(
                "E04", f"not valid CSV ({error})", f"{file.label}:{start}",
                advice="check the quotes of this line",
            )  # fmt: skip
            continue
        if not record:
            continue
        if len(record) != len(header):
            problems.add(
                "E04", f"{len(record)} fields where the header has {len(header)}",
                f"{file.label}:{start}", advice="quote fields that hold the delimiter",
            )  # fmt: skip
            continue
        yield start, dict(zip(header, record, strict=True))


# --------------------------------------------------------------------------- Parquet and Arrow
def read_parquet(file: DataFile, columns: list[str] | None) -> Iterator[Numbered]:
    """Yield (row number, row) of a Parquet file, only `columns` where given.

    Raises:
        DataError: not a valid Parquet file (E20), or it unpacks beyond the limit (E19).
    """
    try:
        with pq.ParquetFile(file.path, memory_map=True) as table:
            groups = range(table.metadata.num_row_groups)
            size = sum(table.metadata.row_group(index).total_byte_size for index in groups)
            if size > expansion_limit(file.path.stat().st_size):
                raise DataError(
                    f"expands beyond the limit: {file.label} unpacks to {size // 2**20} MB - "
                    "rewrite it if you trust it",
                    code="E19",
                )
            rows = _rows_at_once(table.metadata.num_rows, size)
            yield from number_rows(table.iter_batches(batch_size=rows, columns=columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"not a valid Parquet file: {file.label}: {_short(error)} - write it again", code="E20"
        ) from error


def parquet_columns(file: DataFile) -> list[tuple[str, str]]:
    """Return (name, type) of the columns of a Parquet or Arrow file.

    Raises:
        DataError: not a valid file (E20).
    """
    try:
        if file.format == "parquet":
            schema = pq.read_schema(file.path, memory_map=True)
        else:
            with pa.memory_map(str(file.path)) as source:
                schema = _open_arrow(source).schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "Parquet" if file.format == "parquet" else "Arrow"
        raise DataError(
            f"not a valid {kind} file: {file.label}: {_short(error)} - write it again", code="E20"
        ) from error
    return [(field.name, str(field.type)) for field in schema]


def read_arrow(file: DataFile, columns: list[str] | None) -> Iterator[Numbered]:
    """Yield (row number, row) of an Arrow IPC stream or file.

    Raises:
        DataError: not a valid Arrow file (E20).
    """
    try:
        with pa.memory_map(str(file.path)) as source:
            yield from number_rows(_select(_batches(_open_arrow(source)), columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"not a valid Arrow file: {file.label}: {_short(error)} - save the dataset again",
            code="E20",
        ) from error


def number_rows(batches: Iterator[Any]) -> Iterator[Numbered]:
    """Yield (1-based row number, row) of record batches or tables."""
    number = 0
    for batch in batches:
        step = _rows_at_once(batch.num_rows, batch.nbytes)
        for start in range(0, batch.num_rows, step):
            for row in batch.slice(start, step).to_pylist():
                number += 1
                yield number, row


def _rows_at_once(n_rows: int, n_bytes: int) -> int:
    """Return how many of `n_rows` rows, `n_bytes` large together, to take at once."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * n_rows // max(n_bytes, 1)))


def _open_arrow(source: Any) -> Any:
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source)


def _batches(reader: Any) -> Iterator[Any]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from reader


def _select(batches: Iterator[Any], columns: list[str] | None) -> Iterator[Any]:
    for batch in batches:
        yield batch if columns is None else batch.select(columns)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


# --------------------------------------------------------------------------- hub
def read_hub(hub: HubDataset) -> tuple[list[tuple[str, str]], Iterator[Numbered]]:
    """Return the (name, type) of a hub dataset's columns and its numbered rows.

    Raises:
        DataError: not reachable offline, gated or misspelt (E24), needs code (E23), or has no such
            configuration or split (E25).
        TransientError: the hub did not answer (E24).
    """
    _check_reachable(hub)
    import datasets

    try:
        loaded = datasets.load_dataset(
            hub.id,
            hub.name or None,
            split=hub.split or None,
            revision=hub.revision or None,
            trust_remote_code=False,
        )
    except Exception as error:
        raise _hub_error(hub, error) from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = sorted(loaded)
        if len(splits) != 1:
            raise DataError(f"split needed: {hub.id} - available: {', '.join(splits)}", code="E25")
        loaded = loaded[splits[0]]
    columns = [(name, str(kind)) for name, kind in loaded.features.items()]
    return columns, number_rows(loaded.with_format("arrow").iter(batch_size=BATCH_ROWS))


def _check_reachable(hub: HubDataset) -> None:
    """Fail in milliseconds where there is no network at all, instead of after five retries."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in _OFFLINE
    offline = offline or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in _OFFLINE
    if offline:
        return
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))
    if proxied or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise DataError(_unreachable(hub, f"{host} cannot be resolved"), code="E24") from error


def _unreachable(hub: HubDataset, reason: str) -> str:
    return (
        f"not reachable: {hub.id} ({reason}) - one of: the id is misspelt (and no such file "
        "exists); it is gated (accept its terms, then `hf auth login`); there is no network or "
        "HF_HUB_OFFLINE is set (download it first, or give a local folder)"
    )


def _hub_error(hub: HubDataset, error: Exception) -> Exception:
    text = _short(error)
    kind = type(error).__name__
    if "script" in text and isinstance(error, RuntimeError):
        return DataError(
            f"dataset uses code: {hub.id} - give its Parquet conversion (revision refs/convert/"
            "parquet) or another dataset",
            code="E23",
        )
    if isinstance(error, ValueError) and ("split" in text.lower() or "config" in text.lower()):
        return DataError(f"wrong split or configuration: {hub.id}: {text}", code="E25")
    if kind in ("DatasetNotFoundError", "GatedRepoError", "RepositoryNotFoundError"):
        return DataError(_unreachable(hub, kind), code="E24")
    if "Offline" in text or "Offline" in kind:
        return DataError(_unreachable(hub, "offline mode"), code="E24")
    if isinstance(error, OSError):
        return TransientError(_unreachable(hub, kind), code="E24")
    return DataError(f"cannot be loaded: {hub.id}: {kind}: {text}", code="E24")
