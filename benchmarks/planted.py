"""Pools with planted topics, made in blocks: what the selection benchmarks run on.

Vectors lie on the unit sphere of 384 dimensions around 100 topics of 4 subtopics each. All share a
common direction, as sentence encoders have it, and keep a cosine of about .7 to their subtopic.
Topic sizes are unequal, rank^-0.7, in the pool and, in another order, in usage. With
``usage="sparse"`` usage follows Dirichlet(.4) instead: a few topics take most of it, many have next
to none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Topics = NDArray[np.int64]

DIMENSION, N_TOPICS, N_SUBTOPICS = 384, 100, 4
USAGE_MIXES = ("ranked", "sparse")
_COMMON, _SUBTOPIC, _NOISE = 0.6, 0.6, 1.0
_BLOCK = 65_536


class World:
    """One set of topics, and how often the pool and usage have each."""

    def __init__(self, seed: int = 0, usage: str = "ranked") -> None:
        """Place the topics; everything follows from `seed` and the kind of usage."""
        rng = np.random.default_rng(seed)
        common = unit(rng.normal(size=(1, DIMENSION)))
        topics = unit(_COMMON * common + unit(rng.normal(size=(N_TOPICS, DIMENSION))))
        offsets = unit(rng.normal(size=(N_TOPICS, N_SUBTOPICS, DIMENSION)))
        self.centres = unit(topics[:, None] + _SUBTOPIC * offsets).astype(np.float32)
        sizes = np.arange(1, N_TOPICS + 1) ** -0.7
        self.pool_mix = rng.permutation(sizes / sizes.sum())
        self.usage_mix = rng.permutation(self.pool_mix)
        if usage == "sparse":
            self.usage_mix = rng.dirichlet(np.full(N_TOPICS, 0.4))

    def draw(
        self, n_rows: int, mix: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Floats, Topics]:
        """Return (n, d) unit vectors and (n,) their topics."""
        topics = rng.choice(N_TOPICS, n_rows, p=mix)
        rows = rng.standard_normal((n_rows, DIMENSION), dtype=np.float32)
        rows *= np.float32(_NOISE / np.sqrt(DIMENSION))
        rows += self.centres[topics, rng.integers(0, N_SUBTOPICS, n_rows)]
        rows /= np.sqrt(np.vecdot(rows, rows))[:, None]
        return rows, topics

    def write_pool(self, path: Path, n_rows: int, rng: np.random.Generator) -> Topics:
        """Write n pool vectors to the ``.npy`` file `path` in blocks; return their topics."""
        file = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(n_rows, DIMENSION)
        )
        topics = np.empty(n_rows, dtype=np.int64)
        for start in range(0, n_rows, _BLOCK):
            here = slice(start, min(start + _BLOCK, n_rows))
            file[here], topics[here] = self.draw(here.stop - start, self.pool_mix, rng)
        file.flush()
        return topics


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows at length 1."""
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def topic_counts(topics: Topics) -> Topics:
    """Return (100,) how many rows each topic has."""
    counts: Topics = np.bincount(topics, minlength=N_TOPICS)
    return counts
