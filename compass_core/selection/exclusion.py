"""Which pool rows may never be selected, whatever the strategy, and why.

Everything is decided from sketches (`compass_core.selection.sketches`), so a pool of millions of
rows needs neither its texts nor all pairs.  What characters cannot tell is a translation whose
`parallel_id` is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_core.errors import DataError
from compass_core.selection.near_duplicates import Side, shared_runs, similar_to, similar_within
from compass_core.selection.sketches import Sketch
from compass_core.selection.stack import (
    Pairs,
    Rows,
    Stack,
    boilerplate_shares,
)

REMOVED_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("other_id", pa.string()),
    ]
)
"""One removed row: its number, its id, the reason, and the id of what it collides with, if any."""


class Exclusions(NamedTuple):
    """Which rows may be used.

    Attributes:
        allowed: (N,) True where nothing speaks against the row.
        reasons: How many rows each reason removed; a row counts under its first reason.
        removed: The removed rows one by one (``REMOVED_SCHEMA``), by reason and then by row.
    """

    allowed: NDArray[np.bool_]
    reasons: dict[str, int]
    removed: pa.Table


def exclude_rows(  # noqa: PLR0913 - one corpus or one rule each
    pool: Sequence[Sketch],
    *,
    usage: Sketch | None = None,
    test: Sketch | None = None,
    coverage: Sketch | None = None,
    licences: tuple[str, ...] = (),
    sources: tuple[str, ...] = (),
    exclude_sources: tuple[str, ...] = (),
    near_duplicates: float = 0.8,
    decontaminate: bool = True,
    candidates: NDArray[np.bool_] | None = None,
) -> Exclusions:
    """Find the pool rows that repeat test, usage, coverage or each other, or may not be used.

    A row is removed, in this order, when

    1. its `parallel_id` is that of a test item or a usage prompt (it is a translation of it);
    2. its prompt has the letters of a test item's or usage prompt's (case, white space and
       punctuation apart), or its prompt and response equal those of a coverage row;
    3. it shares a long run of characters with a test item (50 letters of an alphabet or as much
       text in another script, `ngrams.RUN_WEIGHT`), where `decontaminate`;
    4. its prompt resembles a test item's or a usage prompt's, or all of it a coverage row's, with a
       Jaccard similarity of `near_duplicates` or more;
    5. its licence or source is not among those allowed;
    6. another row of the pool has the same prompt and response and a smaller key, a hash of the
       id, so that no language is favoured and the order of the pool does not matter;
    7. it resembles, as in 4, a row of the pool with a smaller key.

    Texts below 40 letters, or as much in another script, are compared by 1, 2 and 6 alone.  What
    many test items or very many rows of the pool have in common is a template and no evidence in
    3, 4 and 7 (`compass_core.selection.stack`).

    Args:
        pool: sketches of the pool's shards; rows are numbered through them.
        usage: sketch of the usage prompts.
        test: sketch of the test items.
        coverage: sketch of the existing training rows.
        licences: licences allowed; empty allows all.
        sources: sources allowed; empty allows all.
        exclude_sources: sources not allowed.
        near_duplicates: smallest similarity that excludes, in (0, 1]; 0 looks for copies only.
        decontaminate: whether long runs shared with a test item exclude.
        candidates: (N,) rows that come into question at all, for example those of other languages
            than the target; the rest is not allowed, for no reason of this list, and stands in
            nobody's way. All by default.

    Raises:
        DataError: `near_duplicates` outside [0, 1] (E42).
    """
    if not 0.0 <= near_duplicates <= 1.0:
        raise DataError(
            f"selection.near_duplicates must lie in [0, 1], got {near_duplicates}.", code="E42"
        )
    found = _Removal(Stack(pool))
    if candidates is not None:
        found.allowed &= candidates
    _exclude_references(found, test, usage, coverage, near_duplicates, decontaminate)
    _exclude_labels(found, "licence", licences, ())
    _exclude_labels(found, "source", sources, exclude_sources)
    found.apply("duplicate in pool", partial(_copies_within, found.stack))
    if near_duplicates > 0:
        alike = partial(
            similar_within,
            found.stack,
            threshold=near_duplicates,
            boilerplate=found.boilerplate,
        )
        found.apply("near-duplicate in pool", alike)
    return found.result()


def contaminated_rows(
    rows: Sketch, test: Sketch, *, near_duplicates: float = 0.8, decontaminate: bool = True
) -> Exclusions:
    """Find the rows of another corpus, say the coverage, that hold items of the test.

    Reasons 1 to 4 of `exclude_rows` with regard to `test` alone.
    """
    found = _Removal(Stack([rows]))
    _exclude_references(found, test, None, None, near_duplicates, decontaminate)
    return found.result()


class _Removal:
    """Collects removed rows, reason by reason; a row counts under its first."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.allowed = np.ones(stack.n_rows, dtype=np.bool_)
        self.reasons: dict[str, int] = {}
        self._removed: list[pa.Table] = [REMOVED_SCHEMA.empty_table()]

    def apply(
        self, reason: str, find: Callable[[Rows], Pairs], other: Sketch | None = None
    ) -> None:
        """Remove what `find` finds among the rows still allowed.

        Args:
            reason: what to count them under.
            find: rows still allowed -> rows to remove and what each collides with; -1 is nothing.
            other: the corpus they collide with; None is the pool itself.
        """
        rows, others = find(np.flatnonzero(self.allowed))
        order = np.argsort(rows, kind="stable")
        rows, others = rows[order], others[order]
        self.allowed[rows] = False
        self.reasons[reason] = len(rows)
        known = others >= 0
        names = np.full(len(rows), None, dtype=object)
        named = self.stack.ids(others[known]) if other is None else other.ids(others[known])
        names[known] = named
        columns = [
            pa.array(rows, pa.int64()),
            pa.array(self.stack.ids(rows), pa.string()),
            pa.array([reason] * len(rows), pa.string()),
            pa.array(names, pa.string()),
        ]
        self._removed.append(pa.table(columns, schema=REMOVED_SCHEMA))

    @cached_property
    def boilerplate(self) -> NDArray[np.float64]:
        """How much of each row is boilerplate, among those allowed when first asked."""
        return boilerplate_shares(self.stack, np.flatnonzero(self.allowed))

    def result(self) -> Exclusions:
        return Exclusions(self.allowed, self.reasons, pa.concat_tables(self._removed))


