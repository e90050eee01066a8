"""Files of a usage log: which there are, and their rows, whatever state they are in.

A log is written while it is read, by somebody else. So a half-written last line is left for the
next time, a line that is no record is passed by with its number and a reason, and a file that is no
log at all costs its own rows only.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from compass_core.config import UsageLogConfig
from compass_core.errors import DataError
from compass_core.monitoring.records import RecordReader, Rejected
from compass_core.reading.files import GZIP_MAGIC, exists, expand_home, plain_name, show_name
from compass_core.reading.folders import is_pattern, pattern_root
from compass_core.reading.lines import MAX_LINE_BYTES, expansion_limit

SUFFIXES: Final = {".jsonl": False, ".ndjson": False, ".json": False, ".parquet": True, ".pq": True}
"""Names of files that are read, and whether they are Parquet."""

_BATCH_ROWS: Final = 4096
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_MAX_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a log.

    Attributes:
        path: Where it is.
        label: What messages and the quarantine call it: relative to the log's folder.
    """

    path: Path
    label: str

    def state(self) -> dict[str, int]:
        """Return what tells whether the file changed; a rotated one has another inode."""
        status = self.path.stat()
        return {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "inode": status.st_ino,
        }


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The last line, as long as it is not finished."""

    line: int


class Unread(Rejected):
    """The rest of a file that could not be read this time and may be the next."""


Found = tuple[int, dict[str, Any]] | Rejected | Unfinished
"""(line or row, row), or why there is none."""


def find_files(config: UsageLogConfig, base_folder: Path) -> list[LogFile]:
    """Return the files of a log, sorted by label; an empty folder has none.

    Raises:
        DataError: there is nothing at a path (E01), a URL (E45), or a file that is neither JSONL
            nor Parquet by its name (E18).
    """
    places = (config.path,) if isinstance(config.path, str) else config.path
    found: dict[Path, LogFile] = {}
    for place in places:
        for file in _at(place, base_folder, several=len(places) > 1):
            found.setdefault(file.path.resolve(), file)
    return sorted(found.values(), key=lambda file: file.label)


def _at(place: str, base_folder: Path, *, several: bool) -> Iterator[LogFile]:
    if "://" in place:
        raise DataError(
            f"scheme not allowed: monitoring.log.path is the URL {place[:80]!r} - copy the log to a"
            " folder, or use monitoring.log.database",
            code="E45",
        )
    path = base_folder / expand_home(place)
    if exists(path) and path.is_dir():
        prefix = f"{path.resolve().name}/" if several else ""
        for entry in sorted(path.rglob("*")):
            hidden = any(part.startswith((".", "_")) for part in entry.relative_to(path).parts)
            if not hidden and _suffix(entry) in SUFFIXES and entry.is_file():
                yield LogFile(entry, f"{prefix}{entry.relative_to(path).as_posix()}")
    elif exists(path):
        if not path.is_file():
            raise DataError(
                f"not a regular file: {show_name(path.name)} - give a file or a folder", code="E02"
            )
        yield _single(path, f"{path.parent.resolve().name}/{path.name}" if several else path.name)
    elif is_pattern(place):
        root = pattern_root(path)
        prefix = f"{root.resolve().name}/" if several else ""
        for entry in sorted(root.glob(str(path.relative_to(root)))):
            if entry.is_file():
                yield _single(entry, f"{prefix}{entry.relative_to(root).as_posix()}")
    else:
        raise DataError(
            f"file not found: monitoring.log.path is {place[:200]!r} - check the path (relative "
            "paths start from the configuration file)",
            code="E01",
        )


def _single(path: Path, label: str) -> LogFile:
    if _suffix(path) not in SUFFIXES:
        raise DataError(
            f"format unknown: {show_name(label)} - a usage log is .jsonl (also .gz) or .parquet",
            code="E18",
        )
    return LogFile(path, label)


def _suffix(path: Path) -> str:
    return Path(plain_name(path.name)).suffix.lower()


def read_rows(file: LogFile, reader: RecordReader) -> Iterator[Found]:
    """Yield the rows of one file; what is wrong with it is yielded, not raised."""
    try:
        if SUFFIXES[_suffix(file.path)]:
            yield from _parquet_rows(file, reader)
        else:
            yield from _json_rows(file)
    except FileNotFoundError:
        return  # rotated away between the listing and now
    except (pa.ArrowException, UnicodeDecodeError):
        yield Rejected(0, "E20 file: not a valid Parquet file")
    except OSError as error:
        if error.errno is None:  # the Parquet library says so of damaged pages
            yield Rejected(0, "E20 file: not a valid Parquet file")
        else:
            yield Unread(0, f"E02 file: cannot be read ({os.strerror(error.errno)})")


# --------------------------------------------------------------------------- Parquet
def _parquet_rows(file: LogFile, reader: RecordReader) -> Iterator[Found]:
    with pq.ParquetFile(file.path) as table:
        groups = (table.metadata.row_group(i) for i in range(table.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > expansion_limit(_size(file)):
            yield Rejected(0, "E19 file: unpacks beyond the limit")
            return
        columns = reader.columns(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            for row in python_rows(batch):
                number += 1
                yield (number, row) if isinstance(row, dict) else Rejected(number, row)


def python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield rows as Python values; the reason, for one with a value that Python has none for."""
    batch = _with_plain_times(batch)
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError, LookupError):
        for index in range(batch.num_rows):
            yield _python_row(batch, index)


