"""Rows of the data folder, and the parallel rows an encoder may be fitted on."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compass_core.encoder_fitting import MIN_SHARED_ROWS
from compass_core.errors import DataError, LanguageError, bounded_list
from compass_core.languages import canonical_language

ENCODER_ROWS = 800
"""Texts per language wanted for the encoder; other splits and files help where there are fewer."""

MAX_ENCODER_ROWS = 3_000
"""Parallel rows taken at most; kernels grow with their square."""

MIN_HELPER_SHARE = 0.5
"""A file of another kind helps everybody only if its items are in this share of the languages:
many items of a few languages would bend the space towards what those few talk about."""

RESCUE_ROWS = 200
"""Parallel rows taken on top from a file for languages that have hardly any."""

MIN_ENCODER_ROWS = 60
"""With fewer no encoder is worth fitting."""

_HELPERS = ("sib200", "multiq", "tico19", "xquad", "global_mmlu_lite", "exams")
"""Files with translations, in the order in which they help out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file; `language` canonical where it can be, `text` with its options."""

    id: str
    language: str
    text: str
    topic: str
    split: str
    parallel_id: str


@dataclass
class DataFolder:
    """Data files by name, each read once.

    Attributes:
        folder: Where ``<name>.jsonl.gz`` or ``<name>.jsonl`` lie.
    """

    folder: Path
    _read: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def rows(self, name: str) -> list[Row]:
        """Return the rows of one file.

        Raises:
            DataError: it does not exist, or a line is not a row.
        """
        if name not in self._read:
            self._read[name] = _read_rows(self._path(name))
        return self._read[name]

    def has(self, name: str) -> bool:
        """Say whether a file of this name exists."""
        return any((self.folder / f"{name}{suffix}").is_file() for suffix in _SUFFIXES)

    def find(self, names: Sequence[str], ids: Sequence[str], what: str) -> list[Row]:
        """Return the rows with the given ids, in their order.

        Raises:
            DataError: an id is in none of the files.
        """
        by_id = {row.id: row for name in names for row in self.rows(name)}
        missing = [wanted for wanted in ids if wanted not in by_id]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} {what} are in none of {', '.join(names)}:\n"
                f"{bounded_list(missing, limit=5)}",
                code="E51",
            )
        return [by_id[wanted] for wanted in ids]

    def _path(self, name: str) -> Path:
        for suffix in _SUFFIXES:
            if (self.folder / f"{name}{suffix}").is_file():
                return self.folder / f"{name}{suffix}"
        have = sorted({path.name.partition(".")[0] for path in self.folder.glob("*.jsonl*")})
        raise DataError(
            f"{self.folder} has no {name}.jsonl.gz. It has: {', '.join(have) or 'nothing'}.",
            code="E01",
        )


_SUFFIXES = (".jsonl.gz", ".jsonl")


def encoder_rows(
    data: DataFolder, names: Sequence[str], *, used: Iterable[str], languages: Iterable[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return parallel rows that have nothing to do with a case, and where they are from.

    First the train splits of the case's own files; where they leave fewer than `ENCODER_ROWS` texts
    per language, the other splits but test, then other files whose items most languages have. Any
    file also gives `RESCUE_ROWS` more for languages that would have next to none. No row shares its
    parallel id with `used`, and only `languages` take part, those with too few translations
    excepted.

    Args:
        data: The data folder.
        names: The case's files.
        used: Parallel ids of the case's usage and existing rows.
        languages: Canonical codes of target and pool.

    Returns:
        Parallel id → language → text, and a list such as ``["241 of sib200 train"]``.

    Raises:
        DataError: fewer than `MIN_ENCODER_ROWS` such rows.
    """
    taken, wanted = set(used), set(languages)
    found: dict[str, dict[str, str]] = {}
    told: list[str] = []
    others = [name for name in _HELPERS if name not in names and data.has(name)]
    steps: list[tuple[str, tuple[str, ...]]] = [(name, ("train",)) for name in names]
    steps += [(name, ("", "dev", "val", "validation")) for name in names]
    steps += [(name, ("", "train", "dev", "val", "validation")) for name in others]
    for name, splits in steps:
        thin = _thin(found, wanted)
        if _texts_per_language(found, wanted) >= ENCODER_ROWS and not thin:
            break
        new = _parallel(data.rows(name), splits, taken | found.keys(), wanted)
        room = _room(found, new, wanted, helper=name not in names)
        if room <= 0:
            room = RESCUE_ROWS
            new = {key: texts for key, texts in new.items() if thin & texts.keys()}
        kept = _spread(new, room)
        found |= kept
        if kept:
            told.append(f"{len(kept)} of {name}" + (f" {splits[0]}" if len(splits) == 1 else ""))
    if len(found) < MIN_ENCODER_ROWS:
        raise DataError(
            f"Only {len(found)} parallel rows are free of the case's usage and existing rows; an "
            f"encoder needs {MIN_ENCODER_ROWS}. Add a file with translations to the data folder.",
            code="E51",
        )
    found = _without_thin(found)
    left_out = wanted - {language for texts in found.values() for language in texts}
    if left_out:
        told.append(f"nothing of {', '.join(sorted(left_out))} (too few translations)")
    return found, told


