"""How far pool rows lie from what users ask, for the draw `nearest`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_BLOCK_ROWS = 8_192


def distances_to_usage(
    pool_vectors: Any,
    pool_cluster_ids: NDArray[np.integer[Any]],
    usage_vectors: Floats,
    usage_cluster_ids: NDArray[np.integer[Any]],
    centroid_distances: Floats,
) -> Floats:
    """Return each pool row's distance to the nearest usage prompt of its own cluster.

    Args:
        pool_vectors: (N, d) unit norm; an array, memory-mapped, or in shards.
        pool_cluster_ids: (N,) cluster of each pool row.
        usage_vectors: (U, d) unit norm.
        usage_cluster_ids: (U,) cluster of each usage prompt.
        centroid_distances: (N,) distance to the centroid, for clusters without usage.

    Returns:
        (N,) float32, 1 − cosine.
    """
    distances = np.array(centroid_distances, dtype=np.float32)
    by_cluster = {
        int(cluster): np.ascontiguousarray(usage_vectors[usage_cluster_ids == cluster].T)
        for cluster in np.unique(usage_cluster_ids)
    }
    for start in range(0, len(pool_cluster_ids), _BLOCK_ROWS):
        ids = pool_cluster_ids[start : start + _BLOCK_ROWS]
        block = np.asarray(pool_vectors[start : start + _BLOCK_ROWS], dtype=np.float32)
        for cluster in np.unique(ids):
            asked = by_cluster.get(int(cluster))
            if asked is not None:
                rows = np.flatnonzero(ids == cluster)
                distances[start + rows] = 1.0 - (block[rows] @ asked).max(axis=1)
    return np.maximum(distances, 0.0)