def _python_row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | str:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return "E05 row: not UTF-8"
        except (ValueError, OverflowError, LookupError):
            temporal = pa.types.is_temporal(column.type)
            return "E49 time: not a time" if temporal else "E20 row: not readable"
    return row


def _with_plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return timestamps in UTC and microseconds.

    The zone is but how they are shown, and may be one that this machine does not know; a finer unit
    has no place in Python's times.
    """
    return pa.RecordBatch.from_arrays(
        [_with_plain_time(column) for column in batch.columns], names=batch.schema.names
    )


def _with_plain_time(column: pa.Array) -> pa.Array:
    kind = column.type
    if not pa.types.is_timestamp(kind):
        return column
    fine = kind.unit == "ns"
    wanted = pa.timestamp("us" if fine else kind.unit, "UTC" if kind.tz else None)
    return column.cast(wanted, safe=not fine)


def _size(file: LogFile) -> int:
    return file.path.stat().st_size


# --------------------------------------------------------------------------- JSON Lines
def _json_rows(file: LogFile) -> Iterator[Found]:
    with _opened(file) as (stream, limit):
        total = number = 0
        try:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if limit is not None and total > limit:
                    yield Rejected(number, "E19 file: unpacks beyond the limit")
                    return
                if number == 1 and line.startswith(_UTF16_BOMS):
                    yield Rejected(0, "E05 file: UTF-16, not UTF-8")
                    return
                if len(line) > MAX_LINE_BYTES:
                    yield Rejected(number, f"E14 line: longer than {MAX_LINE_BYTES // 2**20} MB")
                    total += _skip(stream, line)
                elif line.strip(b" \t\r\n"):
                    yield _json_row(number, line.removeprefix(_UTF8_BOM) if number == 1 else line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            # A packed file that is still being written has no end yet; other damage is damage.
            cut = isinstance(error, EOFError)
            yield Unfinished(number + 1) if cut else Rejected(number + 1, "E19 file: damaged gzip")


@contextlib.contextmanager
def _opened(file: LogFile) -> Iterator[tuple[BinaryIO, int | None]]:
    with file.path.open("rb") as plain:
        packed = plain.read(2) == GZIP_MAGIC
        plain.seek(0)
        if packed:
            with gzip.open(plain, "rb") as unpacked:
                yield cast(BinaryIO, unpacked), expansion_limit(_size(file))
        else:
            yield plain, None


def _skip(stream: BinaryIO, line: bytes) -> int:
    read = 0
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)
        read += len(line)
    return read


def _json_row(number: int, line: bytes) -> Found:
    reason = ""
    try:
        if b"\0" in line:
            reason = "E07 line: control character U+0000"
        elif line.count(b"{") + line.count(b"[") > _MAX_DEPTH and _is_deep(line):
            reason = f"E13 line: nesting deeper than {_MAX_DEPTH}"
        else:
            value = json.loads(line.decode("utf-8"))
            if isinstance(value, dict):
                return number, value
            reason = "E11 line: not a JSON object"
    except UnicodeDecodeError:
        reason = "E05 line: not UTF-8"
    except (ValueError, RecursionError):
        reason = "E04 line: not valid JSON"
    return Rejected(number, reason) if line.endswith(b"\n") else Unfinished(number)


def _is_deep(line: bytes) -> bool:
    """Tell whether brackets, outside of strings, nest too deep."""
    depth, quoted, escaped = 0, False, False
    for char in line:
        if quoted:
            quoted = escaped or char != 0x22
            escaped = not escaped and char == 0x5C
        elif char == 0x22:
            quoted = True
        elif char in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                return True
        elif char in b"]}":
            depth -= 1
    return False
