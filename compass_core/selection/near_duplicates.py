"""Near-duplicates and shared runs between sketches, without the texts and without all pairs.

Candidates share a band of MinHash minima; their similarity is then estimated from all minima.  Two
texts of one template are alike because of it, so where part of a text is boilerplate
(`compass_core.selection.stack`) what is not must be alike as well.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.ngrams import N_PERMUTATIONS, Hashes
from compass_core.selection.sketches import N_BANDS, Sketch
from compass_core.selection.stack import (
    Pairs,
    ReferenceRuns,
    Rows,
    Stack,
    distinct_pairs,
    distinct_rows,
    pool_limit,
    reference_limit,
)

Side = Literal["prompt", "whole"]

_PAIRS_PER_BLOCK: Final = 1 << 16
_FILTER_BITS: Final = 22
_LEADERS_PER_BUCKET: Final = 4


def similar_within(
    stack: Stack, rows: Rows, threshold: float, boilerplate: NDArray[np.float64]
) -> Pairs:
    """Return the `rows` that resemble one of smaller key, and that one.

    Bands are looked at one after another.  In each bucket the row of the smallest key removes those
    it resembles, the next of the others does the same, and so on, a few times; a removed row takes
    part in nothing further.  So the outcome depends on keys and texts alone, not on order or
    shards.  Buckets of more than `pool_limit` rows are templates.

    Args:
        stack: the corpus `rows` belong to.
        rows: (M,) row numbers to look at.
        threshold: smallest Jaccard similarity, in (0, 1].
        boilerplate: (N,) `boilerplate_shares` of the stack.
    """
    limit = pool_limit(len(rows))
    rows = rows[np.lexsort((stack.column("pair_keys")[rows], stack.column("keys")[rows]))]
    leader_of = np.full(len(rows), -1, dtype=np.int64)
    for band in range(N_BANDS):
        values = stack.column("whole_bands", band)[rows]
        alive = np.flatnonzero((leader_of < 0) & (values > 0))
        pending = alive[np.argsort(values[alive], kind="stable")]
        pending = pending[_run_lengths(values[pending]) <= limit]
        for _ in range(_LEADERS_PER_BUCKET):
            pending = pending[_run_lengths(values[pending]) > 1]
            if len(pending) == 0:
                break
            leads = np.append(True, values[pending][1:] != values[pending][:-1])
            leaders = pending[leads][np.cumsum(leads) - 1][~leads]
            members = pending[~leads]
            alike = _resemble(
                _Sides(stack, rows[members], stack, rows[leaders]),
                "whole",
                _needed(threshold, boilerplate[rows[members]]),
            )
            leader_of[members[alike]] = leaders[alike]
            pending = members[~alike]
    found = np.flatnonzero(leader_of >= 0)
    return rows[found], rows[leader_of[found]]


def similar_to(
    stack: Stack,
    rows: Rows,
    reference: Sketch,
    side: Side,
    threshold: float,
    boilerplate: NDArray[np.float64],
) -> Pairs:
    """Return the `rows` that resemble a row of `reference`, and that one.

    Args:
        stack: the corpus `rows` belong to.
        rows: (M,) row numbers to look at.
        reference: test, usage or coverage.
        side: compare ``prompt`` with prompt or ``whole`` row with whole row.
        threshold: smallest Jaccard similarity, in (0, 1].
        boilerplate: (N,) `boilerplate_shares` of the stack.
    """
    other = Stack([reference])
    keys = reference.prompt_keys if side == "prompt" else reference.pair_keys
    known = distinct_rows(reference, keys)
    theirs_common = ReferenceRuns(reference).boilerplate()
    limit = reference_limit(len(known))
    match = np.full(len(rows), -1, dtype=np.int64)
    for band in range(N_BANDS):
        buckets = other.column(f"{side}_bands", band)[known]
        order = np.argsort(buckets, kind="stable")
        open_rows = np.flatnonzero(match < 0)
        values = stack.column(f"{side}_bands", band)[rows[open_rows]]
        near = np.flatnonzero(_maybe_in(values, buckets) & (values > 0))
        open_rows, values = open_rows[near], values[near]
        firsts = np.searchsorted(buckets[order], values)
        counts = np.searchsorted(buckets[order], values, side="right") - firsts
        counts[counts > limit] = 0
        for place in range(int(counts.max(initial=0))):
            tried = np.flatnonzero((counts > place) & (match[open_rows] < 0))
            mine, theirs = rows[open_rows[tried]], known[order[firsts[tried] + place]]
            common = np.maximum(boilerplate[mine], theirs_common[theirs])
            pairs = _Sides(stack, mine, other, theirs)
            alike = _resemble(pairs, side, _needed(threshold, common))
            match[open_rows[tried[alike]]] = theirs[alike]
    found = np.flatnonzero(match >= 0)
    return rows[found], match[found]


def shared_runs(stack: Stack, rows: Rows, reference: Sketch) -> Pairs:
    """Return the `rows` that share a long run of characters with a row of `reference`.

    Runs that more than `reference_limit` of its rows hold do not count, nor those that more than
    1 % of the different `rows` do (at least 50).  The row given is the one of smallest key that
    holds the run.
    """
    known = ReferenceRuns(reference)
    telling = known.telling(known.common)
    holders, runs = _find_runs(stack, rows, known.hashes, telling)
    different = np.zeros(stack.n_rows, dtype=np.bool_)
    different[distinct_pairs(stack, rows)] = True
    often = np.bincount(runs[different[holders]], minlength=len(telling))
    frequent = often > max(50, int(different.sum()) // 100)
    counts = known.telling(known.common | frequent)[runs]
    hit, first = np.unique(holders[counts], return_index=True)
    return hit, known.owners[runs[counts][first]]


def _find_runs(
    stack: Stack, rows: Rows, hashes: Hashes, telling: NDArray[np.bool_]
) -> tuple[Rows, Rows]:
    """Return (row, index into `hashes`) wherever one of `rows` holds a telling n-gram."""
    found, runs = [rows[:0]], [rows[:0]]
    wanted = np.zeros(stack.n_rows, dtype=np.bool_)
    wanted[rows] = True
    for start, lengths, block in stack.fingerprints():
        places = np.flatnonzero(_maybe_in(block, hashes))
        index = np.minimum(np.searchsorted(hashes, block[places]), len(hashes) - 1)
        same = (hashes[index] == block[places]) & telling[index]
        holders = start + np.searchsorted(np.cumsum(lengths), places[same], side="right")
        found.append(holders[wanted[holders]])
        runs.append(index[same][wanted[holders]])
    return np.concatenate(found), np.concatenate(runs)


class _Sides(NamedTuple):
    """Pairs of rows of two stacks."""

    stack: Stack
    rows: Rows
    other: Stack
    others: Rows


def _needed(threshold: float, boilerplate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many minima must agree, given the share of the text that is boilerplate.

    Texts of Jaccard similarity J share 2J/(1+J) of themselves.  Where b is boilerplate, shared in
    any case, b + (1-b)·2J/(1+J) must be.  Low bytes agree by chance once in 256.  Two standard
    errors are allowed below, so that at most 3 % of the pairs that reach the threshold are missed.
    Rows without text of their own (b = 1) are never alike.
    """
    shared = boilerplate + (1.0 - boilerplate) * 2.0 * threshold / (1.0 + threshold)
    similarity = shared / (2.0 - shared)
    error = np.sqrt(similarity * (1.0 - similarity) / N_PERMUTATIONS)
    share: NDArray[np.float64] = 1.0 / 256.0 + (1.0 - 1.0 / 256.0) * (similarity - 2.0 * error)
    return np.where(boilerplate < 1.0, N_PERMUTATIONS * share, np.inf)


def _resemble(pairs: _Sides, side: Side, needed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which pairs agree in as many minima as `needed`."""
    name = f"{side}_signatures"
    alike = np.empty(len(pairs.rows), dtype=np.bool_)
    for start in range(0, len(alike), _PAIRS_PER_BLOCK):
        part = slice(start, start + _PAIRS_PER_BLOCK)
        mine = pairs.stack.take(name, pairs.rows[part])
        theirs = pairs.other.take(name, pairs.others[part])
        alike[part] = np.count_nonzero(mine == theirs, axis=1) >= needed[part]
    return alike


def _maybe_in(values: NDArray[Any], among: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which hashes may be `among` others, by a table of their first bits: most are not."""
    shift = among.dtype.type(8 * among.dtype.itemsize - _FILTER_BITS)
    seen = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
    seen[among >> shift] = True
    maybe: NDArray[np.bool_] = seen[values >> shift]
    return maybe


def _run_lengths(values: NDArray[np.uint32]) -> Rows:
    """Return for each entry of sorted `values` how many are equal to it."""
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    lengths = np.diff(np.append(starts, len(values)))
    repeated: Rows = np.repeat(lengths, lengths)
    return repeated
