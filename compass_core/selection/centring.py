"""Removing what all texts of one language share: the remedy when clusters follow the script.

The mean of a language holds its script and the topic mix of its rows. Centring assumes that the
mixes are alike; where they are not, part of the topic signal goes with the mean. So it is a switch,
and languages with too few rows to tell share the mean of all rows.

Sums are kept per shard of a pool, so that a new shard moves the means without the others being
read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError

Vectors = NDArray[np.float32]

MIN_ROWS_FOR_MEAN = 20
"""Languages with fewer rows are centred by the mean of all rows."""

_BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class LanguageSums:
    """Sums of vectors by language, of one corpus or shard.

    Attributes:
        languages: (L,) names.
        sums: (L, d) float64.
        counts: (L,) rows.
    """

    languages: tuple[str, ...]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


def sum_by_language(vectors: Any, languages: NDArray[Any]) -> LanguageSums:
    """Add up the vectors of each language, a block at a time.

    Args:
        vectors: (N, d) unit norm; an array, memory-mapped, or anything that slices like one.
        languages: (N,) language of each row.

    Raises:
        DataError: the two differ in length.
    """
    if len(vectors) != len(languages):
        raise DataError(f"{len(vectors)} vectors came with {len(languages)} languages.")
    names, codes = np.unique(np.asarray(languages), return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1] if len(vectors) else 0))
    for start in range(0, len(vectors), _BLOCK_ROWS):
        own = codes[start : start + _BLOCK_ROWS]
        block = np.asarray(vectors[start : start + _BLOCK_ROWS], dtype=np.float64)
        for code in np.unique(own):
            sums[code] += block[own == code].sum(axis=0)
    counts = np.bincount(codes, minlength=len(names)).astype(np.int64)
    return LanguageSums(tuple(names.tolist()), sums, counts)


def language_means(parts: Iterable[LanguageSums]) -> dict[str, Vectors]:
    """Return each language's mean over all `parts`, (d,) float32; small languages share one."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, total, count in zip(part.languages, part.sums, part.counts, strict=True):
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + int(count)
    if not sums:
        return {}
    overall = np.sum(list(sums.values()), axis=0) / sum(counts.values())
    return {
        name: np.asarray(
            sums[name] / counts[name] if counts[name] >= MIN_ROWS_FOR_MEAN else overall,
            dtype=np.float32,
        )
        for name in sorted(sums)
    }


def subtract_means(vectors: Vectors, means: Vectors) -> Vectors:
    """Return `vectors` (N, d) minus `means` (N, d), of unit norm.

    A row that equals its mean keeps its own direction, so that no zero vector appears.
    """
    moved = np.asarray(vectors - means, dtype=np.float32)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    gone = norms[:, 0] < 1e-6
    if gone.any():
        moved[gone] = vectors[gone]
        norms[gone] = np.linalg.norm(moved[gone], axis=1, keepdims=True)
    moved /= np.maximum(norms, 1e-12)
    return moved


def centre_languages(
    vectors: Vectors,
    languages: NDArray[Any],
    means: Mapping[str, Vectors] | None = None,
) -> tuple[Vectors, dict[str, Vectors]]:
    """Subtract each language's mean vector and renormalise.

    Args:
        vectors: (N, d) unit norm.
        languages: (N,) language of each row.
        means: means to subtract, from an earlier call; languages missing there are measured here.

    Returns:
        (N, d) float32 unit vectors, and the (d,) means that were subtracted, by language.

    Raises:
        DataError: the two arrays differ in length.
    """
    used = language_means([sum_by_language(vectors, languages)]) | dict(means or {})
    centred = CentredVectors(vectors, languages, used)
    names = np.unique(np.asarray(languages)).tolist()
    return centred[:], {name: used[name] for name in names}


class CentredVectors:
    """Vectors whose language's mean is subtracted as they are read."""

    def __init__(self, vectors: Any, languages: NDArray[Any], means: Mapping[str, Vectors]) -> None:
        """See `vectors` (N, d) with the `means` (d,) of their `languages` (N,) taken off."""
        self._vectors = vectors
        names, codes = np.unique(np.asarray(languages), return_inverse=True)
        self._codes = codes.astype(np.int32)
        self._means = np.stack([means[str(name)] for name in names]) if len(names) else None
        self.shape: tuple[int, ...] = vectors.shape
        self.dtype = np.dtype(np.float32)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Vectors:
        found = np.asarray(self._vectors[rows], dtype=np.float32)
        if self._means is None or not len(found):
            return found
        return subtract_means(found, self._means[self._codes[rows]])
