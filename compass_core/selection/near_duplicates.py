"""Near-duplicates and shared runs between sketches, without the texts and without all pairs.

Candidates share a band of MinHash minima; their similarity is then estimated from all minima.  What
very many texts share is a template and says nothing about two of them, so crowded buckets and
frequent n-grams do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.ngrams import N_PERMUTATIONS
from compass_core.selection.sketches import N_BANDS, Sketch

Rows = NDArray[np.int64]
Pairs = tuple[Rows, Rows]
"""(M,) rows and (M,) the row each one collides with."""

Side = Literal["prompt", "whole"]

_PAIRS_PER_BLOCK: Final = 1 << 16
_HASHES_PER_BLOCK: Final = 1 << 20
_FILTER_BITS: Final = 22
_LEADERS_PER_BUCKET: Final = 4


class Stack:
    """Several sketches as one corpus; row numbers run through them in order."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        """Keep `sketches`; nothing is read."""
        self.sketches = tuple(sketches)
        self.bounds = np.cumsum([0, *(s.n_rows for s in self.sketches)], dtype=np.int64)

    @property
    def n_rows(self) -> int:
        """Rows of all sketches."""
        return int(self.bounds[-1])

    def column(self, name: str, index: int | None = None) -> NDArray[Any]:
        """Return a copy of one array of all sketches, or of its column `index`."""
        arrays = (getattr(sketch, name) for sketch in self.sketches)
        parts = [array if index is None else array[:, index] for array in arrays]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def take(self, name: str, rows: Rows) -> NDArray[Any]:
        """Return the `rows` of one array, in that order."""
        first = getattr(self.sketches[0], name)
        taken = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for sketch, start, stop in zip(
            self.sketches, self.bounds[:-1], self.bounds[1:], strict=True
        ):
            mine = np.flatnonzero((rows >= start) & (rows < stop))
            taken[mine] = getattr(sketch, name)[rows[mine] - start]
        return taken

    def ids(self, rows: Rows) -> list[str]:
        """Return the ids of `rows`."""
        shards = np.searchsorted(self.bounds, rows, side="right") - 1
        pairs = zip(rows.tolist(), shards.tolist(), strict=True)
        return [self.sketches[s].ids([row - int(self.bounds[s])])[0] for row, s in pairs]


def template_limit(n_rows: int) -> int:
    """Return how many of `n_rows` pool rows may share something before it is a template (1 %)."""
    return max(50, n_rows // 100)


def reference_limit(n_rows: int) -> int:
    """Return how many of `n_rows` test items or prompts may share something (2 %, 10 to 50)."""
    return min(max(10, n_rows // 50), 50)


def similar_within(stack: Stack, rows: Rows, threshold: float) -> Pairs:
    """Return the `rows` that resemble one of smaller key, and that one.

    Bands are looked at one after another.  In each bucket the row of the smallest key removes those
    it resembles, the next of the others does the same, and so on, a few times; a removed row takes
    part in nothing further.  So the outcome depends on keys and texts alone, not on order or
    shards.  Buckets of more than .1 % of the rows (at least 50) are templates.
    """
    limit = max(50, len(rows) // 1000)
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
            alike = _resemble(stack, stack, "whole", rows[members], rows[leaders], threshold)
            leader_of[members[alike]] = leaders[alike]
            pending = members[~alike]
    found = np.flatnonzero(leader_of >= 0)
    return rows[found], rows[leader_of[found]]


def similar_to(stack: Stack, rows: Rows, reference: Sketch, side: Side, threshold: float) -> Pairs:
    """Return the `rows` that resemble a row of `reference`, and that one.

    Args:
        stack: the corpus `rows` belong to.
        rows: (M,) row numbers to look at.
        reference: test, usage or coverage.
        side: compare ``prompt`` with prompt or ``whole`` row with whole row.
        threshold: smallest Jaccard similarity, in (0, 1].
    """
    other = Stack([reference])
    known = _distinct(reference, side)
    limit, crowd = reference_limit(len(known)), template_limit(len(rows))
    match = np.full(len(rows), -1, dtype=np.int64)
    for band in range(N_BANDS):
        open_rows = np.flatnonzero(match < 0)
        values = stack.column(f"{side}_bands", band)[rows[open_rows]]
        buckets = other.column(f"{side}_bands", band)[known]
        order = np.argsort(buckets, kind="stable")
        firsts = np.searchsorted(buckets[order], values)
        counts = np.searchsorted(buckets[order], values, side="right") - firsts
        held = np.bincount(firsts, minlength=len(order) + 1)[firsts]
        counts[(values == 0) | (counts > limit) | (held > crowd)] = 0
        for place in range(int(counts.max(initial=0))):
            tried = np.flatnonzero((counts > place) & (match[open_rows] < 0))
            pairs = rows[open_rows[tried]], known[order[firsts[tried] + place]]
            alike = _resemble(stack, other, side, *pairs, threshold)
            match[open_rows[tried[alike]]] = pairs[1][alike]
    found = np.flatnonzero(match >= 0)
    return rows[found], match[found]


def shared_runs(stack: Stack, rows: Rows, reference: Sketch) -> Pairs:
    """Return the `rows` that share a long run of characters with a row of `reference`.

    Runs that very many rows of either side hold do not count (`reference_limit`,
    `template_limit`).  The row given is the one of smallest key among the first run's.
    """
    hashes, owners = _reference_runs(reference)
    if len(hashes) == 0:
        return rows[:0], rows[:0]
    wanted = np.zeros(stack.n_rows, dtype=np.bool_)
    wanted[rows] = True
    found, runs = _find_runs(stack, wanted, hashes)
    # A run counts once per row.
    found, runs = np.unique(np.stack([found, runs]), axis=1)
    common = np.bincount(runs, minlength=len(hashes)) > template_limit(len(rows))
    found, runs = found[~common[runs]], runs[~common[runs]]
    hit, first = np.unique(found, return_index=True)
    return hit, owners[runs[first]]


def _reference_runs(reference: Sketch) -> tuple[NDArray[np.uint64], Rows]:
    """Return the n-grams of `reference` that are no boilerplate, sorted, and one row of each."""
    counts = np.diff(reference.fingerprint_offsets)
    known = _distinct(reference, "prompt")
    rank = np.full(reference.n_rows, -1, dtype=np.int64)
    rank[known] = np.arange(len(known))
    owners = np.repeat(rank, counts)
    hashes = np.asarray(reference.fingerprints)
    order = np.lexsort((owners, hashes))
    order = order[owners[order] >= 0]
    hashes, owners = hashes[order], owners[order]
    fresh = np.ones(len(hashes), dtype=np.bool_)
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    hashes, first, counts = np.unique(hashes[fresh], return_index=True, return_counts=True)
    rare = counts <= reference_limit(len(known))
    return hashes[rare], known[owners[fresh][first[rare]]]


def _find_runs(
    stack: Stack, wanted: NDArray[np.bool_], hashes: NDArray[np.uint64]
) -> tuple[Rows, Rows]:
    """Return every (row, index into `hashes`) where a wanted row holds one of `hashes`."""
    shift = np.uint64(64 - _FILTER_BITS)
    seen = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
    seen[hashes >> shift] = True
    found, runs = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for sketch, start in zip(stack.sketches, stack.bounds[:-1], strict=True):
        offsets = np.asarray(sketch.fingerprint_offsets)
        for begin in range(0, len(sketch.fingerprints), _HASHES_PER_BLOCK):
            block = np.asarray(sketch.fingerprints[begin : begin + _HASHES_PER_BLOCK])
            places = np.flatnonzero(seen[block >> shift])
            block = block[places]
            index = np.minimum(np.searchsorted(hashes, block), len(hashes) - 1)
            same = hashes[index] == block
            rows = np.searchsorted(offsets, places[same] + begin, side="right") - 1 + start
            keep = wanted[rows]
            found.append(rows[keep])
            runs.append(index[same][keep])
    return np.concatenate(found), np.concatenate(runs)


def _distinct(reference: Sketch, side: Side) -> Rows:
    """Return one row of each different text, by key: repeated prompts are no template."""
    texts = reference.prompt_keys if side == "prompt" else reference.pair_keys
    order = np.lexsort((np.asarray(reference.pair_keys), np.asarray(reference.keys)))
    first = np.unique(np.asarray(texts)[order], return_index=True)[1]
    return order[np.sort(first)]


def _resemble(
    stack: Stack, other: Stack, side: Side, rows: Rows, others: Rows, threshold: float
) -> NDArray[np.bool_]:
    """Tell which pairs are estimated to be as similar as `threshold`.

    The estimate is the share of equal minima, less what low bytes agree on by chance.  Two standard
    errors are allowed below `threshold`, so that at most 3 % of the pairs that reach it are missed.
    """
    allowance = 2.0 * float(np.sqrt(threshold * (1.0 - threshold) / N_PERMUTATIONS))
    needed = N_PERMUTATIONS * (1.0 / 256.0 + (1.0 - 1.0 / 256.0) * (threshold - allowance))
    alike = np.empty(len(rows), dtype=np.bool_)
    for start in range(0, len(rows), _PAIRS_PER_BLOCK):
        part = slice(start, start + _PAIRS_PER_BLOCK)
        mine = stack.take(f"{side}_signatures", rows[part])
        theirs = other.take(f"{side}_signatures", others[part])
        alike[part] = np.count_nonzero(mine == theirs, axis=1) >= needed
    return alike


def _run_lengths(values: NDArray[np.uint32]) -> Rows:
    """Return for each entry of sorted `values` how many are equal to it."""
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    lengths = np.diff(np.append(starts, len(values)))
    repeated: Rows = np.repeat(lengths, lengths)
    return repeated