def _exclude_references(
    found: _Removal,
    test: Sketch | None,
    usage: Sketch | None,
    coverage: Sketch | None,
    near_duplicates: float,
    decontaminate: bool,
) -> None:
    stack = found.stack
    keyed = [("test", test), ("usage", usage)]
    for role, other in keyed:
        if other is not None:
            find = partial(_same, stack, other=other, name="parallel_keys")
            found.apply(f"translation of {role}", find, other)
    compared: list[tuple[str, Sketch | None, Side]] = [(*pair, "prompt") for pair in keyed]
    compared.append(("coverage", coverage, "whole"))
    for role, other, side in compared:
        if other is not None:
            name = "prompt_keys" if side == "prompt" else "pair_keys"
            found.apply(
                f"same text as {role}", partial(_same, stack, other=other, name=name), other
            )
    if test is not None and decontaminate:
        found.apply("long run of test", partial(shared_runs, stack, reference=test), test)
    for role, other, side in compared:
        if other is not None and near_duplicates > 0:
            alike = partial(
                similar_to,
                stack,
                reference=other,
                side=side,
                threshold=near_duplicates,
                boilerplate=found.boilerplate,
            )
            found.apply(f"near-duplicate of {role}", alike, other)


def _same(stack: Stack, rows: Rows, other: Sketch, name: str) -> Pairs:
    """Return the rows whose key `name` is one of `other`'s, and the row of smallest id key."""
    values = stack.column(name)[rows]
    order = np.argsort(np.asarray(other.keys), kind="stable")
    theirs, first = np.unique(np.asarray(getattr(other, name))[order], return_index=True)
    if len(theirs) == 0:
        return rows[:0], rows[:0]
    place = np.minimum(np.searchsorted(theirs, values), len(theirs) - 1)
    hit = (theirs[place] == values) & (values != 0)
    return rows[hit], order[first[place[hit]]]


def _exclude_labels(
    found: _Removal, name: str, allowed: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    """Remove rows by their licence or source."""
    if not allowed and not refused:
        return
    stack = found.stack

    def find(rows: Rows) -> Pairs:
        fine = [
            np.array(
                [(not allowed or n in allowed) and n not in refused for n in names], dtype=np.bool_
            )[np.asarray(getattr(sketch, f"{name}s"))]
            for sketch in stack.sketches
            for names in [getattr(sketch, f"{name}_names")]
        ]
        bad = rows[~np.concatenate(fine)[rows]] if fine else rows
        return bad, np.full(len(bad), -1, dtype=np.int64)

    found.apply(f"{name} not allowed", find)


def _copies_within(stack: Stack, rows: Rows) -> Pairs:
    """Return the rows whose pair equals that of a row with a smaller key, and that one."""
    pairs = stack.column("pair_keys")[rows]
    order = np.lexsort((stack.column("keys")[rows], pairs))
    rows, pairs = rows[order], pairs[order]
    repeated = np.zeros(len(rows), dtype=np.bool_)
    repeated[1:] = pairs[1:] == pairs[:-1]
    leaders = rows[np.maximum.accumulate(np.where(repeated, 0, np.arange(len(rows))))]
    return rows[repeated], leaders[repeated]