def _texts_per_language(rows: Mapping[str, dict[str, str]], languages: set[str]) -> float:
    """Return the mean number of texts over `languages`."""
    return sum(len(texts) for texts in rows.values()) / len(languages)


def _room(
    found: Mapping[str, dict[str, str]],
    new: Mapping[str, dict[str, str]],
    languages: set[str],
    *,
    helper: bool,
) -> int:
    """Return how many of the `new` items bring the languages to `ENCODER_ROWS` texts on the mean.

    0 where nothing is wanted, or where a helper's items are in too few of the languages.
    """
    if not new:
        return 0
    share = _texts_per_language(new, languages) / len(new)
    if helper and share < MIN_HELPER_SHARE:
        return 0
    missing = ENCODER_ROWS - _texts_per_language(found, languages)
    return max(0, min(round(missing / share), MAX_ENCODER_ROWS - len(found)))


def _spread(rows: Mapping[str, dict[str, str]], room: int) -> dict[str, dict[str, str]]:
    """Return up to `room` of the items: an equal share for each language first, then as they come.

    Items that all languages have are taken in the order of their ids.
    """
    by_language: dict[str, list[str]] = {}
    for key in sorted(rows):
        for language in rows[key]:
            by_language.setdefault(language, []).append(key)
    share = room // max(len(by_language), 1)
    first = sorted({key for keys in by_language.values() for key in keys[:share]})
    order = dict.fromkeys([*first, *sorted(rows)])
    return {key: rows[key] for key in list(order)[:room]}


def _thin(rows: Mapping[str, dict[str, str]], languages: Iterable[str]) -> set[str]:
    """Return which of `languages` have too few translations to fit anything."""
    counts = Counter(language for texts in rows.values() for language in texts)
    return {language for language in languages if counts[language] < MIN_SHARED_ROWS}


def _without_thin(rows: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Leave out languages with too few translations, until none is left.

    Their texts are encoded all the same, by the n-grams they share with other languages.
    """
    while thin := _thin(rows, {language for texts in rows.values() for language in texts}):
        left = {
            key: {language: text for language, text in texts.items() if language not in thin}
            for key, texts in rows.items()
        }
        rows = {key: texts for key, texts in left.items() if len(texts) > 1}
    return rows


def _parallel(
    rows: Sequence[Row], splits: Sequence[str], taken: set[str], languages: set[str]
) -> Mapping[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if (
            row.parallel_id
            and row.split in splits
            and row.parallel_id not in taken
            and row.language in languages
        ):
            found.setdefault(row.parallel_id, {}).setdefault(row.language, row.text)
    return {key: texts for key, texts in found.items() if len(texts) > 1}


def _read_rows(path: Path) -> list[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path.name}:{number} is not a row of the data's schema: "
                    f"{type(error).__name__} {error}.",
                    code="E06",
                ) from None
    return rows


def _row(values: Mapping[str, Any]) -> Row:
    text = str(values.get("text") or values.get("question") or values["context"])
    # "Which of these is right?" says what it is about in its options only.
    text = " ".join([text, *map(str, values.get("choices") or ())])
    return Row(
        id=str(values["id"]),
        language=known_language(str(values["language"])),
        text=text,
        topic=str(values.get("topic") or ""),
        split=str(values.get("split") or ""),
        parallel_id=str(values.get("parallel_id") or ""),
    )


_CODES: dict[str, str] = {}


def known_language(code: str) -> str:
    """Return the canonical form of a language code; one that has none stays as it is."""
    if code not in _CODES:
        try:
            _CODES[code] = canonical_language(code)
        except LanguageError:
            _CODES[code] = code
    return _CODES[code]
