"""One local file of a corpus: what it is by its name and first bytes, before it is parsed."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from compass_core.config import CorpusConfig
from compass_core.errors import DataError

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow"]

GZIP_MAGIC: Final = b"\x1f\x8b"
SUFFIXES: Final[dict[str, FileFormat]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"7z\xbc\xaf": "a 7z archive",
}
_CODES: Final = {"json": "E18", "jsonl": "E18", "csv": "E18", "parquet": "E20", "arrow": "E20"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file to read.

    Attributes:
        path: Where it is.
        label: What messages call it: relative to the corpus, never an absolute path.
        format: How to read it.
        gzipped: Whether its first bytes say gzip.
        origin: Where its rows come from, unless they say so themselves.
    """

    path: Path
    label: str
    format: FileFormat
    gzipped: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the hub."""

    id: str
    name: str
    split: str
    revision: str


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus that was found.

    Attributes:
        name: What messages call it (file name, folder, pattern or hub id).
        files: Local files, sorted by name; empty for a hub dataset.
        hub: The hub dataset, if it is one.
        split_done: Whether choosing files has already applied `split`.
        many: Whether there may be more than one file: a folder, a pattern or a list.
    """

    name: str
    files: tuple[DataFile, ...] = ()
    hub: HubDataset | None = None
    split_done: bool = False
    many: bool = False


def take_file(config: CorpusConfig, path: Path, label: str, origin: str = "") -> DataFile:
    """Take the file at `path` for data; `label` is what messages call it.

    Raises:
        DataError: it is no regular file or cannot be read (E02), is empty (E03), an archive, or of
            an unknown format (E18, E20).
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(f"not a regular file: {label} - give a file or a folder", code="E02")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise DataError(
            f"cannot be read: {label} ({error.strerror}) - check its permissions", code="E02"
        ) from error
    if not head:
        raise DataError(f"file is empty: {label} - give a file with records", code="E03")
    format_ = _format(config, label, head)
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"not {format_}: {label} is {what} - unpack it", code=_CODES[format_])
    gzipped = head.startswith(GZIP_MAGIC)
    return DataFile(path, label, format_, gzipped, origin or plain_name(path.name))


def one_format(files: list[DataFile], name: str) -> tuple[DataFile, ...]:
    """Return `files` when all are of one format.

    Raises:
        DataError: they are not (E22).
    """
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise DataError(
            f"mixed formats: {name} holds {' and '.join(formats)} files - give one of them",
            code="E22",
        )
    return tuple(files)


def _format(config: CorpusConfig, label: str, head: bytes) -> FileFormat:
    if config.format in ("jsonl", "json", "csv", "parquet"):
        return config.format
    suffix = Path(plain_name(label)).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "json"
    raise DataError(
        f"format unknown: {label} - name it .jsonl, .json, .csv or .parquet, or set `format`",
        code="E18",
    )


def exists(path: Path) -> bool:
    """Tell whether there is something at `path`, which may be no possible path at all."""
    try:
        return path.exists()
    except OSError:
        return False


def expand_home(text: str) -> Path:
    """Return `text` as a path; ``~`` is the home folder where the user exists."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def plain_name(name: str) -> str:
    """Return a file's name without ``.gz``."""
    return name.removesuffix(".gz")


def show_name(name: str) -> str:
    """Return a file name for a message."""
    return ascii(name[:80])
