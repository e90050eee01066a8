"""Opening a corpus: its columns at once, its rows one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from compass_core.errors import DataError
from compass_core.reading.files import DataFile, Source
from compass_core.reading.jsonfiles import Numbered, read_json, read_jsonl
from compass_core.reading.problems import Problems, show
from compass_core.reading.tables import (
    parquet_columns,
    read_arrow,
    read_csv,
    read_hub,
    read_parquet,
)

SAMPLE_ROWS: Final = 200
"""Rows whose keys decide which columns a JSON file has."""

RawRow = tuple[str, int, dict[str, Any]]
"""(file label, line or row number, row)."""


@dataclass
class RawCorpus:
    """Rows before any mapping.

    Attributes:
        columns: Names of the columns (of the first rows, where rows name their own).
        rows: Called with the columns that are needed; yields (file label, line, row).
        problems: What was wrong with lines as such.
    """

    columns: list[str]
    rows: Callable[[tuple[str, ...]], Iterator[RawRow]]
    problems: Problems
    kinds: dict[str, str] = field(default_factory=dict)


def open_source(source: Source, notes: list[str]) -> RawCorpus:
    """Open a corpus and look at its columns.

    Raises:
        DataError: a file is not what its name says, or has no records (E03).
    """
    problems = Problems(source.name)
    if source.hub is not None:
        kinds, numbered = read_hub(source.hub)
        if not source.hub.revision:
            notes.append(f"{source.name} has no `revision`: pin a commit to be able to repeat this")
        return RawCorpus(
            [name for name, _ in kinds],
            lambda used: ((source.name, number, row) for number, row in numbered),
            problems,
            dict(kinds),
        )
    kinds_of = _columnar(source.files)
    columns = list(kinds_of) if kinds_of is not None else _sampled_columns(source)

    def rows(used: tuple[str, ...]) -> Iterator[RawRow]:
        for file in source.files:
            for number, row in _numbered(file, problems, notes, list(used)):
                yield file.label, number, row

    return RawCorpus(columns, rows, problems, kinds_of or {})


def _columnar(files: tuple[DataFile, ...]) -> dict[str, str] | None:
    """Return the columns and types of Parquet or Arrow files, which must agree."""
    if files[0].format not in ("parquet", "arrow"):
        return None
    first = dict(parquet_columns(files[0]))
    for file in files[1:]:
        other = dict(parquet_columns(file))
        if other != first:
            column = next(n for n in [*first, *other] if first.get(n) != other.get(n))
            raise DataError(
                f"schemas differ: column {show(column)} is {first.get(column, 'absent')} in "
                f"{files[0].label}, {other.get(column, 'absent')} in {file.label} - rewrite one",
                code="E22",
            )
    return first


def _numbered(
    file: DataFile, problems: Problems, notes: list[str], columns: list[str]
) -> Iterator[Numbered]:
    if file.format == "jsonl":
        return read_jsonl(file, problems, notes)
    if file.format == "json":
        return read_json(file, problems, notes)
    if file.format == "csv":
        return read_csv(file, problems, notes)
    return (read_parquet if file.format == "parquet" else read_arrow)(file, columns)


def _sampled_columns(source: Source) -> list[str]:
    """Return the keys of the first rows; complain about the lines when there are no rows."""
    problems = Problems(source.name)
    columns: dict[str, None] = {}
    for file in source.files:
        for _, row in islice(_numbered(file, problems, [], []), SAMPLE_ROWS):
            columns.update(dict.fromkeys(row))
        if columns:
            return list(columns)
    problems.raise_if_any()
    raise DataError(f"no records: {source.name} - give a file with records", code="E03")
