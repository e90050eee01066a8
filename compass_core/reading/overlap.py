"""Checks of the corpora against each other: nothing that is tested may be trained on or shown.

Two rows are the same item when their texts are equal after Unicode, case, spacing and punctuation
are ignored (and their options agree, where both have options), or when their `parallel_id` says
that one translates the other.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.languages import language_name

MIN_TEST_ITEMS: Final = 100
"""Fewer paired items than this rarely decide anything at the .05 level."""

OVERLAP_COLUMNS: Final = ("id", "language", "prompt", "response", "choices", "parallel_id")
"""What the checks of this module read."""

_IDS_SHOWN: Final = 5
_LAST_PUNCTUATION: Final = 0x20000
_REMEDY: Final = {
    "usage": "take these rows out of the usage sample, or use another split",
    "coverage": "take these rows out of the coverage",
    "pool": "take these rows out of the pool",
}
_USED_FOR: Final = {
    "usage": "usage shapes the selection",
    "coverage": "coverage is trained on",
    "pool": "the pool is trained on",
}


def check_overlap(
    *,
    usage: pa.Table,
    test: pa.Table,
    coverage: pa.Table | None = None,
    pool: pa.Table | None = None,
    min_test_items: int = MIN_TEST_ITEMS,
) -> list[str]:
    """Check the corpora of one language against each other; return notes for the user.

    All tables are of ``EXAMPLE_SCHEMA``; ``OVERLAP_COLUMNS`` are enough.

    Raises:
        DataError: usage or test have no rows (E51), the pool has no other language (E51), or
            usage, coverage or pool hold items of the test set (E47, with the first ids).
    """
    language = str(test["language"][0]) if test.num_rows else ""
    _check_rows(usage, test, pool, language)
    notes: list[str] = []
    if test.num_rows < min_test_items:
        notes.append(
            f"E48 only {test.num_rows} test items: below {min_test_items} a gain is rarely "
            "significant, so promotion is unlikely"
        )
    problems: list[str] = []
    for role, rows in (("usage", usage), ("coverage", coverage), ("pool", pool)):
        if rows is None:
            continue
        hits = np.flatnonzero(overlapping_rows(rows, test))
        if len(hits):
            ids = ", ".join(str(rows["id"][int(i)]) for i in hits[:_IDS_SHOWN])
            more = f" and {len(hits) - _IDS_SHOWN} more" if len(hits) > _IDS_SHOWN else ""
            problems.append(
                f"{len(hits)} rows of the {role} are items of the test set, and {_USED_FOR[role]}: "
                f"{ids}{more} - {_REMEDY[role]}"
            )
    if problems:
        raise DataError("; ".join(problems), code="E47")
    return notes


def overlapping_rows(rows: pa.Table, test: pa.Table) -> NDArray[np.bool_]:
    """Mark the rows that are items of `test` or translations of them.

    Returns:
        (N,) true where a row overlaps; filter with its inverse to clean a pool.
    """
    keys = _Keys(test)
    return np.array([keys.match(row) for row in _views(rows)], dtype=np.bool_)


def normalised(text: str) -> str:
    """Return `text` without case, spacing, punctuation and differences of Unicode form.

    Examples:
        >>> normalised("Ｈello,  World!") == normalised("hello world")
        True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_separators()) or folded


@lru_cache(maxsize=1)
def _separators() -> dict[int, None]:
    """Return a translation that drops punctuation, spaces and invisible characters.

    Marks stay, because they are vowels in many scripts; so do symbols, which carry mathematics.
    """
    wanted = ("P", "Z", "Cc", "Cf")
    points = range(_LAST_PUNCTUATION)
    return {p: None for p in points if unicodedata.category(chr(p)).startswith(wanted)}


class _Keys:
    """The identities of the test items."""

    def __init__(self, test: pa.Table) -> None:
        self.texts: set[str] = set()
        self.options: dict[str, set[frozenset[str]]] = {}
        self.parallel: set[str] = set()
        for text, choices, parallel_id in _views(test):
            key = normalised(text)
            self.texts.add(key)
            self.options.setdefault(key, set()).add(_options(choices))
            if parallel_id:
                self.parallel.add(parallel_id)

    def match(self, row: tuple[str, list[str], str]) -> bool:
        text, choices, parallel_id = row
        if parallel_id and parallel_id in self.parallel:
            return True
        key = normalised(text)
        if key not in self.texts:
            return False
        mine, theirs = _options(choices), self.options[key]
        return not mine or mine in theirs or frozenset() in theirs


def _options(choices: list[str]) -> frozenset[str]:
    return frozenset(normalised(choice) for choice in choices)


def _views(table: pa.Table) -> Any:
    """Yield (text, choices, parallel id) of every row."""
    prompts = table["prompt"].to_pylist()
    responses = table["response"].to_pylist()
    texts = (p or r for p, r in zip(prompts, responses, strict=True))
    choices, parallel = table["choices"].to_pylist(), table["parallel_id"].to_pylist()
    return zip(texts, choices, parallel, strict=True)


def _check_rows(usage: pa.Table, test: pa.Table, pool: pa.Table | None, language: str) -> None:
    for role, rows in (("usage", usage), ("test", test)):
        if not rows.num_rows:
            raise DataError(
                f"the {role} corpus has 0 rows - check `language`, `split` and `where` of "
                f"`data.{role}`",
                code="E51",
            )
    if pool is None:
        return
    others = set(pool["language"].unique().to_pylist()) - {language}
    if not others:
        raise DataError(
            f"the pool for {language_name(language)} has no other language - add data of other "
            "languages to `data.pool`",
            code="E51",
        )
