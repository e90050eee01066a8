"""Lines of a text file, one at a time and within limits: encoding, gzip, line length, expansion."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

from compass_core.errors import DataError
from compass_core.reading.files import DataFile
from compass_core.reading.problems import Problems

MAX_LINE_BYTES: Final = 10 * 2**20
"""Longest line (one record) that is parsed."""

MAX_EXPANSION: Final = 100
"""A gzip file may grow by this factor …"""

FREE_EXPANSION_BYTES: Final = 256 * 2**20
"""… and to this size whatever the factor."""

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_data(file: DataFile) -> Iterator[BinaryIO]:
    """Open `file` for reading, unpacked.

    Raises:
        DataError: damaged gzip data (E19), or the file changed while it was read (E21).
    """
    before = file.path.stat()
    try:
        if file.gzipped:
            with gzip.open(file.path, "rb") as stream:
                yield cast(BinaryIO, stream)
        else:
            with file.path.open("rb") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"damaged gzip file: {file.label}: {error} - copy it again", code="E19"
        ) from error
    after = file.path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(
            f"changed while it was read: {file.label} - let the writer finish, then run again",
            code="E21",
        )


def expansion_limit(packed_bytes: int) -> int:
    """Return how many bytes `packed_bytes` may unpack to."""
    return max(FREE_EXPANSION_BYTES, MAX_EXPANSION * packed_bytes)


def read_lines(
    file: DataFile, stream: BinaryIO, problems: Problems, notes: list[str]
) -> Iterator[tuple[int, bytes, str]]:
    """Yield (line number, bytes, text) of every line that can be decoded.

    Raises:
        DataError: UTF-16 (E05), HTML (E18), or more data than the gzip limit (E19).
    """
    limit = expansion_limit(file.path.stat().st_size) if file.gzipped else None
    total = 0
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = _check_head(file, line, notes)
        total += len(line)
        if limit is not None and total > limit:
            raise too_large(file)
        if len(line) > MAX_LINE_BYTES:
            total += _skip_line(stream, line, limit)
            problems.add(
                "E14", f"line longer than {MAX_LINE_BYTES // 2**20} MB", f"{file.label}:{number}",
                advice="split the record",
            )  # fmt: skip
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(
                "E05", "not UTF-8", f"{file.label}:{number} byte {error.start + 1}",
                got=f"0x{line[error.start]:02x}", advice="save the file as UTF-8",
            )  # fmt: skip
            continue
        yield number, line, text


def too_large(file: DataFile) -> DataError:
    """Return the error of a packed file that expands beyond the limit."""
    return DataError(
        f"expands beyond the limit: {file.label} unpacks to more than "
        f"{expansion_limit(file.path.stat().st_size) // 2**20} MB (ratio {MAX_EXPANSION}) "
        "- unpack it yourself if you trust it",
        code="E19",
    )


def check_not_html(file: DataFile, text: str) -> None:
    """Refuse a web page that was saved under a data file's name."""
    if text.lstrip()[:1] == "<":
        raise DataError(
            f"looks like HTML, not {file.format.upper()}: {file.label}:1 - the download probably "
            "failed; open the file and download again",
            code="E18",
        )


def _check_head(file: DataFile, line: bytes, notes: list[str]) -> bytes:
    if line.startswith(_UTF16_BOMS) or b"\0" in line[:4]:
        raise DataError(
            f"encoding UTF-16 or UTF-32: {file.label}:1 - convert the file to UTF-8", code="E05"
        )
    if line.startswith(_UTF8_BOM):
        notes.append(f"{file.label} starts with a byte order mark; it was skipped")
        return line[len(_UTF8_BOM) :]
    return line


def _skip_line(stream: BinaryIO, line: bytes, limit: int | None) -> int:
    """Read to the end of an over-long line without keeping it; return the bytes read."""
    read = 0
    while line and not line.endswith(b"\n") and (limit is None or read <= limit):
        line = stream.readline(MAX_LINE_BYTES)
        read += len(line)
    return read
