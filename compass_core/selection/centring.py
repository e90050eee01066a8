"""Removing what all texts of one language share: the remedy when clusters follow the script.

The mean of a language holds its script and the topic mix of its rows. Centring assumes that the
mixes are alike; where they are not, part of the topic signal goes with the mean. So it is a switch,
and languages with too few rows to tell share the mean of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_core.errors import DataError

Vectors = NDArray[np.float32]

MIN_ROWS_FOR_MEAN = 20
"""Languages with fewer rows are centred by the mean of all rows."""


def centre_languages(
    vectors: Vectors,
    languages: NDArray[Any],
    means: Mapping[str, Vectors] | None = None,
) -> tuple[Vectors, dict[str, Vectors]]:
    """Subtract each language's mean vector and renormalise.

    A row that equals its mean keeps its own direction, so that no zero vector appears.

    Args:
        vectors: (N, d) unit norm.
        languages: (N,) language of each row.
        means: means to subtract, from an earlier call; languages missing there are measured here.

    Returns:
        (N, d) float32 unit vectors, and the (d,) means that were subtracted, by language.

    Raises:
        DataError: the two arrays differ in length.
    """
    if len(vectors) != len(languages):
        raise DataError(f"{len(vectors)} vectors came with {len(languages)} languages.")
    used: dict[str, Vectors] = dict(means or {})
    names, codes = np.unique(np.asarray(languages), return_inverse=True)
    counts = np.bincount(codes, minlength=len(names))
    overall: Vectors = np.asarray(np.mean(vectors, axis=0, dtype=np.float64), dtype=np.float32)
    moved = np.array(vectors, dtype=np.float32)
    for code, name in enumerate(names.tolist()):
        rows = np.flatnonzero(codes == code)
        if name not in used:
            used[name] = overall
            if counts[code] >= MIN_ROWS_FOR_MEAN:
                used[name] = np.asarray(moved[rows].mean(axis=0), dtype=np.float32)
        moved[rows] -= used[name]
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    gone = norms[:, 0] < 1e-6
    if gone.any():
        moved[gone] = vectors[gone]
        norms[gone] = np.linalg.norm(moved[gone], axis=1, keepdims=True)
    moved /= np.maximum(norms, 1e-12)
    return moved, {name: used[name] for name in names.tolist()}
