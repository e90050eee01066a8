"""Character n-grams of many texts at once, in any script: MinHash signatures and fingerprints.

Texts are folded to their letters, marks, digits and symbols; case, white space, punctuation,
invisible characters and the optional vowel points of Arabic and Hebrew are gone.  The length of an
n-gram is not a count of characters but an amount of text: every character weighs what it takes to
say the same thing in English letters (tenths of a letter, from the parallel rows of sib200, tico19,
multiq and mgsm: Chinese says in 1 character what takes 2.7-2.9 English letters, Korean 2.1-2.2,
Tigrinya 1.5; all alphabets and abugidas, Lao and Khmer included, lie within .8-1.2).  An n-gram is
the shortest stretch from its first character that weighs enough, so that it depends on nothing
before it and texts that mix scripts need no rule of their own.

Everything is vectorised over the concatenated code points of a block of texts: an n-gram's hash is
a difference of prefix sums of a polynomial modulo 2^64.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

LETTER: Final = 10
"""Weight of one letter of an alphabet."""

RUN_WEIGHT: Final = 40 * LETTER
"""Weight of the n-grams that tell a copied run (n = 40 letters, 14 Han, 20 Hangul, 29 kana)."""

WINDOW_WEIGHT: Final = 11 * LETTER
"""Of the n-grams that start within this weight one is kept (w = 11 letters, 4 Han, 6 Hangul,
8 kana); every shared run of n + w - 1 characters has a kept n-gram in common."""

SHINGLE_WEIGHT: Final = 5 * LETTER
"""Weight of the n-grams compared by Jaccard similarity (5 letters, 2 Han, 3 Hangul, 4 kana)."""

N_PERMUTATIONS: Final = 100
"""Minima kept per text: the standard error of an estimated similarity of .8 is .04."""

_MAX_CODE: Final = 0x110000
_FIRST_RARE: Final = 0x20000
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_BASE: Final = 0xD1342543DE82EF95
_WEIGHTS: Final = (
    (0x1100, 0x11FF, 11),  # Hangul parts
    (0x1200, 0x139F, 15),  # Ethiopic
    (0x2D80, 0x2DDF, 15),
    (0x3040, 0x30FF, 14),  # kana
    (0x31F0, 0x31FF, 14),
    (0x3400, 0x4DBF, 29),  # Han
    (0x4E00, 0x9FFF, 29),
    (0xF900, 0xFAFF, 29),
    (0x20000, 0x323AF, 29),
    (0xAC00, 0xD7A3, 21),  # Hangul syllables
)
_OPTIONAL_MARKS: Final = (
    (0x0307, 0x0307),  # the dot that case-folding a Turkish capital leaves
    (0x0591, 0x05C7),  # Hebrew points
    (0x0640, 0x0640),  # Arabic tatweel
    (0x064B, 0x065F),  # Arabic vowel signs
    (0x0670, 0x0670),
    (0xE0000, 0xE01EF),  # tags and variation selectors
)
_DOTLESS_I: Final = 0x0131
_DROPPED: Final = ("P", "Z", "Cc", "Cf")


class Letters(NamedTuple):
    """Folded texts of one block, concatenated.

    Attributes:
        prefix: (n + 1,) sums of the hashing polynomial before each letter.
        reach: (n + 1,) weight before each letter.
        offsets: (T + 1,) first letter of each text.
    """

    prefix: Hashes
    reach: Places
    offsets: Places


def mix(values: Hashes) -> Hashes:
    """Return `values` scrambled so that each bit depends on all others (splitmix64's end)."""
    mixed = values.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fold(texts: Sequence[str]) -> Letters:
    """Return the letters of `texts`, which are NFKC and case-folded already (`words.normalise`)."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    weights = _weights()[codes]
    kept = weights > 0
    # Turkish capitals: I is the capital of dotless i, and that of i folds to i and a dot (dropped).
    codes = np.where(codes == _DOTLESS_I, ord("i"), codes)
    offsets = _sums(kept)[ends]
    codes = codes[kept]
    powers, _ = _powers(_table_size(len(codes)))
    terms = mix((codes.astype(np.uint64) + np.uint64(1)) * _FACTOR) * powers[: len(codes)]
    prefix = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(terms, out=prefix[1:])
    return Letters(prefix, _sums(weights[kept]), offsets)


def weight_of(letters: Letters) -> Places:
    """Return (T,) weight of each text, in tenths of an English letter."""
    weights: Places = letters.reach[letters.offsets[1:]] - letters.reach[letters.offsets[:-1]]
    return weights


def text_hashes(letters: Letters) -> Hashes:
    """Return (T,) one hash of all letters of each text; equal letters, equal hash."""
    return _hashes(letters, letters.offsets[:-1], letters.offsets[1:])


def signatures(letters: Letters) -> NDArray[np.uint32]:
    """Return (P, T) minima over each text's shingles under P = `N_PERMUTATIONS` hash functions.

    The share of equal minima of two texts estimates the Jaccard similarity of their shingle sets,
    and the minimum of two signatures is that of the union.  A text without shingles has the largest
    number everywhere.
    """
    ends = _ends(letters, SHINGLE_WEIGHT)
    lengths = np.diff(letters.offsets)
    starts = np.flatnonzero(ends <= np.repeat(letters.offsets[1:], lengths))
    hashes = (_hashes(letters, starts, ends[starts]) >> np.uint64(32)).astype(np.uint32)
    firsts = np.searchsorted(starts, letters.offsets[:-1])
    filled = np.diff(np.append(firsts, len(starts))) > 0
    minima = np.full((N_PERMUTATIONS, len(lengths)), 0xFFFFFFFF, dtype=np.uint32)
    if filled.any():
        product = np.empty_like(hashes)
        for row, factor in enumerate(_factors()):
            np.multiply(hashes, factor, out=product)
            minima[row, filled] = np.minimum.reduceat(product, firsts[filled])
    return minima


def fingerprints(letters: Letters) -> tuple[Hashes, Places]:
    """Return winnowed hashes of long n-grams and their offsets per text.

    In every stretch of starting characters that weighs `WINDOW_WEIGHT` the smallest hash is kept
    (winnowing: Schleimer, Wilkerson and Aiken, 2003).  A text that holds an n-gram but no whole
    stretch keeps its smallest; a shorter text keeps none.

    Returns:
        (F,) hashes, in the order of the text and different within it, and (T + 1,) offsets.
    """
    ends = _ends(letters, RUN_WEIGHT)
    lengths = np.diff(letters.offsets)
    valid = ends <= np.repeat(letters.offsets[1:], lengths)
    starts = np.flatnonzero(valid)
    hashes = np.full(len(ends), np.iinfo(np.uint64).max, dtype=np.uint64)
    hashes[starts] = _hashes(letters, starts, ends[starts])
    stops = _ends(letters, WINDOW_WEIGHT)[starts]
    # A window is whole when its last n-gram is; the first of a text stands whatever it holds.
    whole = valid[np.minimum(stops, len(valid)) - 1] if len(starts) else valid[:0]
    first = np.zeros(len(ends) + 1, dtype=np.bool_)
    first[letters.offsets[:-1]] = True
    whole |= first[starts]
    starts, stops = starts[whole], np.minimum(stops[whole], len(ends))
    lowest = _window_minima(hashes, starts, stops)
    # Neighbouring windows mostly agree, so little is left to sort.
    kept = _changes(lowest) | first[starts]
    lowest, owners = lowest[kept], np.searchsorted(letters.offsets, starts[kept], side="right")
    order = np.lexsort((lowest, owners))
    fresh = _changes(lowest[order]) | _changes(owners[order])
    order = np.sort(order[fresh])
    offsets = np.searchsorted(owners[order], np.arange(1, len(letters.offsets) + 1))
    return lowest[order], offsets.astype(np.int64)


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the entries that differ from the one before."""
    changed = np.ones(len(values), dtype=np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _window_minima(hashes: Hashes, starts: Places, stops: Places) -> Hashes:
    """Return the minimum of ``hashes[start:stop]`` for each window, by doubling."""
    widths = stops - starts
    lowest = np.empty(len(starts), dtype=np.uint64)
    table, span = hashes, 1
    while len(table):
        fits = np.flatnonzero((widths >= span) & (widths < 2 * span))
        lowest[fits] = np.minimum(table[starts[fits]], table[stops[fits] - span])
        if widths.max(initial=0) < 2 * span:
            break
        table = np.minimum(table[:-span], table[span:])
        span *= 2
    return lowest


def _ends(letters: Letters, weight: int) -> Places:
    """Return for each letter the end of the shortest stretch from it of at least `weight`.

    The end is past the last letter where the block does not hold that much.
    """
    reach = letters.reach
    n_letters = len(reach) - 1
    if n_letters and reach[-1] == LETTER * n_letters:
        # Nothing but alphabets: no search needed.
        return np.minimum(np.arange(n_letters) + -(-weight // LETTER), n_letters + 1)
    return np.searchsorted(reach, reach[:-1] + weight).astype(np.int64)


def _hashes(letters: Letters, starts: Places, ends: Places) -> Hashes:
    _, inverses = _powers(_table_size(len(letters.reach) - 1))
    return mix((letters.prefix[ends] - letters.prefix[starts]) * inverses[starts])


def _sums(values: NDArray[np.uint8] | NDArray[np.bool_]) -> Places:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _table_size(n_letters: int) -> int:
    return 1 << max(n_letters, 1).bit_length()


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Return the powers of the polynomial's base and of its inverse modulo 2^64."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        factors = np.full(size, base, dtype=np.uint64)
        factors[0] = 1
        tables.append(np.cumprod(factors))
    return tables[0], tables[1]


@lru_cache(maxsize=1)
def _factors() -> NDArray[np.uint32]:
    """Return the odd multipliers that stand for permutations of the hashes."""
    mixed = mix(np.arange(1, N_PERMUTATIONS + 1, dtype=np.uint64) * _FACTOR)
    return (mixed >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.uint8]:
    """Return the weight of every code point; 0 is left out."""
    weights = np.full(_MAX_CODE, LETTER, dtype=np.uint8)
    for first, last, weight in _WEIGHTS:
        weights[first : last + 1] = weight
    for code in range(_FIRST_RARE):
        if unicodedata.category(chr(code)).startswith(_DROPPED):
            weights[code] = 0
    for first, last in _OPTIONAL_MARKS:
        weights[first : last + 1] = 0
    return weights
