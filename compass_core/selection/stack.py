"""Several sketches as one corpus, and what counts as a template in it.

What very many texts have in common (an instruction, a heading) says nothing about two of them.  How
much of a row is such boilerplate is measured by its long n-grams, which natural text repeats only
where it is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.ngrams import Hashes
from compass_core.selection.sketches import Sketch

Rows = NDArray[np.int64]
Pairs = tuple[Rows, Rows]
"""(M,) rows and (M,) the row each one collides with."""

_HASHES_PER_BLOCK: Final = 1 << 18
_COUNTER_BITS: Final = 22
_REACH: Final = 6
"""Kept n-grams, about 6 letters apart, that may lie across the border of a common one (40)."""

_MIN_OWN: Final = 3
"""Kept n-grams beside the boilerplate below which a row has no text of its own to compare."""


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
        for sketch, mine, places in self._split(rows):
            taken[mine] = getattr(sketch, name)[places]
        return taken

    def ids(self, rows: Rows) -> list[str]:
        """Return the ids of `rows`."""
        names = np.empty(len(rows), dtype=object)
        for sketch, mine, places in self._split(rows):
            names[mine] = sketch.ids(places)
        return list(names)

    def _split(self, rows: Rows) -> Iterator[tuple[Sketch, Rows, Rows]]:
        """Yield each sketch, which of `rows` are its own, and their numbers within it."""
        for sketch, (start, stop) in zip(self.sketches, pairwise(self.bounds), strict=True):
            mine = np.flatnonzero((rows >= start) & (rows < stop))
            yield sketch, mine, rows[mine] - start

    def fingerprints(self) -> Iterator[tuple[int, Rows, Hashes]]:
        """Yield (first row, fingerprints per row, fingerprints) of consecutive rows, in blocks."""
        for sketch, start in zip(self.sketches, self.bounds[:-1].tolist(), strict=True):
            offsets = np.asarray(sketch.fingerprint_offsets)
            steps = np.arange(0, len(sketch.fingerprints), _HASHES_PER_BLOCK)
            edges = np.unique(np.append(np.searchsorted(offsets, steps), sketch.n_rows))
            for first, last in pairwise(edges.tolist()):
                block = sketch.fingerprints[offsets[first] : offsets[last]]
                yield start + first, np.diff(offsets[first : last + 1]), np.asarray(block)


def pool_limit(n_rows: int) -> int:
    """Return how many of `n_rows` pool rows may share something before it is a template.

    .1 %, at least 50.
    """
    return max(50, n_rows // 1000)


def reference_limit(n_rows: int) -> int:
    """Return how many of `n_rows` different test items or prompts may share something.

    2 %, at least 10 (several questions often stand on one passage) and at most 50.
    """
    return min(max(10, n_rows // 50), 50)


def distinct_pairs(stack: Stack, rows: Rows) -> Rows:
    """Return of `rows` the one of smallest key for each different prompt and response."""
    pairs, keys = stack.column("pair_keys")[rows], stack.column("keys")[rows]
    order = np.lexsort((keys, pairs))
    fresh = np.ones(len(rows), dtype=np.bool_)
    fresh[1:] = pairs[order][1:] != pairs[order][:-1]
    return rows[order[fresh]]


def distinct_rows(sketch: Sketch, keys: NDArray[np.uint64]) -> Rows:
    """Return the row of smallest key for each different value of `keys`, in that order."""
    order = np.lexsort((np.asarray(sketch.pair_keys), np.asarray(sketch.keys)))
    first = np.unique(np.asarray(keys)[order], return_index=True)[1]
    return order[np.sort(first)]


class ReferenceRuns:
    """The long n-grams of a small corpus, a prompt that is repeated counting once.

    Attributes:
        hashes: (H,) different n-grams, ascending.
        owners: (H,) the row of smallest key that holds each.
        common: (H,) those that more than `reference_limit` rows hold.
    """

    def __init__(self, reference: Sketch) -> None:
        """Count the n-grams of `reference`."""
        known = distinct_rows(reference, reference.prompt_keys)
        rank = np.full(reference.n_rows, len(known), dtype=np.int64)
        rank[known] = np.arange(len(known))
        self._lengths = np.diff(reference.fingerprint_offsets)
        holders = np.repeat(rank, self._lengths)
        every = np.asarray(reference.fingerprints)
        self.hashes, self._places = np.unique(every, return_inverse=True)
        first = np.full(len(self.hashes), len(known), dtype=np.int64)
        np.minimum.at(first, self._places, holders)
        # A row that repeats a prompt may still hold n-grams of its own (another answer).
        self.owners = np.append(known, -1)[first]
        others = self.owners[self._places] < 0
        self.owners[self._places[others]] = np.repeat(np.arange(len(rank)), self._lengths)[others]
        counts = np.bincount(self._places[holders < len(known)], minlength=len(self.hashes))
        self.common = counts > reference_limit(len(known))

    def boilerplate(self) -> NDArray[np.float64]:
        """Return (R,) share of each row's text that is boilerplate."""
        return _shares(self.common[self._places], self._lengths)

    def telling(self, common: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (H,) which n-grams are neither `common` nor reach into a stretch that is."""
        reaching = self._places[_spread(common[self._places], self._lengths)]
        telling = np.ones(len(self.hashes), dtype=np.bool_)
        telling[reaching] = False
        return telling


def boilerplate_shares(stack: Stack, rows: Rows) -> NDArray[np.float64]:
    """Return (N,) share of each row's text that more than `pool_limit` different `rows` hold.

    Copies of one text count once, or they would pass for a template.  Counts are kept by 22 bits of
    the hash, so they may be too high by what falls together by chance (some tens in a pool of a
    million, against a limit of a thousand).
    """
    wanted = np.zeros(stack.n_rows, dtype=np.bool_)
    different = distinct_pairs(stack, rows)
    wanted[different] = True
    counts = np.zeros(1 << _COUNTER_BITS, dtype=np.uint32)
    shift = np.uint64(64 - _COUNTER_BITS)
    for start, lengths, hashes in stack.fingerprints():
        counted = np.repeat(wanted[start : start + len(lengths)], lengths)
        np.add.at(counts, hashes[counted] >> shift, 1)
    common = counts > pool_limit(len(different))
    shares = np.zeros(stack.n_rows)
    for start, lengths, hashes in stack.fingerprints():
        shares[start : start + len(lengths)] = _shares(common[hashes >> shift], lengths)
    return shares


def _spread(common: NDArray[np.bool_], lengths: Rows) -> NDArray[np.bool_]:
    """Mark also the n-grams of each row next to common ones, which lie in boilerplate in part."""
    ends = np.cumsum(lengths)
    before = np.zeros(len(common) + 1, dtype=np.int64)
    np.cumsum(common, out=before[1:])
    places = np.arange(len(common))
    first = np.maximum(places - _REACH, np.repeat(ends - lengths, lengths))
    last = np.minimum(places + _REACH + 1, np.repeat(ends, lengths))
    spread: NDArray[np.bool_] = before[last] > before[first]
    return spread


def _shares(common: NDArray[np.bool_], lengths: Rows) -> NDArray[np.float64]:
    """Return the share of boilerplate of each row; 1 where too little else is left."""
    if not common.any():
        return np.zeros(len(lengths))
    owners = np.repeat(np.arange(len(lengths)), lengths)
    held = np.bincount(owners, weights=_spread(common, lengths), minlength=len(lengths))
    shares = held / np.maximum(lengths, 1)
    return np.where((held > 0) & (lengths - held < _MIN_OWN), 1.0, shares)
