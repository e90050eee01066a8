"""Overlapping character n-grams of many texts at once, hashed into a fixed number of buckets.

Words are padded with one space on either side and n-grams do not reach over a space inside, so that
the beginnings and ends of words are features of their own. Texts are decomposed and lower-cased
first: accents and vowel signs stand apart, which lets related spellings share n-grams.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

SIZES = (2, 3, 4, 5)
"""Characters per n-gram."""

_SPACE = 32
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_LAST = np.uint64(0xBF58476D1CE4E5B9)


def ngram_matrix(texts: Sequence[str], n_bits: int, max_characters: int = 4_000) -> csr_matrix:
    """Return the (N, 2^`n_bits`) float32 matrix of 1 + ln(count) of each text's n-grams.

    Buckets are the same in every process.

    Args:
        texts: (N,) texts.
        n_bits: buckets, as a power of two.
        max_characters: characters read of a text.

    Examples:
        >>> ngram_matrix(["ab ab", ""], 10).sum(axis=1).ravel().tolist()[0][1]
        0.0
        >>> counts = ngram_matrix(["ab ab"], 18)  # " a", "ab", "b ", " ab", "ab ", " ab "
        >>> counts.nnz
        6
    """
    folded = [_fold(text[:max_characters]) for text in texts]
    lengths = np.array([len(text) for text in folded], dtype=np.int64)
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    owner = np.repeat(np.arange(len(texts)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    rows, columns = _hash_windows(codes, owner, ends, n_bits)
    shape = (len(texts), 1 << n_bits)
    counts = csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    counts.sum_duplicates()
    counts.data = 1 + np.log(counts.data)
    return counts


def _hash_windows(
    codes: NDArray[Any], owner: NDArray[np.int64], ends: NDArray[np.int64], n_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return text and bucket of every n-gram; hashes of one size are made of those below it."""
    values = codes.astype(np.uint64)
    is_space = codes == _SPACE
    place = np.arange(len(codes))
    hashes = np.zeros(len(codes), dtype=np.uint64)
    inside = np.zeros(len(codes), dtype=np.bool_)
    rows, columns = [], []
    for size in range(1, min(max(SIZES), len(codes)) + 1):
        n_windows = len(codes) - size + 1
        last = slice(size - 1, size - 1 + n_windows)
        if size > 2:
            inside = inside[:n_windows] | is_space[size - 2 : size - 2 + n_windows]
        hashes = hashes[:n_windows] * _FIRST + values[last] * _SECOND + np.uint64(size)
        hashes ^= hashes >> np.uint64(29)
        if size in SIZES:
            kept = place[:n_windows] + size <= ends[:n_windows]
            if size > 2:
                kept &= ~inside
            buckets = (hashes[kept] * _LAST) >> np.uint64(64 - n_bits)
            rows.append(owner[:n_windows][kept])
            columns.append(buckets.astype(np.int64))
    empty = [np.zeros(0, dtype=np.int64)]
    return np.concatenate([*empty, *rows]), np.concatenate([*empty, *columns])


def _fold(text: str) -> str:
    words = unicodedata.normalize("NFKD", text).lower().split()
    return f" {' '.join(words)} " if words else ""
