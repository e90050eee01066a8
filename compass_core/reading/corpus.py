"""A corpus as a table of examples: find it, map it, check every row, keep what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from compass_core.config import CorpusConfig
from compass_core.errors import DataError, LanguageError
from compass_core.languages import canonical_language, language_name
from compass_core.reading.mapping import Fields, Role, columns_found, find_fields
from compass_core.reading.opening import RawRow, open_source
from compass_core.reading.problems import Problems, show
from compass_core.reading.rows import RowConverter, RowError, report
from compass_core.reading.sources import PLACEHOLDER, Source, find_source
from compass_core.records import EXAMPLE_SCHEMA

MAX_LANGUAGES_SHOWN: Final = 8
"""Other languages that a note lists."""

_SPLIT_COLUMN: Final = "split"


def read_corpus(
    config: CorpusConfig, *, language: str | None, role: Role, base_folder: Path
) -> tuple[pa.Table, list[str]]:
    """Read one corpus.

    Args:
        config: Where it is, how its columns are named, and which rows to keep.
        language: Canonical code of the language to keep; None (a pool) keeps all languages.
        role: ``usage`` needs prompts only, ``test`` needs right answers, ``coverage`` and ``pool``
            need prompts with responses, or plain text.
        base_folder: Folder that relative paths start from (the configuration file's).

    Returns:
        The rows (``EXAMPLE_SCHEMA``, in the file's order; none when the corpus has none of this
        language) and notes for the user about what was skipped, ignored or assumed.

    Raises:
        DataError: the corpus cannot be found, read or mapped, or rows cannot be used; all bad rows
            are counted and the first ones named by file and line.
        TransientError: the hub did not answer.
    """
    wanted = canonical_language(language) if language else None
    source = find_source(config, base_folder, wanted)
    notes: list[str] = []
    raw = open_source(source, notes)
    found = find_fields(config, role, raw.columns, source.name)
    notes += _ignored(raw.columns, found)
    reader = _Reader(config, wanted, role, source, found, raw.problems)
    reader.read(raw.rows(found.used))
    reader.finish(notes)
    return _table(reader.converter), notes


# --------------------------------------------------------------------------- reading
class _Reader:
    """Filters raw rows, converts the rest, and remembers what it left out."""

    def __init__(
        self,
        config: CorpusConfig,
        language: str | None,
        role: Role,
        source: Source,
        found: Fields,
        bad: Problems,
    ) -> None:
        self.config = config
        self.language = language
        self.role = role
        self.source = source
        self.found = found
        self.converter = RowConverter(config, found, role, source.name)
        self.bad = bad
        self.total = 0
        self.filtered = 0
        self.kept: Counter[str] = Counter()
        self.other_languages: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._codes: dict[Any, str | None] = {}
        self._refused: dict[str, str] = {}
        self._other_fixed = False
        self._splits: Counter[str] = Counter()
        self._filters = _filters(config, source, found)
        self._fixed = self._fixed_language()
        self._excluded_raw = set(config.exclude_languages)
        self._excluded = {_or_none(name) for name in config.exclude_languages} - {None}

    def read(self, rows: Iterator[RawRow]) -> None:
        """Take in all rows (or as many as `limit` asks for, of one language)."""
        limit = self.config.limit
        for label, number, row in rows:
            self.total += 1
            if self._other_fixed or (self._filters and not self._passes(row)):
                self.filtered += 1
                continue
            code = self._fixed or self._language_of(row, label, number)
            if code is None:
                continue
            if limit and self.kept[code] >= limit:
                if self.language is not None:
                    break
                continue
            place = f"{label}:{number}"
            try:
                if self.converter.add(row, code, place, self.total):
                    self.kept[code] += 1
                else:
                    self.filtered += 1
            except RowError as error:
                report(error, place, self.bad)

    def finish(self, notes: list[str]) -> None:
        """Complain about bad rows, or count them where they may be skipped; add notes."""
        if self.config.bad_rows == "refuse" or not self.kept:
            self.bad.raise_if_any()
        elif self.bad.count:
            notes.append(
                f"{self.source.name}: {self.bad.count} rows skipped ({self.bad.summary()}); "
                f"first: {self.bad.first()}"
            )
        if not self.total:
            raise DataError(f"no records: {self.source.name} - give rows", code="E03")
        if not self.kept and self._splits.total() == self.total:
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
                    self._splits[show(value)] += 1
                return False
        return True

    def _fixed_language(self) -> str | None:
        if self.config.language:
            fixed = canonical_language(self.config.language)
            if self.language is not None and fixed != self.language:
                self._other_fixed = True
                self.other_languages[fixed] += 1
            return fixed
        filled = PLACEHOLDER in self.config.path or PLACEHOLDER in self.config.name
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
        self._unknown_language(value, place, self._refused[value])
        return None

    def _unknown_language(self, value: Any, place: str, advice: str) -> None:
        self.unknown[show(value)] += 1
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
        unknown = sum(1 for licence in self.converter.columns.licence if not licence)
        if unknown:
            notes.append(
                f"{self.source.name}: {unknown} of {sum(self.kept.values())} rows have no licence; "
                "set `licence` or `columns.licence`"
            )


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


def _table(converter: RowConverter) -> pa.Table:
    columns = converter.columns
    arrays = {
        part.name: pa.array(getattr(columns, part.name), type=EXAMPLE_SCHEMA.field(part.name).type)
        for part in dataclass_fields(columns)
    }
    return pa.Table.from_arrays(
        [arrays[name] for name in EXAMPLE_SCHEMA.names], schema=EXAMPLE_SCHEMA
    )
