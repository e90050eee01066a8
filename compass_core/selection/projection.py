"""Two coordinates per vector, for the report's map. For the eye only: nothing is computed on it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compass_core.selection.density import reduce_dimensions

Points = NDArray[np.float32]

_MIN_TSNE_ROWS, _MAX_TSNE_ROWS = 10, 400
_NEIGHBOURS = 5
_BLOCK_ROWS = 4_096


def project_2d(
    vectors_fit: NDArray[np.floating[Any]],
    vectors_more: NDArray[np.floating[Any]] | None = None,
    *,
    seed: int,
    method: Literal["auto", "pca", "tsne"] = "auto",
) -> Points:
    """Place vectors in the plane; the same input gives the same picture.

    Args:
        vectors_fit: (N, d) vectors that shape the picture.
        vectors_more: (M, d) vectors placed into it.
        seed: seed of ``tsne``.
        method: ``pca`` is linear and fast. ``tsne`` keeps neighbours together; it places at most
            400 evenly spaced fitted vectors (its cost grows fast) and every other vector amid its 5
            nearest of those. ``auto`` takes ``tsne`` from 10 fitted vectors on.

    Returns:
        (N + M, 2) float32, the fitted vectors first.
    """
    vectors = np.asarray(vectors_fit, dtype=np.float32)
    n_fit = len(vectors)
    if vectors_more is not None:
        vectors = np.concatenate([vectors, np.asarray(vectors_more, dtype=np.float32)])
    if method == "auto":
        method = "tsne" if n_fit >= _MIN_TSNE_ROWS else "pca"
    mean, axes = _principal_axes(vectors[:n_fit])
    linear: Points = ((vectors - mean) @ axes).astype(np.float32)
    if method == "pca":
        return linear
    anchors = np.linspace(0, n_fit - 1, min(n_fit, _MAX_TSNE_ROWS)).astype(np.int64)
    placed = _tsne(vectors[anchors], linear[anchors], seed)
    result = _amid_neighbours(vectors, vectors[anchors], placed)
    result[anchors] = placed
    return result


def _tsne(vectors: NDArray[np.float32], start: NDArray[np.float32], seed: int) -> Points:
    from sklearn.manifold import TSNE

    model = TSNE(
        init=(start / max(float(start[:, 0].std()), 1e-12) * 1e-4).astype(np.float32),
        perplexity=min(30.0, (len(vectors) - 1) / 3),
        max_iter=500,
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return np.asarray(model.fit_transform(reduce_dimensions(vectors)), dtype=np.float32)


def _principal_axes(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean and (d, 2) leading axes, each with its largest entry positive."""
    mean = vectors.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    leading = axes[:, np.argsort(-values, kind="stable")[:2]]
    if leading.shape[1] < 2:
        leading = np.pad(leading, ((0, 0), (0, 2 - leading.shape[1])))
    largest = np.abs(leading).argmax(axis=0)
    signs = np.where(leading[largest, [0, 1]] < 0, -1.0, 1.0)
    return mean, (leading * signs).astype(np.float32)


def _amid_neighbours(
    vectors: NDArray[np.float32], anchors: NDArray[np.float32], placed: Points
) -> Points:
    """Return (N, 2): each vector at the mean place of its 5 nearest anchors, nearer ones first."""
    result = np.empty((len(vectors), 2), dtype=np.float32)
    k = min(_NEIGHBOURS, len(anchors))
    for start in range(0, len(vectors), _BLOCK_ROWS):
        distances = 1.0 - vectors[start : start + _BLOCK_ROWS] @ anchors.T
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]
        weights = 1.0 / (np.take_along_axis(distances, near, axis=1).clip(0) + 1e-3) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        result[start : start + _BLOCK_ROWS] = (placed[near] * weights[:, :, None]).sum(axis=1)
    return result
