"""A corpus as rows of examples: find it, map it, check every row, keep what was asked for.

Rows pass in batches of a fixed size, so that a corpus may be larger than memory; `read_corpus` puts
the batches of a small one together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from compass_core.config import CorpusConfig
from compass_core.errors import DataError, LanguageError
from compass_core.languages import canonical_language, language_name
from compass_core.reading.files import Source
from compass_core.reading.mapping import Fields, Role, columns_found, find_fields
from compass_core.reading.opening import open_source
from compass_core.reading.problems import show
from compass_core.reading.rows import Columns, RowConverter, RowError, report
from compass_core.reading.sources import PLACEHOLDER, find_source
from compass_core.records import EXAMPLE_SCHEMA
from compass_core.storage import ROW_GROUP_ROWS, write_tables

MAX_BATCH_CHARS: Final = 16 * 2**20
"""Characters after which a batch ends early."""

MAX_LANGUAGES_SHOWN: Final = 8
"""Other languages that a note lists."""

MAX_UNKNOWN_LANGUAGES: Final = 200
"""A column with more different values that are no language is no column of languages."""

_MAX_COUNTED: Final = 1_000
"""Different values of a column that are counted for a message."""

_SPLIT_COLUMN: Final = "split"

IsForgotten = Callable[[str], bool]


def read_corpus(
    config: CorpusConfig,
    *,
    language: str | None,
    role: Role,
    base_folder: Path,
    label: str = "",
    forgotten: IsForgotten | None = None,
) -> tuple[pa.Table, list[str]]:
    """Read one corpus into memory.

    Args:
        config: Where it is, how its columns are named, and which rows to keep.
        language: Canonical code of the language to keep; None (a pool) keeps all languages.
        role: ``usage`` needs prompts only, ``test`` needs right answers, ``coverage`` and ``pool``
            need prompts with responses, or plain text.
        base_folder: Folder that relative paths start from (the configuration file's).
        label: Name of the file among those of its corpus, when it is read as a shard.
        forgotten: Tells of an id whether its row must not be used; such rows are left out.

    Returns:
        The rows (``EXAMPLE_SCHEMA``, in the file's order; none when the corpus has none of this
        language) and notes for the user about what was skipped, ignored or assumed.

    Raises:
        DataError: the corpus cannot be found, read or mapped, or rows cannot be used; all bad rows
            are counted and the first ones named by file and line.
        TransientError: the hub did not answer.
    """
    reader = CorpusReader(config, language, role, base_folder, label, forgotten)
    return pa.concat_tables([EXAMPLE_SCHEMA.empty_table(), *reader.tables()]), reader.notes


def write_corpus(
    config: CorpusConfig,
    out: Path,
    *,
    language: str | None,
    role: Role,
    base_folder: Path,
    label: str = "",
    forgotten: IsForgotten | None = None,
    batch_rows: int = ROW_GROUP_ROWS,
) -> tuple[int, list[str]]:
    """Read one corpus of any size into the Parquet file `out`, a batch at a time.

    Args, checks and errors are those of `read_corpus`; after an error `out` is a torn file that
    whoever owns its folder (a stage's draft) throws away.

    Returns:
        The number of rows, and notes for the user.
    """
    reader = CorpusReader(config, language, role, base_folder, label, forgotten)
    return write_tables(out, reader.tables(batch_rows), EXAMPLE_SCHEMA), reader.notes


# --------------------------------------------------------------------------- reading
class CorpusReader:
    """Filters raw rows, converts the rest, and remembers what it left out."""

    def __init__(
        self,
        config: CorpusConfig,
        language: str | None,
        role: Role,
        base_folder: Path,
        label: str,
        forgotten: IsForgotten | None = None,
    ) -> None:
        self.config = config
        self.language = canonical_language(language) if language else None
        self.role = role
        self.notes: list[str] = []
        self.source = _source(config, base_folder, self.language, label)
        self.is_shard = bool(label)
        raw = open_source(self.source, self.notes)
        self.found = find_fields(config, role, raw.columns, self.source.name)
        self.notes += _ignored(raw.columns, self.found)
        self.rows = raw.rows(self.found.used)
        self.converter = RowConverter(
            config, self.found, role, many=self.source.many, forgotten=forgotten
        )
        self.bad = raw.problems
        self.total = 0
        self.filtered = 0
        self.unlicensed = 0
        self.kept: Counter[str] = Counter()
        self.other_languages: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._codes: dict[Any, str | None] = {}
        self._refused: dict[str, str] = {}
        self._other_fixed = False
        self._splits: Counter[str] = Counter()
        self._filters = _filters(config, self.source, self.found)
        self._fixed = self._fixed_language()
        self._excluded_raw = set(config.exclude_languages)
        self._excluded = {_or_none(name) for name in config.exclude_languages} - {None}

    def tables(self, batch_rows: int = ROW_GROUP_ROWS) -> Iterator[pa.Table]:
        """Yield all rows (or as many as `limit` asks for) in tables of `batch_rows`.

        Raises:
            DataError: at the end, when rows cannot be used.
        """
        for _ in self._convert():
            full = len(self.converter.columns.id) >= batch_rows
            if full or self.converter.chars >= MAX_BATCH_CHARS:
                yield self._table()
        if self.converter.columns.id:
            yield self._table()
        self._finish()

    def _convert(self) -> Iterator[None]:
        """Take in the rows one by one; yield after each that was kept."""
        limit, many = self.config.limit, self.source.many
        origins = {file.label: file.origin for file in self.source.files}
        label, number = None, 0
        for file, line, row in self.rows:
            if file != label:
                label, number = file, 0
                self.converter.start_file(file, origins.get(file, self.source.name))
            self.total += 1
            number += 1
            if self._other_fixed or (self._filters and not self._passes(row)):
                self.filtered += 1
                continue
            code = self._fixed or self._language_of(row, file, line)
            if code is None:
                continue
            if limit and self.kept[code] >= limit:
                if self.language is not None:
                    break
                continue
            try:
                if self.converter.add(row, code, line, number if many else self.total):
                    self.kept[code] += 1
                    yield
                else:
                    self.filtered += 1
            except RowError as error:
                report(error, f"{file}:{line}", self.bad)

    def _table(self) -> pa.Table:
        columns = self.converter.take()
        self.unlicensed += columns.licence.count("")
        return _table(columns)

    def _finish(self) -> None:
        """Complain about bad rows, or count them where they may be skipped; add notes."""
        notes = self.notes
        if self.config.bad_rows == "refuse" or not self.kept:
            self.bad.raise_if_any()
        elif self.bad.count:
            notes.append(
                f"{self.source.name}: {self.bad.count} rows skipped ({self.bad.summary()}); "
                f"first: {self.bad.first()}"
            )
        if not self.total and not self.is_shard:
            raise DataError(f"no records: {self.source.name} - give rows", code="E03")
        if not self.kept and not self.is_shard and self._splits.total() == self.total:
            raise DataError(
                f"no split {self.config.split!r}: {self.source.name} - available: "
                f"{', '.join(name for name, _ in self._splits.most_common(10))}",
                code="E25",
            )
        self._note_languages(notes)
        self._note_licences(notes)

    # ----------------------------------------------------------------------- filters
    def _passes(self, row: dict[str, Any]) -> bool:
        for column, allowed in self._filters:
            value = row.get(column)
            if isinstance(value, (list, dict)) or value not in allowed:
                if column == _SPLIT_COLUMN:
                    _count(self._splits, show(value))
                return False
        return True

    def _fixed_language(self) -> str | None:
        if self.config.language:
            fixed = canonical_language(self.config.language)
            if self.language is not None and fixed != self.language:
                self._other_fixed = True
                self.other_languages[fixed] += 1
            return fixed
        filled = PLACEHOLDER in self.config.place or PLACEHOLDER in self.config.name
        if filled and self.language and not self.config.columns.language:
            return self.language
        if not self.found.language:
            raise DataError(
                f"language missing: {self.source.name} has no language column - name it as "
                "`columns.language`, or set `language` when all rows are in one language",
                code="E15",
            )
        return None

    def _language_of(self, row: dict[str, Any], label: str, number: int) -> str | None:
        """Return the row's language when it is wanted, else None."""
        value = row.get(self.found.language)
        try:
            code = self._codes[value]
        except (KeyError, TypeError):
            code = self._resolve_language(value, f"{label}:{number}")
        if code is None:
            return None
        if code in self._excluded or (self.language is not None and code != self.language):
            self.other_languages[code] += 1
            return None
        return code

    def _resolve_language(self, value: Any, place: str) -> str | None:
        """Return the code of a language not seen before; unknown ones matter to a pool only."""
        if isinstance(value, str) and value in self._excluded_raw:
            self._codes[value] = None
            return None
        if not isinstance(value, str) or not value:
            self._unknown_language(value, place, "fill it or remove the row")
            return None
        if value not in self._refused:
            try:
                self._codes[value] = canonical_language(value)
                return self._codes[value]
            except LanguageError as error:
                advice = f"{error.message}; correct it, or list it under `exclude_languages`"
                self._refused[value] = advice
        if len(self._refused) > MAX_UNKNOWN_LANGUAGES:
            raise DataError(
                f"not a column of languages: {self.source.name} {self.found.language} holds "
                f"{len(self._refused)} unknown values up to line {place.rpartition(':')[2]}, the "
                f"last {show(value)} - name another as `columns.language`, or set `language`",
                code="E43",
            )
        self._unknown_language(value, place, self._refused[value])
        return None

    def _unknown_language(self, value: Any, place: str, advice: str) -> None:
        _count(self.unknown, show(value))
        if self.language is None:
            self.bad.add(
                "E43", "unknown language", f"{place} {self.found.language}", got=show(value),
                advice=advice,
            )  # fmt: skip

    # ----------------------------------------------------------------------- notes
    def _note_languages(self, notes: list[str]) -> None:
        if self.unknown and self.language is not None:
            listed = ", ".join(name for name, _ in self.unknown.most_common(5))
            notes.append(f"{self.source.name}: rows of unknown languages left out: {listed}")
        if self.kept or self.language is None:
            if not self.kept and self.role == "pool":
                notes.append(f"{self.source.name}: no rows left of {self.total}")
            return
        name = f"{language_name(self.language)} ({self.language})"
        if self.other_languages:
            most = self.other_languages.most_common(MAX_LANGUAGES_SHOWN)
            seen = ", ".join(f"{code} {count}" for code, count in most)
            notes.append(f"{self.source.name}: 0 rows in {name}; found {seen}")
        else:
            notes.append(
                f"{self.source.name}: 0 rows in {name}; `split`, `where` or `hash_split` left out "
                f"{self.filtered} of {self.total}"
            )

    def _note_licences(self, notes: list[str]) -> None:
        if self.role not in ("coverage", "pool"):
            return
        if self.unlicensed:
            notes.append(
                f"{self.source.name}: {self.unlicensed} of {self.kept.total()} rows have no "
                "licence; set `licence` or `columns.licence`"
            )


def _source(config: CorpusConfig, base_folder: Path, language: str | None, label: str) -> Source:
    """Find the corpus; the file of a shard goes by the name it has among the others."""
    source = find_source(config, base_folder, language)
    if not label:
        return source
    return replace(source, name=label, files=(replace(source.files[0], label=label),), many=True)


def _count(counter: Counter[str], value: str) -> None:
    """Count `value`, unless it would be one more of too many different ones."""
    if value in counter or len(counter) < _MAX_COUNTED:
        counter[value] += 1


def _or_none(name: str) -> str | None:
    try:
        return canonical_language(name)
    except LanguageError:
        return None


def _filters(
    config: CorpusConfig, source: Source, found: Fields
) -> list[tuple[str, frozenset[Any]]]:
    filters: list[tuple[str, frozenset[Any]]] = []
    for column, allowed in config.where.items():
        values = allowed if isinstance(allowed, list) else [allowed]
        filters.append((column, _either_type(values)))
    if config.split and not source.split_done:
        if _SPLIT_COLUMN not in found.used:
            raise DataError(
                f"no split {config.split!r}: {source.name} has no splits and no `split` column - "
                "leave `split` out, or use `where` or `hash_split`",
                code="E25",
            )
        filters.insert(0, (_SPLIT_COLUMN, frozenset({config.split})))
    return filters


def _either_type(values: list[Any]) -> frozenset[Any]:
    """Let `where: {grade: 12}` match a CSV's text and the text "12" match a number."""
    both = set(values) | {str(value) for value in values}
    both |= {int(v) for v in values if isinstance(v, str) and v.isascii() and v.isdigit()}
    return frozenset(both)


def _ignored(columns: list[str], found: Fields) -> list[str]:
    ignored = [column for column in columns if column not in found.used]
    if not ignored:
        return []
    return [f"columns not used: {columns_found(ignored).removeprefix('columns found: ')}"]


def _table(columns: Columns) -> pa.Table:
    arrays = {
        part.name: pa.array(getattr(columns, part.name), type=EXAMPLE_SCHEMA.field(part.name).type)
        for part in dataclass_fields(columns)
    }
    return pa.Table.from_arrays(
        [arrays[name] for name in EXAMPLE_SCHEMA.names], schema=EXAMPLE_SCHEMA
    )
